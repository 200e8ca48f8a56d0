"""Formats whose decoder this package does not own: those over searched grids and the rare ones go through gguf-py's.

gguf-py takes long to import, so that waits for the first block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format


def borrowed(name: str, block: int, size: int, activations: str) -> Format:
    """ggml's type of that name: `block` values in `size` bytes, decoded by gguf-py."""

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not len(blocks):  # gguf-py cannot reshape nothing
            return np.empty((0, block), np.float32)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        values: NDArray[np.float32] = dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType[name])
        return values

    wide = "Q16_K" if activations == "Q8_K" else "F32"
    return Format(name, block, np.dtype((np.void, size)), decode, activations=activations, activations_int16=wide)
