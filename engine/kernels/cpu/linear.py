"""Products of a few rows of activations with stacked matrices: which kernels, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....quant.tensor import QTensor
from . import product
from .packed import Packed, pack
from .simd import LANES
from .team import BARRIER, at, rows_of, run_now, share


@dataclass(frozen=True, slots=True)
class Stack:
    """Packed matrices of one input width K, whose rows follow one another."""

    parts: tuple[Packed, ...]
    rows: int
    K: int


def stack(parts: Sequence[QTensor], precision: str) -> Stack:
    """Matrices [O, K] of one K, packed."""
    packed = tuple(pack(p) for p in parts)
    return Stack(packed, sum(p.rows for p in packed), packed[0].K)


def linear(x_TI: NDArray[np.float32], w: Stack) -> NDArray[np.float32]:
    """x W^T, [T, O]: x is laid out for the kernels, then all parts are computed side by side."""
    T, K = x_TI.shape
    tile = product.TILE if T > 1 else 1
    tiles = -(-T // tile)
    x = np.empty((tiles, K, tile), np.float32)
    sums = np.empty((tiles, K // 32, tile), np.float32)
    y = np.empty((tiles * tile, w.rows), np.float32)
    jobs = [product.lay_out.job(tiles, share(tiles), *rows_of(x_TI), T, K, tile, at(x), at(sums))]
    start = 0
    for p in w.parts:
        blocks = -(-p.rows // LANES)
        arguments = (at(p.data), p.size, at(x), at(sums), at(y) + 4 * start, y.strides[0], p.rows, K, tiles)
        jobs.append(p.form.F32[T > 1].job(blocks, share(blocks), *arguments, barrier=False))
        start += p.rows
    jobs[-1][BARRIER] = True
    run_now(*jobs)
    return y[:T]
