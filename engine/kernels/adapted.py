"""A backend for models with adapters: a plain one, by whose own functions what LoRA adds to a product is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from ..weights import Adapted
from . import Backend, Kernels


class Adapting:
    """The functions of a backend; `linear` takes an Adapted as well.

    The steps are those of PEFT (tuners/lora/layer.py) where adapters are not merged, y + (up (down x)) * scale, each
    rounded as the backend rounds.
    """

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def linear(self, x_TI: Any, w: Any) -> Any:
        ops = self._plain
        if not isinstance(w, Adapted):
            return ops.linear(x_TI, w)
        y_TO = ops.linear(x_TI, w.base)
        for a in w.adapters:
            y_TO = ops.add(y_TO, ops.scaled(ops.linear(ops.linear(x_TI, a.down), a.up), a.scale))
        return y_TO

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        return self._plain.batch(lambda ops: forward(adapting(ops)))

    def record(self, forward: Callable[[Kernels, Any], Any], cache: Any, tokens: int = 1) -> Callable[[Any], Any]:
        return cast(Callable[[Any], Any], self._plain.record(lambda ops, t: forward(adapting(ops), t), cache, tokens))


def adapting(ops: Kernels) -> Backend:
    """The same backend, or the same kernels of a pass, for weights with adapters."""
    return cast(Backend, Adapting(ops))
