"""Numba's CUDA simulator with greenlets for threads: the same semantics, some hundred times faster.

The simulator gives each CUDA thread an operating system's thread, polls them all at each barrier, and walks the whole
stack for each shared array. Here a block's threads run one after the other in one thread, each up to its next barrier.
Shared memory and fresh arrays start as garbage (NaN), as a card's do.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import greenlet
from numba import types
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.kernelapi import Dim3

current: Any = None


class Lane:
    """One CUDA thread: what kernelapi asks of threading.current_thread()."""

    def __init__(self, run: Any, block: tuple[int, ...], thread: tuple[int, ...], size: tuple[int, ...]) -> None:
        self.blockIdx, self.threadIdx = Dim3(*block), Dim3(*thread)
        self.thread_id = thread[0] + size[0] * (thread[1] + size[1] * thread[2])
        self.waits_at: Any = None
        self.lane = greenlet(run)

    def syncthreads(self) -> None:
        frame = sys._getframe(2)
        self.waits_at = frame.f_code, frame.f_lineno
        self.lane.parent.switch()


def run_block(self: Any, grid_point: tuple[int, ...], *args: Any) -> None:
    """BlockManager.run: rounds of all threads, each to its next barrier or its end."""
    global current
    size = tuple(self._block_dim)
    args = tuple(getattr(getattr(a, "_item", None), "_ary", a) for a in args)
    lanes = [Lane(lambda: self._f(*args), grid_point, point, size) for point in np.ndindex(*size)]
    while lanes:
        for current in lanes:
            current.waits_at = None
            current.lane.switch()
        lanes = [lane for lane in lanes if lane.waits_at]
        if len({lane.waits_at for lane in lanes}) > 1:
            raise RuntimeError(f"threads of one block wait at different barriers: {lanes[0].waits_at}, ...")


def garbage(shape: Any, dtype: Any) -> Any:
    kind = np.dtype(dtype)
    return np.full(shape, np.nan if kind.kind == "f" else -0x5A5A5A5B if kind.kind == "i" else 0xA5A5, kind)


def shared_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
    """FakeCUDAShared.array: one array for a line of code and block."""
    frame = sys._getframe(1)
    where = frame.f_code, frame.f_lineno
    if where not in self._allocations:
        kind = kernelapi.numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype
        self._allocations[where] = garbage(shape, kind)
    return self._allocations[where]


def install(*modules: Any) -> None:
    """In place of the simulator's threads; and in these modules NumPy's numbers for Numba's types, which are slow."""
    for module in modules:
        for name in ("float32", "int32", "uint32"):
            if hasattr(module, name):
                setattr(module, name, getattr(np, name))
    kernel.BlockManager.run = run_block
    kernelapi.FakeCUDAShared.array = shared_array
    kernelapi.threading = SimpleNamespace(current_thread=lambda: current, Lock=kernelapi.threading.Lock)
