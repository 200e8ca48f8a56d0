"""A pass of few tokens recorded once and replayed: the same kernels on the same arrays, in one parallel region.

What changes from pass to pass lies where the jobs look for it: the positions in one array, the tokens' rows of the
embedding in another. The pass is recorded at the cache's last positions, so that its arrays are long enough for all
others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import Pool, give_back, lend, spare, take_back
from .team import BARRIER, ROWS, SIZE, WEIGHTS, Program, run_now

AT_ONCE = 256  # jobs: between two runs the caches forget Python, and it is slow again


class Batch:
    """Jobs that are put off. spare: memory for their results.

    Joined jobs go through their rows in any order, so memory that one of them reads must not become another's result:
    it is lent again only when a job that cannot be joined has ended the group.
    """

    def __init__(self, spare: Pool = spare) -> None:
        self.jobs: list[Sequence[int]] = []
        self.arrays: list[NDArray[Any]] = []
        self.spare = spare
        self.returned: list[NDArray[np.uint8]] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        return lend(shape, dtype, self.returned, self.spare)

    def submit(self, jobs: Sequence[Sequence[int]]) -> None:
        self.jobs.extend(jobs)
        if not jobs[-1][ROWS]:
            take_back(self.returned, self.spare)
            self.full()

    def full(self) -> None:
        if len(self.jobs) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self.jobs:
            run_now(*self.jobs)
        self.jobs.clear()


class Recording(Batch):
    """The jobs of one forward pass, memory of their own, and what Python has to do before them."""

    def __init__(self, position: NDArray[np.int32]) -> None:
        super().__init__(defaultdict(list))
        self.position = position
        self.before: list[Callable[[NDArray[np.int32]], None]] = []

    def full(self) -> None:
        """They are run when all are there."""


current: ContextVar[Batch | None] = ContextVar("current", default=None)


def recording() -> Recording | None:
    """The recording that is being made, if one is."""
    made = current.get()
    return made if isinstance(made, Recording) else None


def untapped() -> bool:
    """Whether this pass is put off or recorded: no tap looks at a stage of it."""
    return current.get() is not None


def submit(*jobs: Sequence[int]) -> None:
    """Works through these jobs, now or later, or records them."""
    if made := current.get():
        made.submit(jobs)
    else:
        run_now(*jobs)


def keep(array: NDArray[Any]) -> NDArray[Any]:
    """Says that jobs read this array, which `empty` did not make."""
    if made := current.get():
        made.arrays.append(array)
    return array


def empty(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """An array for a kernel to write."""
    made = current.get()
    return made.empty(shape, dtype) if made else lend(shape, dtype)


def batch(forward: Callable[[], Any]) -> Any:
    """forward(), its jobs put off and run together: fewer waits, and rows that stay in the caches."""
    made = Batch()
    mark = current.set(made)
    try:
        result = forward()
        made.flush()
    finally:
        current.reset(mark)
    return result


def record(
    forward: Callable[[NDArray[np.int32]], Any], cache: Any, tokens: int = 1
) -> Callable[[NDArray[np.int32]], Any]:
    """A function that does with so many tokens [T] and `cache` what `forward` does; its result lasts until it is called
    again.
    """
    give_back()  # what a prompt needed
    length, cache.length = cache.length, cache.capacity - tokens
    made = Recording(cache.positions(tokens))
    mark = current.set(made)
    try:
        result = forward(np.zeros(tokens, np.int32))
    finally:
        current.reset(mark)
        cache.length = length
    program = Program(made.jobs)
    jobs = program.jobs
    for j in range(len(jobs) - 2, -1, -1):  # who waits in front of a product may fetch the weights of it
        if not jobs[j, WEIGHTS] or jobs[j, BARRIER]:
            jobs[j, WEIGHTS : SIZE + 1] = jobs[j + 1, WEIGHTS : SIZE + 1]

    def step(token_T: NDArray[np.int32]) -> Any:
        made.position[:] = cache.positions(tokens)
        for action in made.before:
            action(token_T)
        program.run()
        cache.advance(tokens)
        return result

    return step
