"""INT/bits/group/scales, packed: of each group the zero points and scales of 32 rows, then their codes, a word of each
row at a time (quant/int.py). Of 4 and 8 bits, in groups of a multiple of 32 columns.
"""

from __future__ import annotations

from functools import cache

from .....quant.tensor import format_of
from ..machine.simd import high_bf16, high_half, load_f32, load_i16, load_i32, low_i16
from ..machine.team import helper
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, CODES, ROUND, grouped


@helper
def shared_f32(w):
    """What weights are q - zero times."""
    return load_i16(w), load_f32(w + 64)


@helper
def shared_f16(w):
    both = load_i32(w)
    return low_i16(both), high_half(both)


@helper
def shared_bf16(w):
    both = load_i32(w)
    return low_i16(both), high_bf16(both)


SHARED = {"F32": (shared_f32, 192), "F16": (shared_f16, 128), "BF16": (shared_bf16, 128)}


@cache
def products(bits: str, scales: str) -> Products:
    shared, header = SHARED[scales]
    code, round_ = CODES[bits], ROUND[scales]

    @helper
    def value(words, i, group):
        zero, scale = group
        return round_((code(words, i) - zero) * scale)

    return grouped(__name__, f"{bits}_{scales}", shared, value, int(bits), header)


def FORM(bits: str, group: str, scales: str) -> Form | None:
    if bits not in CODES or int(group) % CHAIN:
        return None
    half = scales == "F32"
    f = format_of(f"INT/{bits}/{group}/{scales}")
    return Form(f, half_at=0 if half else -1, words_at=2 * half, f32=products(bits, scales))
