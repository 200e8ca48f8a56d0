"""F16: IEEE half precision, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds to nearest, ties to even; from 65520 up a value becomes infinite."""
    return values.astype("<f2").view(np.uint8)


FORMAT = Format("F16", 1, np.dtype("<f2"), decode, encode, activations="F16")
