"""AprQ8, aprender's own 8-bit format: one f32 scale for a whole tensor, then a signed byte for each value.

Source: paiml/aprender, apr-format (dtype 129, formerly 9). So that any row can be decoded by itself, a reader lays the
tensor out in blocks of 32 values, each with the tensor's scale before it; rows are padded to whole blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .format import Format

STRUCT = np.dtype([("d", "<f4"), ("qs", "i1", 32)])
BLOCK = 32


def pack(data: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """A tensor's bytes as the file has them, scale first, as blocks: uint8, 1-D. width: values in a row."""
    rows, per_row = (data.size - 4) // width, -(-width // BLOCK)
    blocks = np.zeros((rows, per_row * BLOCK), np.uint8)
    blocks[:, :width] = data[4:].reshape(rows, width)
    scale = np.broadcast_to(data[:4], (rows * per_row, 4))
    return np.concatenate([scale, blocks.reshape(-1, BLOCK)], axis=1).reshape(-1)


def unpack(blocks: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The inverse of pack."""
    per_row = -(-width // BLOCK)
    values = blocks.reshape(-1, STRUCT.itemsize)[:, 4:].reshape(-1, per_row * BLOCK)[:, :width]
    return np.concatenate([blocks[:4], values.reshape(-1)])


def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    scale = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    return np.ascontiguousarray(blocks[:, 4:]).view(np.int8).astype(np.float32) * scale


# No levels: as the scale is the whole tensor's, no group need span them.
FORMAT = Format("APRQ8", BLOCK, STRUCT, decode, scale="d", codes=("qs",))
