"""A kernel's PTX and machine code, without a card."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from numba import cuda, types
from numba.cuda import dispatcher


def ptx(kernel: Any, signature: tuple[Any, ...], cc: tuple[int, int]) -> str:
    """The kernel's PTX. Numba types device functions for the current card; where there is none, it is told one."""
    before = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        text, result = cuda.compile_ptx(
            kernel.py_func, signature, cc=cc, launch_bounds=kernel.targetoptions["launch_bounds"]
        )
    finally:
        dispatcher.get_current_device = before
    assert result == types.void
    return text


def resources(text: str, cc: tuple[int, int]) -> dict[str, int]:
    """What NVIDIA's assembler says of the machine code: registers, and bytes of stack, spills and shared memory."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=f"sm_{cc[0]}{cc[1]}", verbose=True)
    linker = Linker(ObjectCode.from_ptx(text.encode()), options=options)
    linker.link("cubin")
    log = linker.get_info_log()
    found = {
        "stack": r"(\d+) bytes stack frame",
        "stores": r"(\d+) bytes spill stores",
        "loads": r"(\d+) bytes spill loads",
        "registers": r"Used (\d+) registers",
        "shared": r"(\d+) bytes smem",
    }
    return {name: int(match[1]) for name, pattern in found.items() if (match := re.search(pattern, log))}
