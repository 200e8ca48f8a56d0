"""A kernel's PTX and machine code, without a card."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from numba import types
from numba.cuda import compiler, dispatcher
from numba.cuda.cudadrv import nvvm


class Compiled:
    """A kernel compiled as numba.cuda.dispatcher._Kernel does it: typed once, then PTX for any compute capability."""

    def __init__(self, kernel: Any, signature: tuple[Any, ...]) -> None:
        cc, options, before = (7, 5), {"fastmath": False, "opt": 3}, dispatcher.get_current_device
        # Device functions are typed for the current card; where there is none, Numba is told one.
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
        try:
            made = compiler.compile_cuda(kernel.py_func, types.void, signature, nvvm_options=options, cc=cc)
        finally:
            dispatcher.get_current_device = before
        entry = made.library.get_function(made.fndesc.llvm_func_name)
        compiler.kernel_fixup(entry, False)
        nvvm.set_launch_bounds(entry, kernel.targetoptions["launch_bounds"])
        self.library = made.library

    def ptx(self, cc: tuple[int, int]) -> str:
        return str(self.library.get_asm_str(cc=cc))


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
