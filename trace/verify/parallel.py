"""The same function on several pieces of an array at once: NumPy leaves Python's lock to others while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from ...cores import cores

X = TypeVar("X")
Y = TypeVar("Y")
THREADS = 4  # at most: each holds a piece, and what is made of it


def each(f: Callable[[X], Y], pieces: Sequence[X]) -> list[Y]:
    """f of every piece, in their order, whatever the number of threads. NumPy's settings (np.errstate) are the
    caller's: they belong to a context, and a thread begins with an empty one."""
    threads = min(len(pieces), THREADS, cores())
    if threads <= 1:
        return [f(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return [one.result() for one in [pool.submit(copy_context().run, f, piece) for piece in pieces]]
