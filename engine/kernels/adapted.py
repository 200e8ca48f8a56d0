"""A backend for models with adapters: a plain one, by whose own functions what LoRA adds to a product is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from ...quant.tensor import transposed
from ..weights import Adapted, Adapter, Weights, plain
from . import Backend, Kernels


class Adapting:
    """The functions of a backend; `linear` and `embed` take an Adapted as well.

    The steps are those of PEFT (tuners/lora/layer.py) where adapters are not merged, y + (up (down x)) * scale, each
    rounded as the backend rounds.
    """

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def linear(self, x_TI: Any, w: Any) -> Any:
        return self._with_adapters(self._plain.linear, x_TI, w, lambda a: (a.down, a.up))

    def embed(self, tokens_T: Any, w: Any) -> Any:
        """An embedding's adapter: rows of up [V, r] are looked up, and multiplied with down [r, D]."""
        return self._with_adapters(self._plain.embed, tokens_T, w, lambda a: (a.up, a.down))

    def _with_adapters(self, of: Callable[..., Any], x: Any, w: Any, halves: Callable[[Any], tuple[Any, Any]]) -> Any:
        """of(x, w) and what the adapters add. halves: that which `of` takes for w, and the one that multiplies it."""
        ops = self._plain
        if not isinstance(w, Adapted):
            return of(x, w)
        y = of(x, w.base)
        for a in w.adapters:
            first, second = halves(a)
            y = ops.add(y, ops.scaled(ops.linear(of(x, first), second), a.scale))
        return y

    def compile_kernels(self, w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
        self._plain.compile_kernels(replace(w, embed=plain(w.embed)), precision, progress)

    def prepare(self, w: Weights, precision: str) -> Weights:
        prepared: Weights = self._plain.prepare(replace(w, embed=plain(w.embed)), precision)
        if not isinstance(w.embed, Adapted):
            return prepared

        def formed(a: Adapter) -> Adapter:
            """Its halves in the forms that the backend gives an embedding and a head."""
            model = replace(w, layers=(), embed=a.up, lm_head=transposed(a.down), score_hidden=None, score=None)
            made: Weights = self._plain.prepare(model, precision)
            return Adapter(made.lm_head, made.embed, a.scale)

        return replace(prepared, embed=Adapted(prepared.embed, tuple(map(formed, w.embed.adapters))))

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        return self._plain.batch(lambda ops: forward(adapting(ops)))

    def record(self, forward: Callable[[Kernels, Any], Any], cache: Any, tokens: int = 1) -> Callable[[Any], Any]:
        return cast(Callable[[Any], Any], self._plain.record(lambda ops, t: forward(adapting(ops), t), cache, tokens))


def adapting(ops: Kernels) -> Backend:
    """The same backend, or the same kernels of a pass, for weights with adapters."""
    return cast(Backend, Adapting(ops))
