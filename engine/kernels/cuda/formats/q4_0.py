"""Q4_0 on the card: nibbles and a half per group of 32 (quant/q4_0.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant import q4_0
from ..machine.ptx import device, half, load
from .nibbles import nibbles, pack_nibbles

FORMAT = q4_0.FORMAT
OFFSET = FORMAT.offset


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    b = blocks.view(FORMAT.struct)[:, 0]
    q = np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)
    return {"codes": pack_nibbles(q), "halves": b["d"].view(np.uint16)}


@device
def codes(codes, extra, i):
    return nibbles(codes, i)


@device
def scales(scales, halves, i):
    d = half(load(halves, i))
    return d, d, d
