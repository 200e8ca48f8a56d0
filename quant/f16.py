"""F16: IEEE half precision, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK, BYTES = 1, 2


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rounds to nearest, ties to even; from 65520 up a value becomes infinite."""
    return values.astype("<f2").view(np.uint8)
