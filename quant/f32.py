"""F32: IEEE single precision, little-endian."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view("<f4")


def encode(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, "<f4").view(np.uint8)


FORMAT = Format("F32", 1, np.dtype("<f4"), decode, encode)
