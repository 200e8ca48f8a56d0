"""Q5_0: 32 values of 5 bits round a zero at 16, times one half.

C struct block_q5_0, 22 bytes: half d; uint8 qh[4]; uint8 qs[16]. The low nibbles of qs are values 0 to 15, the high
ones 16 to 31; bit j of qh (little-endian) is the fifth bit of value j. value[j] = d * (q[j] - 16).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio, signed_extreme
from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    q = np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)
    q |= np.unpackbits(b["qh"], axis=1, bitorder="little") << 4
    y = (q.view(np.int8) - np.int8(16)).astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q5_0_ref: the first value of the largest size becomes -16."""
    d = signed_extreme(values) / np.float32(-16)
    q = np.minimum(np.trunc(values * ratio(1, d)[:, None] + np.float32(16.5)), 31).astype(np.uint8)
    b = np.empty(len(values), STRUCT)
    b["d"] = d
    b["qh"] = np.packbits(q >> 4, axis=1, bitorder="little")
    b["qs"] = q[:, :16] & 15 | q[:, 16:] << 4
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q5_0",
    BLOCK,
    STRUCT,
    decode,
    encode,
    scale="d",
    codes=("qh", "qs"),
    levels=32,
    offset=16,
    nibbles=("qs", 32),
    high="qh",
    activations="Q8_0",
    activations_int16="Q16_0",
)
