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

    The steps are those of PEFT (tuners/lora/layer.py, dora.py) where adapters are not merged, each rounded as the
    backend rounds: y + (up (down x) + bias) * scale; with DoRA's gain y + ((gain - 1) y + gain (up (down x)) * scale),
    and gain y + gain (up (down x)) * scale of an embedding.
    """

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)

    def linear(self, x_TI: Any, w: Any) -> Any:
        ops = self._plain
        if not isinstance(w, Adapted):
            return ops.linear(x_TI, w)
        y = ops.linear(x_TI, w.base)
        for a in w.adapters:
            more = ops.linear(ops.linear(x_TI, a.down), a.up)
            if a.bias is not None:
                more = ops.add(more, a.bias)
            if a.dora is None:
                y = ops.add(y, ops.scaled(more, a.scale))
            else:
                gain, less = a.dora
                y = ops.add(y, ops.add(ops.mul(y, less), ops.scaled(ops.mul(more, gain), a.scale)))
        return y

    def embed(self, tokens_T: Any, w: Any) -> Any:
        """An embedding's adapter: rows of up [V, r] are looked up, and multiplied with down [r, D]."""
        ops = self._plain
        if not isinstance(w, Adapted):
            return ops.embed(tokens_T, w)
        y = ops.embed(tokens_T, w.base)
        for a in w.adapters:
            more = ops.linear(ops.embed(tokens_T, a.up), a.down)
            if a.dora is not None:
                gain, _ = a.dora
                y, more = ops.mul(y, gain), ops.mul(more, gain)
            y = ops.add(y, ops.scaled(more, a.scale))
        return y

    def compile_kernels(self, w: Weights, precision: str, progress: Callable[[int, int], None]) -> None:
        self._plain.compile_kernels(replace(w, embed=plain(w.embed)), precision, progress)

    def prepare(self, w: Weights, precision: str) -> Weights:
        prepared: Weights = self._plain.prepare(replace(w, embed=plain(w.embed)), precision)
        if not isinstance(w.embed, Adapted):
            return prepared

        def in_form(a: Adapter) -> Adapter:
            """Its parts in the forms that the backend gives an embedding, a head and vectors."""
            gain = w.final_norm_D if a.dora is None else a.dora.gain(a.scale)
            model = replace(w, layers=(), embed=a.up, lm_head=transposed(a.down), final_norm_D=gain)
            model = replace(model, score_hidden=None, score_hidden_bias_D=None, score=None, score_bias_C=None)
            made: Weights = self._plain.prepare(model, precision)
            return Adapter(made.lm_head, made.embed, a.scale, None, a.dora and (made.final_norm_D, None))

        return replace(prepared, embed=Adapted(prepared.embed, tuple(map(in_form, w.embed.adapters))))

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        return self._plain.batch(lambda ops: forward(adapting(ops)))

    def record(self, forward: Callable[[Kernels, Any], Any], cache: Any, tokens: int = 1) -> Callable[[Any], Any]:
        return cast(Callable[[Any], Any], self._plain.record(lambda ops, t: forward(adapting(ops), t), cache, tokens))


def adapting(ops: Kernels) -> Backend:
    """The same backend, or the same kernels of a pass, for weights with adapters."""
    return cast(Backend, Adapting(ops))
