"""Q8_0 on the card: bytes, shifted up by 128 to be unsigned, and a half per group of 32 (quant/q8_0.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant import q8_0
from ..machine.ptx import device, half, load, load4

FORMAT = q8_0.FORMAT
OFFSET = 128


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    b = blocks.view(FORMAT.struct)[:, 0]
    q = b["qs"].view(np.uint8) ^ np.uint8(128)
    return {"codes": q.view("<u4").reshape(-1), "halves": b["d"].view(np.uint16)}


@device
def codes(codes, extra, i):
    a, b = load4(codes, 2 * i), load4(codes, 2 * i + 1)
    return a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]


@device
def scales(scales, halves, i):
    d = half(load(halves, i))
    return d, d, d
