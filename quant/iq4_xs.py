"""IQ4_XS: 8 groups of 32 values at IQ4_NL's levels, each group with a scale of 6 bits.

C struct block_iq4_xs, 136 bytes: half d; uint16 scales_h; uint8 scales_l[4]; uint8 qs[128]. Scale g has its lower four
bits in nibble g of scales_l (low nibble first) and its upper two in bits 2 g of scales_h. Group g has bytes 16 g to 16
g + 15 of qs: the low nibbles are its values 0 to 15, the high ones 16 to 31. value = (d * (scale - 32)) * LEVELS[q].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format
from .iq4_nl import LEVELS

STRUCT = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])
BLOCK = 256


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    low = np.stack((b["scales_l"] & 15, b["scales_l"] >> 4), axis=2).reshape(-1, 8)
    high = (b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    scale = b["d"].astype(np.float32)[:, None] * ((low | high << 4).view(np.int8) - np.int8(32))
    qs = b["qs"].reshape(-1, 8, 16)
    y = LEVELS[np.concatenate((qs & 15, qs >> 4), axis=2)]
    y *= scale[..., None]
    return y.reshape(-1, BLOCK)


FORMAT = Format(
    "IQ4_XS",
    BLOCK,
    STRUCT,
    decode,
    group=32,
    scale="d",
    codes=("qs",),
    levels=16,
    nibbles=("qs", 32),
    activations="Q8_K",
    activations_int16="Q16_K",
)
