"""Q4_0: 32 values of 4 bits round a zero at 8, times one half.

C struct block_q4_0, 18 bytes: half d; uint8 qs[16]. The low nibbles are values 0 to 15, the high ones 16 to 31.
value[j] = d * (q[j] - 8).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio, signed_extreme
from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    q = np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1).view(np.int8)
    y = (q - np.int8(8)).astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q4_0_ref: the first value of the largest size becomes -8."""
    d = signed_extreme(values) / np.float32(-8)
    q = np.minimum(np.trunc(values * ratio(1, d)[:, None] + np.float32(8.5)), 15).astype(np.uint8)
    b = np.empty(len(values), STRUCT)
    b["d"] = d
    b["qs"] = q[:, :16] | q[:, 16:] << 4
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format(
    "Q4_0",
    BLOCK,
    STRUCT,
    decode,
    encode,
    scale="d",
    codes=("qs",),
    levels=16,
    offset=8,
    nibbles=("qs", 32),
    activations="Q8_0",
    activations_int16="Q16_0",
)
