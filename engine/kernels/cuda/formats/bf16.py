"""BF16 on the card: the upper halves of float32, two to a word (quant/bf16.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint32
from numpy.typing import NDArray

from .....quant import bf16
from ..machine.ptx import device, float_of, load4

FORMAT = bf16.FORMAT
HIGH, S16 = uint32(0xFFFF0000), uint32(16)


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return {"codes": blocks.view("<u4").reshape(-1)}


@device
def four(a, b):
    return float_of(a << S16), float_of(a & HIGH), float_of(b << S16), float_of(b & HIGH)


@device
def values(codes, i):
    """Group i's values: eight times four."""
    a, b, c, d = load4(codes, 4 * i), load4(codes, 4 * i + 1), load4(codes, 4 * i + 2), load4(codes, 4 * i + 3)
    return (
        four(a[0], a[1]),
        four(a[2], a[3]),
        four(b[0], b[1]),
        four(b[2], b[3]),
        four(c[0], c[1]),
        four(c[2], c[3]),
        four(d[0], d[1]),
        four(d[2], d[3]),
    )
