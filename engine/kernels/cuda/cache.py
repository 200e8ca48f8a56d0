"""Keys and values on the card, with the position in a word of the card's memory, where a recorded step finds it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ....errors import BadInput
from ...config import Config
from .machine.memory import Queue, require_room


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
    """[layers, capacity, K, H] each. Raises BadInput if the card has no room for it."""

    def __init__(self, c: Config, capacity: int, queue: Queue) -> None:
        self.K, self.H = c.num_key_value_heads, c.head_dim
        self.layer_size = capacity * self.K * self.H
        size = c.num_hidden_layers * self.layer_size
        require_room(8 * size, f"a cache of {capacity} positions", "ask for fewer tokens, or take --backend cpu")
        self.k, self.v = queue.allocate(size), queue.allocate(size)
        self.start = cuda.to_device(np.zeros(1, np.int32))
        self.length, self.capacity = 0, capacity

    def positions(self, count: int, roomy: bool = False) -> Positions:
        """roomy: scores get rows of the whole capacity, as a step needs that is recorded once for all positions."""
        if self.length + count > self.capacity:
            raise BadInput(f"{self.length + count} positions do not fit a cache of {self.capacity}")
        return Positions(self.start, count, self.capacity if roomy else self.length + count)

    def sides(self, layer: int) -> tuple[Side, Side]:
        """Keys and values of a layer."""
        at = layer * self.layer_size
        return Side(self.k, at, self.K, self.H), Side(self.v, at, self.K, self.H)
