"""DoRA (Liu et al. 2024): how long the rows of a matrix are once LoRA's product is added, which decides what they are
multiplied with to be as long as was trained. PEFT has an embedding's columns for rows (tuners/lora/dora.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..quant.tensor import QTensor, dequantize, row_slabs
from .weights import Dora

Array = NDArray[np.float64]


def dora_of(w: QTensor, down: QTensor, up: QTensor, magnitude: Array, by_column: bool) -> Dora:
    """Of a matrix [O, I] with down [r, I] and up [O, r]; magnitude [O], or, by column, [I]. In float64."""
    down_RI, up_OR = (dequantize(half).astype(np.float64) for half in (down, up))
    if by_column:
        own_I, both_RI = np.zeros(w.shape[1]), np.zeros(down_RI.shape)
        for start, stop in row_slabs(w):
            slab = dequantize(w, start, stop).astype(np.float64)
            own_I += np.square(slab).sum(0)
            both_RI += up_OR[start:stop].T @ slab
        return Dora(magnitude, np.stack([own_I, (both_RI * down_RI).sum(0), _squares(down_RI.T, up_OR.T)]))
    own, both = [], []
    for start, stop in row_slabs(w):
        slab = dequantize(w, start, stop).astype(np.float64)
        own.append(np.square(slab).sum(1))
        both.append(((slab @ down_RI.T) * up_OR[start:stop]).sum(1))
    return Dora(magnitude, np.stack([np.concatenate(own), np.concatenate(both), _squares(up_OR, down_RI)]))


def _squares(a_OR: Array, b_RI: Array) -> Array:
    """[O]: the squares of each row of a b, summed."""
    return np.asarray(((a_OR @ (b_RI @ b_RI.T)) * a_OR).sum(1))
