"""Memory for packed weights and for the results of kernels.

A prompt's results are tens of megabytes, made and dropped in every layer. Given back to the system, their pages would
be fetched and zeroed anew each time; kept here, the next array of about that size finds them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

LARGE = 1 << 17  # bytes; smaller arrays the allocator keeps by itself

Pool: TypeAlias = dict[int, list[NDArray[np.uint8]]]  # by size

spare: Pool = defaultdict(list)


def aligned(count: int) -> NDArray[np.uint8]:
    """Uninitialised bytes on a cache line's boundary."""
    memory = np.empty(count + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + count]


def lend(
    shape: tuple[int, ...],
    dtype: Any = np.float32,
    returned: list[NDArray[np.uint8]] | None = None,
    spare: Pool = spare,
) -> NDArray[Any]:
    """An uninitialised array, whose memory is lent again when neither it nor a view of it is left.

    returned: takes the memory then, however small; who owns the list gives it to `take_back` when it may be lent again.
    spare: where memory is taken from.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE and returned is None:
        return np.empty(shape, dtype)
    fitting = min((n for n, kept in list(spare.items()) if kept and size <= n <= 2 * size), default=None)
    memory = aligned(size) if fitting is None else spare[fitting].pop()
    # A view of a view refers to the first array of the chain that is not a view of an array: with this owner between
    # them, that is the array we return and not `memory`.
    owner = (ctypes.c_char * size).from_buffer(memory)
    back = spare[memory.size] if returned is None else returned
    weakref.finalize(owner, back.append, memory).atexit = False
    return np.ndarray(shape, dtype, buffer=owner)


def take_back(returned: list[NDArray[np.uint8]], spare: Pool = spare) -> None:
    """This memory may be lent again."""
    while returned:
        memory = returned.pop()
        spare[memory.size].append(memory)


def give_back() -> None:
    """Returns the spare memory to the system."""
    spare.clear()
