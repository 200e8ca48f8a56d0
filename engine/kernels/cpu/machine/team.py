"""Kernels, jobs, and the team of threads that works through them.

A kernel is a C function of integers, `kernel(first, last, *arguments)`, that does items first..last-1 of its work:
addresses, sizes and strides are its arguments. A job is one row of an int64 table: a kernel's address, the number of
items, how many to take at least, and the arguments. A program works through a table in one parallel region: threads
take chunks from a shared counter, so a slow core does less, and nobody starts behind a barrier before every chunk in
front of it is done. Which thread does which chunk changes no result: an item's output depends on nothing but the item.

One region for a whole table matters: waking threads costs 5 to 50 microseconds, a barrier inside a region well under
one. A waiting thread pauses for some microseconds, then gives its core to whoever wants it: it does not spin on a
busy machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from itertools import groupby
from threading import Lock
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from . import compiled
from .codegen import intp
from .simd import prefetch

compiled.choose_threads()

ARGUMENTS = 12  # of a kernel, after first and last
# The columns of a job. Of jobs that are joined the first has the items and the chunk of them all; COUNT is a job's own
# number of items, PER how many of these one item of them all is (until then: the rows of an item).
KERNEL, ITEMS, CHUNK, SHRINK, BARRIER, WEIGHTS, SIZE, ROWS, PER, COUNT, JOINED, FIRST = range(12)
COLUMNS = FIRST + ARGUMENTS
NEXT, DONE, STATE = 0, 8, 16  # counters of a job, each on its own cache line
ONE_AT_A_TIME = Lock()  # Numba's work queue ends the process where two threads enter it
STOPPED = np.zeros(1, np.int64)  # not 0: no thread takes up another chunk; the process is about to end
PATIENCE = 4000  # pauses, about 20 microseconds
FETCHED = 1 << 18  # bytes that a waiting thread fetches at most: they must fit its second-level cache


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
    """A function that kernels call; it becomes part of the caller's machine code."""
    return njit(forceinline=True, error_model="numpy")(function)


@intrinsic
def _call(typingctx: Any, job: Any, first: Any, last: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        job, first, last = args
        word = ir.IntType(64)
        row = b.inttoptr(job, word.as_pointer())
        columns = [b.load(b.gep(row, [ir.Constant(word, i)])) for i in (KERNEL, *range(FIRST, COLUMNS))]
        function = ir.FunctionType(ir.VoidType(), [word] * (2 + ARGUMENTS)).as_pointer()
        b.call(b.inttoptr(columns[0], function), [first, last, *columns[1:]])
        return context.get_dummy_value()

    return types.void(intp, intp, intp), codegen


@intrinsic
def _fetch_add(typingctx: Any, address: Any, n: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(args[0], args[1].type.as_pointer()), args[1], "acq_rel")

    return intp(intp, intp), codegen


@intrinsic
def _swap(typingctx: Any, address: Any, old: Any, new: Any) -> Any:
    """Writes `new` if the value is `old`; whether it did."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        address, old, new = args
        done = b.cmpxchg(b.inttoptr(address, new.type.as_pointer()), old, new, "acq_rel", "acquire")
        return b.extract_value(done, 1)

    return types.boolean(intp, intp, intp), codegen


@intrinsic
def _read(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load_atomic(b.inttoptr(args[0], args[0].type.as_pointer()), "acquire", 8)

    return intp(intp), codegen


@intrinsic
def _pause(typingctx: Any) -> Any:
    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        if "x86_64" in b.module.triple:
            b.call(b.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), [])), [])
        return context.get_dummy_value()

    return types.void(), codegen


_yield_core = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


@helper
def fetch(address, count):
    """Asks for the `count` bytes there."""
    for i in range(0, count, 64):
        prefetch(address + i)


@helper
def _wait(state, items, ahead, end, stopped):
    """Until all items are done; meanwhile lines from `ahead` to `end` are fetched. Returns how far that came."""
    pauses = 0
    while _read(state + 8 * DONE) < items and not _read(stopped):
        if ahead < end:
            fetch(ahead, 512)
            ahead += 512
        elif pauses < PATIENCE:
            pauses += 1
            _pause()
        else:
            _yield_core()
    return ahead


@helper
def _take(job, state, threads, stopped):
    """The next chunk of a job, [first, last): `chunk` items, or if the chunks shrink half of a fair share of what is
    left, where that is more.
    """
    if _read(stopped):
        return 0, 0
    items, chunk = _read(job + 8 * ITEMS), _read(job + 8 * CHUNK)
    while True:
        first = _read(state + 8 * NEXT)
        last = min(first + max(chunk, _read(job + 8 * SHRINK) * ((items - first) // (2 * threads))), items)
        if first >= items or _swap(state + 8 * NEXT, first, last):
            return first, last


@helper
def _work(jobs, count, states, threads, stopped):
    """What each thread does: every chunk that it can get of every job, in order."""
    group = 0
    weights, ahead = 0, 0
    for j in range(count):
        job, state = jobs + 8 * COLUMNS * j, states + 8 * STATE * j
        if _read(job + 8 * WEIGHTS) != weights:
            weights = _read(job + 8 * WEIGHTS)
            ahead = weights
        while True:
            first, last = _take(job, state, threads, stopped)
            if first >= last:
                break
            joined = _read(job + 8 * JOINED)
            if joined == 1:
                _call(job, first, last)
            else:
                for i in range(first, last):
                    for member in range(job, job + 8 * COLUMNS * joined, 8 * COLUMNS):
                        per = _read(member + 8 * PER)
                        _call(member, i * per, min(i * per + per, _read(member + 8 * COUNT)))
            _fetch_add(state + 8 * DONE, last - first)
        if _read(job + 8 * BARRIER):
            end = weights + min(_read(job + 8 * SIZE), FETCHED)
            for i in range(group, j + 1):
                items = _read(jobs + 8 * (COLUMNS * i + ITEMS))
                ahead = _wait(states + 8 * STATE * i, items, ahead, end, stopped)
            group = j + 1


@compiled.jitted("void(intp, intp, intp, intp)", nogil=True)
def _run_alone(jobs, count, states, stopped):
    _work(jobs, count, states, 1, stopped)


@compiled.jitted("void(intp, intp, intp, intp, intp)", nogil=True, parallel=True)
def _run_together(jobs, count, states, stopped, threads):
    for _ in prange(threads):
        _work(jobs, count, states, threads, stopped)


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
            _run_alone(*self._at)
        else:
            with ONE_AT_A_TIME:
                _run_together(*self._at, threads)
        if STOPPED[0]:
            raise KeyboardInterrupt


def stop() -> None:
    """Ends what runs, from any thread, after the chunks that are in work; nothing is computed from then on."""
    STOPPED[0] = 1


def run_now(*jobs: Sequence[int]) -> None:
    Program(jobs).run()


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
