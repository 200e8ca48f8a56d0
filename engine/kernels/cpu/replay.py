"""One decode step recorded once and replayed: the same kernels on the same arrays, in one parallel region a token.

What changes from step to step lies where the jobs look for it: the position in one array, the token's row of the
embedding in another. The pass is recorded at the cache's last position, so that its arrays are long enough for all
others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import give_back, lend
from .team import BARRIER, SIZE, WEIGHTS, Program, run_now


class Recording:
    """The jobs of one forward pass, the arrays that they read and write, and what Python has to do before them."""

    def __init__(self, position: NDArray[np.int32]) -> None:
        self.position = position
        self.jobs: list[Sequence[int]] = []
        self.arrays: list[NDArray[Any]] = []
        self.before: list[Callable[[NDArray[np.int32]], None]] = []


recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


def submit(*jobs: Sequence[int]) -> None:
    """Works through these jobs, or records them."""
    if made := recording.get():
        made.jobs.extend(jobs)
    else:
        run_now(*jobs)


def keep(array: NDArray[Any]) -> NDArray[Any]:
    """Says that jobs read or write this array."""
    if made := recording.get():
        made.arrays.append(array)
    return array


def empty(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """An array for a kernel to write."""
    return keep(lend(shape, dtype))


def record(forward: Callable[[NDArray[np.int32]], Any], cache: Any) -> Callable[[NDArray[np.int32]], Any]:
    """A function that does with one token [1] and `cache` what `forward` does; its result lasts until it is called
    again.
    """
    give_back()  # what a prompt needed
    length, cache.length = cache.length, cache.capacity - 1
    made = Recording(cache.positions(1))
    mark = recording.set(made)
    try:
        result = forward(np.zeros(1, np.int32))
    finally:
        recording.reset(mark)
        cache.length = length
    program = Program(made.jobs)
    jobs = program.jobs
    for j in range(len(jobs) - 2, -1, -1):  # who waits in front of a product may fetch the weights of it
        if not jobs[j, WEIGHTS] or jobs[j, BARRIER]:
            jobs[j, WEIGHTS : SIZE + 1] = jobs[j + 1, WEIGHTS : SIZE + 1]

    def step(token_T: NDArray[np.int32]) -> Any:
        made.position[:] = cache.positions(1)
        for action in made.before:
            action(token_T)
        program.run()
        cache.advance(1)
        return result

    return step
