"""Every kernel of the CUDA backend with the types of its launches; PTX and machine code without a card."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from numba import cuda, float32, int32, int64, types, uint16, uint32
from numba.cuda import dispatcher

from qwenref.engine.kernels.cuda import attention, packed, product, product8, rows

F, U, H, I, X = float32[::1], uint32[::1], uint16[::1], int64, int32[::1]
ROWS, PLANES = (F, I, I), (U, U, H, H)


def kernels() -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """(name, kernel, argument types)."""
    for name, (form, _) in packed.FORMS.items():
        made = product.products(form)
        yield f"{name}-vector", made.vector, (F, F, *PLANES, F, I, I, I, I, I)
        yield f"{name}-matrix", made.matrix, (*ROWS, I, *PLANES, F, I, I, I, I, I)
        yield f"{name}-embed", made.embed, (X, *PLANES, F, I, I)
        if hasattr(form, "codes"):
            made8 = product8.products8(form)
            yield f"{name}-vector8", made8.vector, (U, F, X, *PLANES, F, I, I, I, I, I)
            yield f"{name}-matrix8", made8.matrix, (U, F, X, *PLANES, F, I, I, I, I, I)
    yield "lay_out", product.lay_out, (*ROWS, I, I, F, F)
    yield "quantise", product8.quantise, (*ROWS, I, I, I, U, F, X)
    yield "rms_norm", rows.rms_norm, (*ROWS, F, float32, I, F)
    yield "add", rows.add, (*ROWS, *ROWS, I, F)
    yield "mul", rows.mul, (*ROWS, *ROWS, I, F)
    yield "silu", rows.silu, (*ROWS, I, F)
    yield "narrow", rows.narrow, (*ROWS, I, I, F)
    yield "rope", rows.rope, (*ROWS, X, F, I, I, F)
    yield "append", attention.append, (*ROWS, *ROWS, X, I, F, F, I)
    yield "advance", attention.advance, (X, I)
    yield "scores", attention.scores, (*ROWS, F, I, X, I, I, I, float32, F, I)
    yield "softmax", attention.softmax, (F, I, X, I, F)
    yield "mix", attention.mix, (F, I, F, I, X, I, I, I, I, F)
    yield "gather", attention.gather, (F, X, I, I, I, F)


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
