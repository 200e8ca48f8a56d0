"""F32: IEEE single precision, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK, BYTES = 1, 4


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f4")


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)
