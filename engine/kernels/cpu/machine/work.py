"""What each thread of the team does, in machine code: it takes chunks of every job in a table, in order.

Threads take chunks from a shared counter, so a slow core does less, and nobody starts behind a barrier before every
chunk in front of it is done. A waiting thread pauses for some microseconds, then gives its core to whoever wants it: it
does not spin on a busy machine.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from . import compiled
from .codegen import intp
from .kernel import (
    ARGUMENTS,
    BARRIER,
    CHUNK,
    COLUMNS,
    COUNT,
    FIRST,
    ITEMS,
    JOINED,
    KERNEL,
    PER,
    SHRINK,
    SIZE,
    WEIGHTS,
    helper,
)
from .paths import SET
from .simd import prefetch

compiled.choose_threads()

NEXT, DONE, STATE = 0, 8, 16  # counters of a job, each on its own cache line
PATIENCE = 4000  # pauses, about 20 microseconds
ABREAST = SET.abreast
AHEAD = 8192  # bytes: more than a block of any format, within which the order of reading is the format's own
FETCHED = 1 << 18  # bytes that a waiting thread fetches at most: they must fit its second-level cache


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
def fetch_ahead(w, count):
    """Asks for the weights AHEAD of these `count` bytes. Prefetching by the machine alone gave a third of the speed;
    asking for many lines at once, two thirds: who waits for memory does not compute. Two lines where registers are few:
    no format has more at a time, and a loop over `count` takes registers.
    """
    fetch(w + AHEAD, count if ABREAST else 128)


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
def run_alone(jobs, count, states, stopped):
    _work(jobs, count, states, 1, stopped)


@compiled.jitted("void(intp, intp, intp, intp, intp)", nogil=True, parallel=True)
def run_together(jobs, count, states, stopped, threads):
    for _ in prange(threads):
        _work(jobs, count, states, threads, stopped)


TEAM = run_alone, run_together
