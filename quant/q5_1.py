"""Q5_1: 32 values of 5 bits, times one half, plus another.

C struct block_q5_1, 24 bytes: half d; half m; uint8 qh[4]; uint8 qs[16]. The low nibbles of qs are values 0 to 15, the
high ones 16 to 31; bit j of qh (little-endian) is the fifth bit of value j. value[j] = d * q[j] + m.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio
from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    q = np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)
    q |= np.unpackbits(b["qh"], axis=1, bitorder="little") << 4
    y = q.astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    y += b["m"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q5_1_ref: the smallest value becomes 0, the largest 31."""
    m = values.min(axis=1)
    d = (values.max(axis=1) - m) / 31
    q = np.minimum(np.trunc((values - m[:, None]) * ratio(1, d)[:, None] + np.float32(0.5)), 31).astype(np.uint8)
    b = np.empty(len(values), STRUCT)
    b["d"], b["m"] = d, m
    b["qh"] = np.packbits(q >> 4, axis=1, bitorder="little")
    b["qs"] = q[:, :16] & 15 | q[:, 16:] << 4
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q5_1",
    BLOCK,
    STRUCT,
    decode,
    encode,
    scale="d",
    minimum="m",
    codes=("qh", "qs"),
    levels=32,
    nibbles=("qs", 32),
    high="qh",
    activations="Q8_1",
    activations_int16="Q16_0",
)
