"""The card's memory: arrays of rows on it, buffers that are used again, and where launches go.

Buffers come from an arena and return to it when their last array is gone: all launches are in one order, so the next
user of a buffer comes after the last. A recorded step has an arena of its own, which nothing else writes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numba import config, cuda
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from .....errors import BadInput
from .ptx import SIMULATED

config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined]  # a decode step's small grids are as they should be
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class Arena:
    """Free buffers of float32 by their number of elements."""

    def __init__(self) -> None:
        self.free: dict[int, list[Any]] = defaultdict(list)


def blocks(count: int, per: int) -> int:
    """Blocks of a grid for so many things."""
    return -(-count // per)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def room() -> tuple[float, float]:
    """(free, all) bytes of the card; without end in the simulator."""
    context = cuda.current_context()
    if not SIMULATED:
        context.memory_manager.deallocations.clear()  # Numba frees late, and counts what it has not freed as taken
    info = context.get_memory_info()
    return info[0], info[1]


def require_room(size: int, what: str, way_out: str) -> None:
    """Raises BadInput that says what is missing, unless `size` bytes are free."""
    free, whole = room()
    if size > free:
        raise BadInput(
            f"{what} needs {gigabytes(size)} on the card, which has {gigabytes(free)} free of {gigabytes(whole)}; "
            f"{way_out}"
        )


class Buffer:
    """Memory on the card, which returns to its arena when nobody has it any more."""

    __slots__ = ("arena", "data")

    def __init__(self, arena: Arena, data: Any) -> None:
        self.arena, self.data = arena, data

    def __del__(self) -> None:
        self.arena.free[self.data.size].append(self.data)


class Rows:
    """float32 [T, ...] on the card: row t is contiguous and starts at element at + t row of its buffer.

    host: the host's memory for to_host, if it has one that is kept (pinned, a copy takes a third of the time).
    """

    __slots__ = ("at", "buffer", "host", "row", "shape")

    def __init__(self, shape: tuple[int, ...], buffer: Buffer, at: int = 0, row: int | None = None) -> None:
        self.shape, self.buffer, self.at, self.host = shape, buffer, at, None
        self.row = prod(shape[1:]) if row is None else row

    @property
    def data(self) -> Any:
        return self.buffer.data

    @property
    def where(self) -> tuple[Any, int, int]:
        """What a kernel takes: (data, at, row)."""
        return self.buffer.data, self.at, self.row

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> Rows:
        """The same rows in another shape of the same size."""
        if shape[0] != len(self) or prod(shape) != prod(self.shape):
            raise ValueError(f"{self.shape} cannot be read as {shape}")
        return Rows(shape, self.buffer, self.at, self.row)

    def __getitem__(self, key: Any) -> Rows:
        """One row, some rows, or columns of all rows."""
        if isinstance(key, tuple):
            every, columns = key
            if every != slice(None) or len(self.shape) != 2:
                raise IndexError(f"{key} of {self.shape}")
            first, last, _ = columns.indices(self.shape[1])
            return Rows((len(self), last - first), self.buffer, self.at + first, self.row)
        if isinstance(key, slice):
            first, last, _ = key.indices(len(self))
            return Rows((last - first, *self.shape[1:]), self.buffer, self.at + first * self.row, self.row)
        return Rows(self.shape[1:], self.buffer, self.at + range(len(self))[key] * self.row)

    def to_host(self) -> NDArray[np.float32]:
        """A copy in the host's memory, in `host` if it has that."""
        width = prod(self.shape[1:])
        end = self.at + (len(self) - 1) * self.row + width
        flat = self.buffer.data[self.at : end].copy_to_host(self.host)
        rows = as_strided(flat, (len(self), width), (4 * self.row, 4))
        return np.ascontiguousarray(rows).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a model's launches go and its buffers come from: a recording has another stream, and another arena."""

    arena: Arena = field(default_factory=Arena)
    stream: Any = 0

    def launch(self, kernel: Any, grid: Any, block: Any, *arguments: Any) -> None:
        kernel[grid, block, self.stream](*arguments)

    def allocate(self, count: int, kind: Any = np.float32) -> Any:
        """A flat array on the card, not cleared. Raises BadInput if the card has no room for it."""
        try:
            return cuda.device_array(count, kind)
        except Exception as error:
            if getattr(error, "code", None) != OUT_OF_MEMORY:
                raise
        if not self.stream:  # what is recorded may hold buffers that nothing else does
            self.arena.free.clear()
        size = count * np.dtype(kind).itemsize
        require_room(size, "the forward pass", "give a shorter prompt or --backend cpu")
        try:
            return cuda.device_array(count, kind)
        except Exception as error:
            if getattr(error, "code", None) != OUT_OF_MEMORY:
                raise
            raise BadInput(f"the card's memory is in pieces; {gigabytes(size)} at a time do not fit") from None

    def buffer(self, count: int) -> Buffer:
        """At least so many elements, which hold anything."""
        step = 1 << max(8, count.bit_length() - 3)  # sizes an eighth to a quarter apart, so that few kinds are kept
        count = -(-count // step) * step
        spare = self.arena.free[count]
        return Buffer(self.arena, spare.pop() if spare else self.allocate(count))

    def rows(self, *shape: int) -> Rows:
        """Rows for a kernel to write."""
        return Rows(shape, self.buffer(prod(shape)))
