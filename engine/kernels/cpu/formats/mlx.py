"""MLX/bits/group/scales, packed: of each group the scales and biases of 32 rows, then their codes, a word of each row
at a time (quant/mlx.py). Of 2, 3, 4, 5, 6 and 8 bits, in groups of a multiple of 32 columns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant.codes import scales_of
from .....quant.tensor import format_of
from ..machine.kernel import helper
from ..machine.simd import high_bf16, high_half, load_f32, load_i32, low_bf16, low_half
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, CODES, LARGEST, ROUND, grouped


@helper
def shared_f32(w):
    return load_f32(w), load_f32(w + 128)


@helper
def shared_f16(w):
    both = load_i32(w)
    return low_half(both), high_half(both)


@helper
def shared_bf16(w):
    both = load_i32(w)
    return low_bf16(both), high_bf16(both)


SHARED = {"F32": (shared_f32, 256), "F16": (shared_f16, 128), "BF16": (shared_bf16, 128)}


@cache
def products(bits: str, scales: str) -> Products:
    shared, header = SHARED[scales]
    code, round_ = CODES[bits], ROUND[scales]

    @helper
    def value(words, i, group):
        scale, bias = group
        return round_(round_(code(words, i) * scale) + bias)

    return grouped(__name__, f"{bits}_{scales}", shared, value, int(bits), header)


def FORM(bits: str, group: str, scales: str) -> Form | None:
    if bits not in CODES or int(group) % CHAIN:
        return None

    def takes(blocks: NDArray[Any]) -> bool:
        scale, bias = (abs(scales_of(blocks[field], scales).astype(np.float64)) for field in ("scale", "bias"))
        return bool((scale * (1 << int(bits)) + bias <= LARGEST[scales]).all())

    f = format_of(f"MLX/{bits}/{group}/{scales}")
    return Form(f, half_at=-1, words_at=0, f32=products(bits, scales), takes=takes)
