"""F16 on the card: halves, two to a word (quant/f16.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint16, uint32
from numpy.typing import NDArray

from .....quant import f16
from ..machine.ptx import device, half, load4

FORMAT = f16.FORMAT
LOW, S16 = uint32(0xFFFF), uint32(16)


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return {"codes": blocks.view("<u4").reshape(-1)}


@device
def four(a, b):
    return half(uint16(a & LOW)), half(uint16(a >> S16)), half(uint16(b & LOW)), half(uint16(b >> S16))


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
