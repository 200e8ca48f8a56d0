"""Decoders that this package does not own: the formats over searched grids and the rare ones go through gguf-py's.

gguf-py takes long to import, so that waits for the first block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .ggml import NUMBERS, TYPES


def decoder(name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """gguf-py's decoder of ggml's type of that name, behind this package's interface."""

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(blocks):  # gguf-py cannot reshape nothing
            return np.empty((0, TYPES[NUMBERS[name]].block), np.float32)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        values: NDArray[np.float32] = dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType[name])
        return values

    return decode
