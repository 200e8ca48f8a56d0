"""Q2_K: 16 groups of 16 values of 2 bits, each group with a scale and a minimum of 4 bits.

C struct block_q2_K, 84 bytes: uint8 scales[16] (low nibble the scale, high nibble the minimum); uint8 qs[64]; half d;
half dmin. Each 32 bytes of qs hold 128 values: two bits each of values 0 to 31, 32 to 63, 64 to 95, 96 to 127, from the
lowest up. value = (d * scale) * q - dmin * min.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
BLOCK = 256
SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    scale = b["d"].astype(np.float32)[:, None] * (b["scales"] & 15)
    minimum = b["dmin"].astype(np.float32)[:, None] * (b["scales"] >> 4)
    q = b["qs"].reshape(-1, 2, 1, 32) >> SHIFTS & 3
    y = q.astype(np.float32).reshape(-1, 16, 16)
    y *= scale[..., None]
    y -= minimum[..., None]
    return y.reshape(-1, BLOCK)


FORMAT = Format(
    "Q2_K",
    BLOCK,
    STRUCT,
    decode,
    group=16,
    scale="d",
    minimum="dmin",
    codes=("qs",),
    levels=4,
    activations="Q8_K",
    activations_int16="Q16_K",
)
