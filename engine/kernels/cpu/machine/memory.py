"""Memory for packed weights and for the results of kernels.

A prompt's results are tens of megabytes, made and dropped in every layer. Given back to the system, their pages would
be fetched and zeroed anew each time; kept in a pool, the next array of about that size finds them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 17  # bytes; smaller arrays the allocator keeps by itself

Memory = NDArray[np.uint8]


def aligned(count: int) -> Memory:
    """Uninitialised bytes on a cache line's boundary."""
    memory = np.empty(count + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count]


class Pool:
    """Memory that may be lent again, to jobs that run in the order in which they ask."""

    def __init__(self) -> None:
        self._spare: dict[int, list[Memory]] = defaultdict(list)  # by size

    def add(self, memory: Memory) -> None:
        self._spare[memory.size].append(memory)

    def take(self, size: int) -> Memory:
        """At least so many bytes: the smallest that are here and not twice as many, else new ones."""
        fitting = min((n for n, kept in list(self._spare.items()) if kept and size <= n <= 2 * size), default=None)
        return aligned(size) if fitting is None else self._spare[fitting].pop()

    def clear(self) -> None:
        """Returns the memory to the system."""
        self._spare.clear()


def lend(shape: tuple[int, ...], dtype: Any, pool: Pool, returned: list[Memory] | None = None) -> NDArray[Any]:
    """An uninitialised array, whose memory the pool has again when neither it nor a view of it is left.

    returned: takes the memory then, however small; who owns the list adds it to the pool when it may be lent again.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE and returned is None:
        return np.empty(shape, dtype)
    memory = pool.take(size)
    # A view of a view refers to the first array of the chain that is not a view of an array: with this owner between
    # them, that is the array we return and not `memory`.
    owner = (ctypes.c_char * size).from_buffer(memory)
    weakref.finalize(owner, pool.add if returned is None else returned.append, memory).atexit = False
    return np.ndarray(shape, dtype, buffer=owner)
