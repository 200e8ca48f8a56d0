"""The team of threads that works through jobs. There is one in a process, and it works for one program at a time.

A program works through a table of jobs in one parallel region. Which thread does which chunk changes no result: an
item's output depends on nothing but the item. One region for a whole table matters: waking threads costs 5 to 50
microseconds, a barrier inside a region well under one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from threading import Lock

import numba
import numpy as np

from .kernel import BARRIER, CHUNK, ITEMS, JOINED, PER, ROWS, share
from .work import STATE, run_alone, run_together

ONE_AT_A_TIME = Lock()  # Numba's work queue ends the process where two threads enter it
STOPPED = np.zeros(1, np.int64)  # not 0: no thread takes up another chunk; the process is about to end


def _join(jobs: list[list[int]], group: list[int]) -> None:
    """Makes one of these jobs, which share the same rows: a thread takes some rows through all of them, while they
    are in its caches, and nobody waits in between.
    """
    most = max(jobs[i][PER] for i in group)
    units = -(-jobs[group[0]][ROWS] // most)
    for i in group:
        jobs[i][PER] = most // jobs[i][PER]
        jobs[i][ITEMS] = jobs[i][JOINED] = 0
    head = jobs[group[0]]
    head[ITEMS], head[CHUNK], head[JOINED], head[BARRIER] = units, share(units), len(group), jobs[group[-1]][BARRIER]


class Program:
    """A table of jobs [n, COLUMNS], to be worked through once or again and again."""

    def __init__(self, jobs: Sequence[Sequence[int]]) -> None:
        table = [list(job) for job in jobs]
        for _, group in groupby(range(len(table)), lambda i: table[i][ROWS] or -1 - i):
            if len(joined := list(group)) > 1:
                _join(table, joined)
        self.jobs = np.array(table, np.int64)
        self._states = np.empty((len(self.jobs), STATE), np.int64)
        self._shared = bool((self.jobs[:, ITEMS] > self.jobs[:, CHUNK]).any())
        self._at = self.jobs.ctypes.data, len(self.jobs), self._states.ctypes.data, STOPPED.ctypes.data

    def run(self) -> None:
        """With the threads of numba.set_num_threads. Raises KeyboardInterrupt after `stop`: jobs were left undone."""
        self._states.fill(0)
        threads = numba.get_num_threads()
        if threads == 1 or not self._shared:
            run_alone(*self._at)
        else:
            with ONE_AT_A_TIME:
                run_together(*self._at, threads)
        if STOPPED[0]:
            raise KeyboardInterrupt


def stop() -> None:
    """Ends what runs, from any thread, after the chunks that are in work; nothing is computed from then on."""
    STOPPED[0] = 1


def run_now(*jobs: Sequence[int]) -> None:
    Program(jobs).run()
