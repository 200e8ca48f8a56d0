"""BF16: the upper half of a float32, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds to nearest, ties to even. A NaN keeps its sign and upper payload and is made quiet, as ggml does it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper = bits >> 16
    rounded = (bits + (upper & 1) + 0x7FFF) >> 16  # wraps only for NaNs, which are not taken from here
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, upper | 0x40, rounded).astype("<u2").view(np.uint8)


FORMAT = Format("BF16", 1, np.dtype("<u2"), decode, encode, activations="BF16")
