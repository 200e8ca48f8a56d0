"""Kernels compiled before they are needed, by as many processes as there are cores: Numba compiles one at a time.

A pipe holds the number of every kernel: who reads one compiles it. All end up where compiled kernels are kept
(machine/compiled.py), and the caller reads them from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numba

from ....child import end_with_parent, own_process
from . import attention, rows
from .machine import compiled
from .machine.compiled import Jitted
from .machine.kernel import Kernel
from .machine.work import TEAM
from .matmul.linear import kernels_for
from .matmul.packed import form_named, interleave

HELPERS = 7  # at most: with so many, the longest kernel is what takes the time
WORTH_IT = 4  # kernels that are left: a helper needs a second to begin


def kernels(formats: Sequence[str], precisions: Sequence[str]) -> list[Kernel | Jitted]:
    """What matrices packed in these formats need, in these precisions, and what every model does; the longest first."""
    products = [k for p in precisions for name in formats for k in kernels_for(form_named(name), p)]
    return list(dict.fromkeys([*products, *TEAM, *attention.KERNELS, *rows.KERNELS, interleave]))


def compile_kernels(
    formats: Sequence[str],
    precisions: Sequence[str],
    progress: Callable[[int, int], None],
    helpers: int | None = None,
) -> None:
    """Makes the kernels ready: from where they are kept, else compiled. progress(done, total) is told from the first on
    that had to be compiled, and may raise to end it.

    helpers: further processes to do it with, where it is much (None: as many as threads would help).
    """
    helpers = numba.get_num_threads() - 1 if helpers is None else helpers
    needed = kernels(formats, precisions)
    first = next((number for number, kernel in enumerate(needed) if kernel.compile()), len(needed))
    left = range(first + 1, len(needed))
    if helpers and len(left) >= WORTH_IT and sys.platform != "win32" and compiled.store():
        _with_helpers(needed, left, (formats, precisions), progress, min(helpers, HELPERS))
        progress = _silent  # what is left to do now is what a helper has left undone
    for number in left:
        progress(number, len(needed))
        needed[number].compile()


def _silent(done: int, total: int) -> None:
    pass


def _with_helpers(
    needed: Sequence[Kernel | Jitted],
    left: Sequence[int],
    names: tuple[Sequence[str], Sequence[str]],
    progress: Callable[[int, int], None],
    helpers: int,
) -> None:
    with ExitStack() as ending:
        queue, ours = os.pipe(), os.pipe()
        for end in (queue[0], *ours):
            ending.callback(os.close, end)
        os.write(queue[1], array("H", left).tobytes())
        os.close(queue[1])
        words = own_process(__name__, str(queue[0]), *(",".join(n) for n in names))
        started = []
        for _ in range(helpers):
            p = subprocess.Popen(
                words, stdin=ours[0], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=queue[:1]
            )
            ending.callback(p.wait)
            ending.callback(p.kill)
            started.append(p)
        number = 0
        for number in _claimed(queue[0]):
            progress(number, len(needed))
            needed[number].compile()
        for p in started:
            p.wait()
        if number != left[-1]:
            progress(left[-1], len(needed))


def _claimed(queue: int) -> Iterator[int]:
    """The numbers of kernels that this process is the one to compile."""
    while read := os.read(queue, 2):
        yield from array("H", read)


def main(queue: str, formats: str, precisions: str) -> None:
    """A helper: compiles what nobody else does, and ends."""
    end_with_parent()
    needed = kernels(formats.split(","), precisions.split(","))
    for number in _claimed(int(queue)):
        needed[number].compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
