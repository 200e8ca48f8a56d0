"""Floats of 8 bits (Micikevicius et al. 2022, FP8 Formats for Deep Learning), times a float32 for each group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codes import check_size, rounded
from .format import Format

Values = NDArray[np.float32]


def finite_levels(exponent: int, mantissa: int) -> Values:
    """What the 256 codes stand for, if every exponent stood for finite numbers: sign, exponent, mantissa."""
    code = np.arange(256)
    e, m = code >> mantissa & (1 << exponent) - 1, code & (1 << mantissa) - 1
    bias = (1 << exponent - 1) - 1
    size = np.where(e > 0, np.ldexp(1 + m / 2**mantissa, e - bias), np.ldexp(m / 2**mantissa, 1 - bias))
    return np.copysign(size, np.where(code < 128, 1.0, -1.0)).astype(np.float32)


def scaled(kind: str, levels: Values, group: int, scales: str) -> Format:
    """KIND/group/scales. value[j] = scale * levels[q[j]], rounded to the type that the file's scales have, as
    compressed-tensors' dequantize and Transformers' Fp8Dequantize compute it."""
    name = f"{kind}/{group}/{scales}"
    check_size(name, group, 8, scales)
    block = np.dtype([("scale", "<f4"), ("qs", "u1", group)])

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        b = np.ascontiguousarray(blocks).view(block)[:, 0]
        return rounded(levels[b["qs"]] * b["scale"][:, None], scales)

    return Format(name, group, block, decode, scale="scale", codes=("qs",))
