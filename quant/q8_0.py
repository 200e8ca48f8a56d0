"""Q8_0: 32 values as signed bytes times one half. Also what ggml makes of the activations that meet 32-value weight blocks.

C struct block_q8_0, 34 bytes: half d; int8 qs[32]. value[j] = d * qs[j].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio, round_half_away

STRUCT = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
BLOCK, BYTES = 32, STRUCT.itemsize


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = b["qs"].astype(np.float32)
    y *= b["d"].astype(np.float32)[:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q8_0_ref: the values are scaled by the float32 step; only then is it rounded to half."""
    d = np.abs(values).max(axis=1) / 127
    b = np.empty(len(values), STRUCT)
    b["d"] = d
    b["qs"] = round_half_away(values * ratio(1, d)[:, None])
    return b.view(np.uint8).reshape(-1, BYTES)
