"""Keys and values on the card, with the position in a word of the card's memory, where a recorded step finds it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ....errors import BadInput
from ...config import Config
from . import attention
from .memory import Rows, allocate, launch, require_room


class Positions(NamedTuple):
    """T positions from start[0] on; S: the row length of scores, at least the positions so far."""

    start: Any
    T: int
    S: int


class Side(NamedTuple):
    """The keys, or the values, of a layer: [capacity, K, H] from element `at` of the array."""

    data: Any
    at: int
    K: int
    H: int


class KVCache:
    """[layers, capacity, K, H] each. Raises BadInput if the card has no room for it.

    roomy: scores get rows of the whole capacity, as a step needs that is recorded once for all positions.
    """

    def __init__(self, c: Config, capacity: int) -> None:
        self.K, self.H = c.num_key_value_heads, c.head_dim
        self.layer_size = capacity * self.K * self.H
        size = c.num_hidden_layers * self.layer_size
        require_room(8 * size, f"a cache of {capacity} positions", "ask for fewer tokens, or take --backend cpu")
        self.k, self.v = allocate(size), allocate(size)
        self.start = cuda.to_device(np.zeros(1, np.int32))
        self.length, self.capacity, self.roomy = 0, capacity, False

    def positions(self, count: int) -> Positions:
        if self.length + count > self.capacity:
            raise BadInput(f"{self.length + count} positions do not fit a cache of {self.capacity}")
        return Positions(self.start, count, self.capacity if self.roomy else self.length + count)

    def append(self, layer: int, k_TKH: Rows, v_TKH: Rows) -> tuple[Side, Side]:
        self.positions(len(k_TKH))
        at, width = layer * self.layer_size, self.K * self.H
        into = (self.start, width, self.k, self.v, at)
        launch(attention.append, len(k_TKH), min(256, width), *k_TKH.where, *v_TKH.where, *into)
        return Side(self.k, at, self.K, self.H), Side(self.v, at, self.K, self.H)

    def advance(self, count: int) -> None:
        launch(attention.advance, 1, 1, self.start, count)
        self.length += count
