"""Q4_K on the card: nibbles, a scale and a minimum in a byte each per group of 32, two halves per eight groups
(quant/q4_k.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32
from numpy.typing import NDArray

from .....quant import q4_k
from ..machine.ptx import device, half, load, load2
from .nibbles import nibbles, pack_nibbles

FORMAT = q4_k.FORMAT
OFFSET = FORMAT.offset


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    b = blocks.view(FORMAT.struct)[:, 0]
    qs = b["qs"].reshape(-1, 4, 32)
    q = np.stack((qs & 15, qs >> 4), axis=2).reshape(-1, 32)
    return {"codes": pack_nibbles(q), "scales": pack_scales(b["scales"]), "halves": pack_halves(b)}


def pack_scales(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    scale, minimum = q4_k.unpack_scales(packed)
    return np.stack((scale, minimum), axis=2).view("<u2").reshape(-1)


def pack_halves(b: NDArray[np.void]) -> NDArray[np.uint16]:
    return np.stack((b["d"], b["dmin"]), axis=1).view(np.uint16).reshape(-1)


@device
def codes(codes, extra, i):
    return nibbles(codes, i)


@device
def scales(scales, halves, i):
    both, d = load(scales, i), load2(halves, i >> 3)
    s = half(d[0]) * float32(both & 255)
    return s, s, half(d[1]) * float32(both >> 8)
