"""IQ4_NL: 32 values of 4 bits that look up 16 unevenly spaced levels, times one half.

C struct block_iq4_nl, 18 bytes: half d; uint8 qs[16]. The low nibbles are values 0 to 15, the high ones 16 to 31.
value[j] = d * LEVELS[q[j]].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
BLOCK = 32
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = LEVELS[np.concatenate((b["qs"] & 15, b["qs"] >> 4), axis=1)]
    y *= b["d"].astype(np.float32)[:, None]
    return y


FORMAT = Format(
    "IQ4_NL",
    BLOCK,
    STRUCT,
    decode,
    scale="d",
    codes=("qs",),
    levels=16,
    nibbles=("qs", 32),
    activations="Q8_0",
    activations_int16="Q16_0",
)
