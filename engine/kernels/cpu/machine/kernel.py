"""Kernels and jobs.

A kernel is a C function of integers, `kernel(first, last, *arguments)`, that does items first..last-1 of its work:
addresses, sizes and strides are its arguments. A job is one row of an int64 table: a kernel's address, the number of
items, how many to take at least, and the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from inspect import signature
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from . import compiled
from .codegen import intp
from .inlined import Inlined

ARGUMENTS = 12  # of a kernel, after first and last
# The columns of a job. Of jobs that are joined the first has the items and the chunk of them all; COUNT is a job's own
# number of items, PER how many of these one item of them all is (until then: the rows of an item).
KERNEL, ITEMS, CHUNK, SHRINK, BARRIER, WEIGHTS, SIZE, ROWS, PER, COUNT, JOINED, FIRST = range(12)
COLUMNS = FIRST + ARGUMENTS


class Kernel:
    """A function of integers in machine code, compiled when its address is first asked for, then kept (compiled.py)."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    @cached_property
    def _compiled(self) -> Any:
        integers = [intp] * len(signature(self.function).parameters)
        return compiled.c_function(self.function, types.void(*integers))

    @cached_property
    def address(self) -> int:
        return int(self._compiled.address)

    def compile(self) -> bool:
        """Whether it had to be compiled now, because it was not kept."""
        there = "_compiled" in vars(self)
        return not (self._compiled.cache_hits or there)

    def job(
        self,
        items: int,
        chunk: int,
        *arguments: int,
        shrink: bool = False,
        barrier: bool = True,
        weights: tuple[int, int] = (0, 0),
        rows: int = 0,
        rows_per_item: int = 1,
    ) -> list[int]:
        """A row of a program. shrink: chunks are larger at first, for kernels that pay for the start of each.
        Without a barrier the next job may run at the same time. weights: the address and size of what this job reads
        from memory, or a later one that may as well begin now: who waits fetches the start of it.
        rows: where the items are so many rows of activations, in order, and read nothing of other rows that the jobs
        right before them write: such jobs can be joined.
        """
        own = (rows, rows_per_item, items, 1)
        return [
            self.address,
            items,
            chunk,
            shrink,
            barrier,
            *weights,
            *own,
            *arguments,
            *[0] * (ARGUMENTS - len(arguments)),
        ]


def specialise(template: Callable[..., None], name: str, **names: Any) -> Kernel:
    """A kernel from a template: its code, with these objects in place of the module's names.

    Not a closure: Numba would compile those anew in every process. `__name__` names the module that it is for.
    """
    function = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    function.__qualname__ = f"{names['__name__'].rpartition('.')[2]}.{name}"
    return Kernel(function)


def helper(function: Callable[..., Any]) -> Any:
    """A function that kernels call; it becomes part of the caller's machine code, and has none for Python to call."""
    return njit(pipeline_class=Inlined, forceinline=True, error_model="numpy")(function)


# ---- a kernel's arguments


def at(x: NDArray[Any]) -> int:
    """An array's address."""
    return x.ctypes.data


def rows_of(x: NDArray[Any]) -> tuple[int, int]:
    """Address, and bytes from row to row; within a row there must be no gaps."""
    return x.ctypes.data, x.strides[0]


def bits(x: float) -> int:
    """A float32 as an integer (simd.float_of_bits)."""
    return int(np.float32(x).view(np.int32))


def share(items: int) -> int:
    """Items to take at least: the last pieces are small enough for a slow core not to be waited for."""
    return max(1, items // 32)
