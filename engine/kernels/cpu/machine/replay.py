"""What becomes of a pass's jobs: they run as they come, or together at its end, or are recorded and replayed.

A recorded pass of few tokens is the same kernels on the same arrays, again and again, in one parallel region. What
changes from pass to pass lies where the jobs look for it: the positions in one array, the tokens' rows of the embedding
in another. It is recorded at the cache's last positions, so that its arrays are long enough for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel import BARRIER, ROWS, SIZE, WEIGHTS
from .memory import Memory, Pool, lend
from .team import Program, run_now

AT_ONCE = 256  # jobs: between two runs the caches forget Python, and it is slow again


class Jobs:
    """Jobs that run as they come. pool: memory for their results."""

    untapped = False  # whether no tap looks at a stage of this pass

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def empty(self, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        """An array for a kernel to write."""
        return lend(shape, dtype, self.pool)

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        """Says that jobs read this array, which `empty` did not make."""
        return array

    def submit(self, *jobs: Sequence[int]) -> None:
        """Works through these jobs, now or later, or records them."""
        run_now(*jobs)


class Batch(Jobs):
    """Jobs that are put off.

    Joined jobs go through their rows in any order, so memory that one of them reads must not become another's result:
    it is lent again only when a job that cannot be joined has ended the group.
    """

    untapped = True

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.jobs: list[Sequence[int]] = []
        self.arrays: list[NDArray[Any]] = []
        self.returned: list[Memory] = []

    def empty(self, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
        return lend(shape, dtype, self.pool, self.returned)

    def keep(self, array: NDArray[Any]) -> NDArray[Any]:
        self.arrays.append(array)
        return array

    def submit(self, *jobs: Sequence[int]) -> None:
        self.jobs.extend(jobs)
        if not jobs[-1][ROWS]:
            while self.returned:
                self.pool.add(self.returned.pop())
            self.full()

    def full(self) -> None:
        if len(self.jobs) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Runs what was put off."""
        if self.jobs:
            run_now(*self.jobs)
        self.jobs.clear()


class Recording(Batch):
    """The jobs of one pass of few tokens, memory of their own, and what Python has to do before them."""

    def __init__(self, position: NDArray[np.int32]) -> None:
        super().__init__(Pool())
        self.position = position
        self.before: list[Callable[[NDArray[np.int32]], None]] = []

    def full(self) -> None:
        """They are run when all are there."""

    def program(self) -> Program:
        """What was recorded."""
        program = Program(self.jobs)
        jobs = program.jobs
        for j in range(len(jobs) - 2, -1, -1):  # who waits in front of a product may fetch the weights of it
            if not jobs[j, WEIGHTS] or jobs[j, BARRIER]:
                jobs[j, WEIGHTS : SIZE + 1] = jobs[j + 1, WEIGHTS : SIZE + 1]
        return program
