"""Every kernel with the types that it is launched with: to compile ahead, and to look at without a card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from numba import float32, int32, int64, uint16, uint32

from . import attention, rows
from .matmul import product, product8

F, U, H, I, X = float32[::1], uint32[::1], uint16[::1], int64, int32[::1]
ROWS, PLANES = (F, I, I), (U, U, H, H)

Signed = tuple[str, Any, tuple[Any, ...]]


def products(name: str, form: ModuleType, precisions: Iterable[str]) -> Iterator[Signed]:
    """(name, kernel, argument types) of a format's kernels."""
    made = product.products(form)
    yield f"{name}-embed", made.embed, (X, *PLANES, F, I, I)
    if "f32" in precisions or form.FORMAT.block == 1:
        yield f"{name}-vector", made.vector, (F, F, F, *PLANES, F, I, I, I, I, I)
        yield f"{name}-matrix", made.matrix, (*ROWS, I, *PLANES, F, I, I, I, I, I)
    if "int8" in precisions and form.FORMAT.block > 1:
        made8 = product8.products8(form)
        yield f"{name}-vector8", made8.vector, (U, F, X, *PLANES, F, I, I, I, I, I)
        yield f"{name}-matrix8", made8.matrix, (U, F, X, *PLANES, F, I, I, I, I, I)


def others() -> Iterator[Signed]:
    """(name, kernel, argument types) of the kernels that know no format."""
    yield "lay_out", product.lay_out, (*ROWS, I, I, F, F)
    yield "quantise", product8.quantise, (*ROWS, I, I, I, U, F, X)
    yield "rms_norm", rows.rms_norm, (*ROWS, F, float32, I, I, F)
    yield "add", rows.add, (*ROWS, *ROWS, I, F)
    yield "mul", rows.mul, (*ROWS, *ROWS, I, F)
    yield "silu", rows.silu, (*ROWS, I, F)
    yield "relu", rows.relu, (*ROWS, I, F)
    yield "narrow", rows.narrow, (*ROWS, I, I, F)
    yield "rope", rows.rope, (*ROWS, X, F, float32, I, I, F)
    yield "append", attention.append, (*ROWS, *ROWS, X, I, F, F, I)
    yield "advance", attention.advance, (X, I)
    yield "scores", attention.scores, (*ROWS, F, I, X, I, I, I, float32, F, I)
    yield "softmax", attention.softmax, (F, I, X, I, I, F)
    yield "mix", attention.mix, (F, I, F, I, X, I, I, I, I, F)
    yield "gather", attention.gather, (F, X, I, I, I, F)
