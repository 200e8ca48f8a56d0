"""NF4/group/dtype, packed: of each group absmax of 32 rows, then their codes, a word of each row at a time
(quant/levels4.py). In groups of a multiple of 32 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from numpy.typing import NDArray

from .....quant.tensor import format_of
from ..machine.kernel import helper
from ..machine.simd import load_f32
from ..machine.tiles import table16_f32
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, ROUND_ALL, grouped, rounds

# quant/nf4.py's, said again: the digest of the compiled kernels knows only this backend's own files.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def levelled(module: str, kind: str, levels: Sequence[float]) -> Callable[[str, str], Form | None]:
    """FORM of a format of quant/levels4.py. kind: its name; module: that of the file that declares it."""
    look_up = table16_f32(levels)
    least = min(abs(level) for level in levels if level)

    @cache
    def products(dtype: str) -> Products:
        rounded = ROUND_ALL[dtype]

        @helper
        def value(words, i, absmax):
            return rounded(look_up(words, i ^ 1) * absmax)  # the first of two columns is the byte's high half

        return grouped(module, f"4_{dtype}", load_f32, value, 4, 128)

    def form(group: str, dtype: str) -> Form | None:
        if int(group) % CHAIN:
            return None

        def takes(blocks: NDArray[Any]) -> bool:
            return rounds(abs(blocks["absmax"]), least, 1.0, dtype)  # the largest level is 1

        return Form(format_of(f"{kind}/{group}/{dtype}"), half_at=-1, words_at=0, f32=products(dtype), takes=takes)

    return form


FORM = levelled(__name__, "NF4", LEVELS)
