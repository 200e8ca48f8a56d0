"""Q3_K: 16 groups of 16 values of 3 bits, each group with a scale of 6 bits.

C struct block_q3_K, 110 bytes: uint8 hmask[32]; uint8 qs[64]; uint8 scales[12]; half d. Each 32 bytes of qs hold the
lower two bits of 128 values, as in Q2_K; bit g of hmask[l] is set where value 32 g + l has its third. Of the scales,
bytes 0 to 7 hold the low nibbles of scales 0 to 7 below those of 8 to 15; bytes 8 to 11 hold the upper two bits of
scales i, i + 4, i + 8, i + 12, from the lowest up. value = (d * (scale - 32)) * (q - 4), with q of 3 bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
BLOCK = 256
SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]
BITS = np.arange(8, dtype=np.uint8)[:, None]


def unpack_scales(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, 12] -> the 16 scales of six bits, [n, 16]."""
    low, high = packed[:, :8], packed[:, None, 8:] >> SHIFTS & 3
    return np.concatenate((low & 15, low >> 4), axis=1) | high.reshape(-1, 16) << 4


def pack_scales(scales: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The other way."""
    low, high = scales & np.uint8(15), (scales >> np.uint8(4)).reshape(-1, 4, 4)
    return np.concatenate((low[:, :8] | low[:, 8:] << 4, np.bitwise_or.reduce(high << SHIFTS, axis=1)), axis=1)


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    scale = unpack_scales(b["scales"])
    scale = b["d"].astype(np.float32)[:, None] * (scale.view(np.int8) - np.int8(32))
    q = (b["qs"].reshape(-1, 2, 1, 32) >> SHIFTS & 3).reshape(-1, 8, 32)
    q |= (b["hmask"][:, None] >> BITS & 1) << 2
    y = (q.view(np.int8) - np.int8(4)).astype(np.float32).reshape(-1, 16, 16)
    y *= scale[..., None]
    return y.reshape(-1, BLOCK)


FORMAT = Format(
    "Q3_K",
    BLOCK,
    STRUCT,
    decode,
    group=16,
    scale="d",
    scales=("scales", unpack_scales, pack_scales),
    codes=("hmask", "qs"),
    levels=8,
    offset=4,
    high="hmask",
    activations="Q8_K",
    activations_int16="Q16_K",
)
