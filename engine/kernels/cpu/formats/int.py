"""INT/bits/group/scales, packed: of each group the zero points and scales of 32 rows, then their codes, a word of each
row at a time (quant/int.py). Of 2, 3, 4, 5, 6 and 8 bits; in groups of no multiple of 32 columns as int_act.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numpy.typing import NDArray

from .....quant.codes import scales_of
from .....quant.tensor import format_of
from ..machine.kernel import helper
from ..machine.simd import high_bf16, high_half, load_f32, load_i16, load_i32, low_i16, splat_f32
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, CODES, ROUND, grouped
from . import int_act


@helper
def shared_f32(w):
    return load_f32(w + 64), load_i16(w)


@helper
def offset(both, scale):
    """-zero * scale, exactly."""
    return splat_f32(0.0) - low_i16(both) * scale


@helper
def shared_f16(w):
    both = load_i32(w)
    scale = high_half(both)
    return scale, offset(both, scale)


@helper
def shared_bf16(w):
    both = load_i32(w)
    scale = high_bf16(both)
    return scale, offset(both, scale)


SHARED = {"F32": (shared_f32, 192), "F16": (shared_f16, 128), "BF16": (shared_bf16, 128)}


@cache
def products(bits: str, scales: str) -> Products:
    (shared, header), product = SHARED[scales], int_act.VALUES[scales]
    code, rounded = CODES[bits], ROUND[scales]

    @helper
    def value(words, i, group):
        scale, other = group
        return rounded(product(code(words, i), scale, other))

    return grouped(__name__, f"{bits}_{scales}", shared, value, int(bits), header)


def FORM(bits: str, group: str, scales: str) -> Form | None:
    if bits not in CODES or int(group) % CHAIN:
        return int_act.FORM(bits, scales)
    half = scales == "F32"

    def takes(blocks: NDArray[Any]) -> bool:
        return int_act.fits(scales_of(blocks["scale"], scales), blocks["zero"], int(bits), scales)

    f = format_of(f"INT/{bits}/{group}/{scales}")
    return Form(f, half_at=0 if half else -1, words_at=2 * half, f32=products(bits, scales), takes=takes)
