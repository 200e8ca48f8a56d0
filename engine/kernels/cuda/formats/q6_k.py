"""Q6_K on the card: nibbles, two words of upper bits and two signed scales in a byte each per group of 32, a half per
eight groups (quant/q6_k.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, uint32
from numpy.typing import NDArray

from .....quant import q6_k
from ..machine.ptx import device, half, load, load2
from .nibbles import nibbles, pack_nibbles, pack_upper

FORMAT = q6_k.FORMAT
OFFSET = FORMAT.offset
UPPER = uint32(0x30303030)
S2, S4 = uint32(2), uint32(4)


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    b = blocks.view(FORMAT.struct)[:, 0]
    ql = b["ql"].reshape(-1, 2, 64)
    q = np.stack((ql & 15, ql >> 4), axis=2).reshape(-1, 2, 4, 32)
    q |= (b["qh"].reshape(-1, 2, 1, 32) >> q6_k.SHIFTS & 3) << 4
    groups = q.reshape(-1, 32)
    return {
        "codes": pack_nibbles(groups),
        "extra": pack_upper(groups, 2),
        "scales": np.ascontiguousarray(b["scales"]).view("<u2").reshape(-1),
        "halves": np.ascontiguousarray(b["d"]).view(np.uint16),
    }


@device
def codes(codes, extra, i):
    q, upper = nibbles(codes, i), load2(extra, i)
    a, b = upper
    return (
        q[0] | ((a << S4) & UPPER),
        q[1] | ((a << S2) & UPPER),
        q[2] | (a & UPPER),
        q[3] | ((a >> S2) & UPPER),
        q[4] | ((b << S4) & UPPER),
        q[5] | ((b << S2) & UPPER),
        q[6] | (b & UPPER),
        q[7] | ((b >> S2) & UPPER),
    )


@device
def scales(scales, halves, i):
    both, d = int32(load(scales, i)), half(load(halves, i >> 3))
    first, second = ((both & 255) ^ 128) - 128, ((both >> 8) ^ 128) - 128
    return d * float32(first), d * float32(second), d
