"""F8_E4M3/group/scales, packed: of each group the scales of 32 rows, then their codes, a word of each row at a time
(quant/float8.py). In groups of a multiple of 32 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numpy.typing import NDArray

from .....quant.tensor import format_of
from ..machine.kernel import helper
from ..machine.simd import load_f32
from ..machine.tiles import float8
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, ROUND_ALL, grouped, rounds


def scaled(module: str, kind: str, mantissa: int, last: int) -> Callable[[str, str], Form | None]:
    """FORM of a format of quant/float8.py. kind: its name; module: that of the file that declares it; mantissa: its
    bits; last: the largest code of a finite number.
    """
    level = float8(mantissa)
    bias = (1 << (6 - mantissa)) - 1
    least = 2.0 ** (1 - bias - mantissa)
    most = 2.0 ** ((last >> mantissa) - bias) * (1 + last % (1 << mantissa) / (1 << mantissa))

    @cache
    def products(scales: str) -> Products:
        rounded = ROUND_ALL[scales]

        @helper
        def value(words, i, scale):
            return rounded(level(words, i) * scale)

        return grouped(module, f"8_{scales}", load_f32, value, 8, 128)

    def form(group: str, scales: str) -> Form | None:
        if int(group) % CHAIN:
            return None

        def takes(blocks: NDArray[Any]) -> bool:
            return rounds(abs(blocks["scale"]), least, most, scales) and bool((blocks["qs"] & 127 <= last).all())

        f = format_of(f"{kind}/{group}/{scales}")
        return Form(f, half_at=-1, words_at=0, f32=products(scales), takes=takes)

    return form


FORM = scaled(__name__, "F8_E4M3", 3, 126)
