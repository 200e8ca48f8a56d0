"""Q6_K: 16 groups of 16 values of 6 bits round a zero at 32, each group with a signed scale of 8 bits.

C struct block_q6_K, 210 bytes: uint8 ql[128]; uint8 qh[64]; int8 scales[16]; half d. Each 64 bytes of ql and 32 of qh
hold 128 values: values 0 to 63 have their lower four bits in the low nibbles of ql, 64 to 127 in the high ones; the
upper two bits of values l, l + 32, l + 64, l + 96 are in qh[l], from the lowest up. value = (d * scale) * (q - 32).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import linear_groups
from .format import Format

STRUCT = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
BLOCK = 256
SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    ql = b["ql"].reshape(-1, 2, 64)
    q = np.stack((ql & 15, ql >> 4), axis=2).reshape(-1, 2, 4, 32)
    q |= (b["qh"].reshape(-1, 2, 1, 32) >> SHIFTS & 3) << 4
    y = (q.view(np.int8) - np.int8(32)).astype(np.float32).reshape(-1, 16, 16)
    y *= (b["d"].astype(np.float32)[:, None] * b["scales"])[..., None]
    return y.reshape(-1, BLOCK)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    b = np.empty(len(values), STRUCT)
    b["d"], b["scales"], signed = linear_groups(values)
    q = (signed + np.int8(32)).view(np.uint8).reshape(-1, 2, 4, 32)
    b["ql"] = (q[:, :, :2] & 15 | q[:, :, 2:] << 4).reshape(-1, 128)
    b["qh"] = np.bitwise_or.reduce(q >> 4 << SHIFTS, axis=2).reshape(-1, 64)
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q6_K",
    BLOCK,
    STRUCT,
    decode,
    encode,
    group=16,
    scale="d",
    codes=("ql", "qh"),
    levels=64,
    offset=32,
    nibbles=("ql", 128),
    high="qh",
    activations="Q8_K",
    activations_int16="Q16_K",
)
