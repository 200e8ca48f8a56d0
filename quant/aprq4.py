"""AprQ4, aprender's own 4-bit format: 32 values share an f16 scale; neighbours share a byte, the even one the low half.

Source: paiml/aprender, apr-format (dtype 128, formerly 8). Not ggml's Q4_0, whose byte i holds values i and i + 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
BLOCK = 32


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(nibble - 8) * scale; a scale that is subnormal, infinite or NaN counts as 0, as aprender's reader has it."""
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    usable = np.isfinite(scale) & (np.abs(scale) >= np.finfo(np.float16).smallest_normal)
    codes = np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=-1).reshape(-1, BLOCK)
    return (codes.astype(np.float32) - np.float32(8)) * np.where(usable, scale, np.float32(0))


FORMAT = Format("APRQ4", BLOCK, STRUCT, decode, scale="d", codes=("qs",), levels=16, offset=8)
