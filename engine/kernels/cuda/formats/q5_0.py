"""Q5_0 on the card: nibbles, a word of fifth bits and a half per group of 32 (quant/q5_0.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint32
from numpy.typing import NDArray

from .....quant import q5_0
from ..machine.ptx import device, half, load
from .nibbles import nibbles, pack_nibbles, pack_upper

FORMAT = q5_0.FORMAT
OFFSET = FORMAT.offset
FIFTH = uint32(0x10101010)
S1, S2, S3, S4 = uint32(1), uint32(2), uint32(3), uint32(4)


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    b = blocks.view(FORMAT.struct)[:, 0]
    q = np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)
    q |= np.unpackbits(b["qh"], axis=1, bitorder="little") << 4
    return {"codes": pack_nibbles(q), "extra": pack_upper(q, 1), "halves": b["d"].view(np.uint16)}


@device
def codes(codes, extra, i):
    return with_fifth(nibbles(codes, i), load(extra, i))


@device
def with_fifth(q, e):
    """Eight words of nibbles, and bit j of each byte of e on top of the nibble of word j."""
    return (
        q[0] | ((e << S4) & FIFTH),
        q[1] | ((e << S3) & FIFTH),
        q[2] | ((e << S2) & FIFTH),
        q[3] | ((e << S1) & FIFTH),
        q[4] | (e & FIFTH),
        q[5] | ((e >> S1) & FIFTH),
        q[6] | ((e >> S2) & FIFTH),
        q[7] | ((e >> S3) & FIFTH),
    )


@device
def scales(scales, halves, i):
    d = half(load(halves, i))
    return d, d, d
