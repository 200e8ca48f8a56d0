"""Q8_K: 256 values as signed bytes times a float32. ggml makes it of the activations that meet K-quants; no file holds
it.

C struct block_q8_K, 292 bytes: float d; int8 qs[256]; int16 bsums[16], the sums of 16 bytes each. value[j] = d * qs[j].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio, signed_extreme
from .format import Format

STRUCT = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])
BLOCK = 256


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    b = blocks.view(STRUCT)[:, 0]
    y = b["qs"].astype(np.float32)
    y *= b["d"][:, None]
    return y


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The rule of ggml's quantize_row_q8_K, on every path: the first largest value becomes -127, ties to even."""
    scale = ratio(-127, signed_extreme(values))
    b = np.empty(len(values), STRUCT)
    b["d"] = ratio(1, scale)
    b["qs"] = np.minimum(np.rint(values * scale[:, None]), 127)
    b["bsums"] = b["qs"].reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
    return b.view(np.uint8).reshape(-1, STRUCT.itemsize)


FORMAT = Format("Q8_K", BLOCK, STRUCT, decode, encode, scale="d", codes=("qs",), levels=255)
