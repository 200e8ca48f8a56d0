"""MXFP4: 32 values as 4-bit floats (E2M1) times one power of two (E8M0), of the OCP Microscaling Formats specification
1.0.

C struct block_mxfp4, 17 bytes: uint8 e; uint8 qs[16]. The low nibbles are values 0 to 15, the high ones 16 to 31.
value[j] = 2^(e - 128) * LEVELS[q[j]]: the levels are doubled to whole numbers, the power halved. No e stands for NaN,
as ggml reads it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("e", "u1"), ("qs", "u1", 16)])
BLOCK = 32
LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
POWERS = np.ldexp(np.float32(1), np.arange(256) - 128)


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = LEVELS[np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)]
    y *= POWERS[b["e"]][:, None]
    return y


FORMAT = Format(
    "MXFP4",
    BLOCK,
    STRUCT,
    decode,
    scale="e",
    codes=("qs",),
    nibbles=("qs", 32),
    activations="Q8_0",
    activations_int16="Q16_0",
)
