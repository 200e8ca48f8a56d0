"""The same function on several pieces of an array at once: NumPy leaves Python's lock to others while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

import numpy as np

from ...cores import cores

X = TypeVar("X")
Y = TypeVar("Y")
THREADS = 4  # at most: each holds a piece, and what is made of it
KEPT = (32 << 20) - (1 << 16)  # bytes of an array: glibc learns from none that is larger than 32 MiB


def keep_pages() -> None:
    """Has malloc keep the pages of arrays that are freed: all that is judged makes and frees arrays of a few sizes.

    glibc hands what is larger than a threshold back to the system, which zeroes each page for whoever asks next: it was
    a third of the time. The threshold grows to the largest array that was freed so (mallopt(3), M_MMAP_THRESHOLD), so
    one is made that nobody writes to. Another malloc does as it likes.
    """
    np.empty(KEPT, np.uint8)


def each(f: Callable[[X], Y], pieces: Sequence[X]) -> list[Y]:
    """f of every piece, in their order, whatever the number of threads. NumPy's settings (np.errstate) are the
    caller's: they belong to a context, and a thread begins with an empty one."""
    threads = min(len(pieces), THREADS, cores())
    if threads <= 1:
        return [f(piece) for piece in pieces]

    def share(first: int) -> list[Y]:
        return [f(piece) for piece in pieces[first::threads]]

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(copy_context().run, share, first) for first in range(1, threads)]
        shares = [share(0), *(one.result() for one in others)]
    return [shares[i % threads][i // threads] for i in range(len(pieces))]
