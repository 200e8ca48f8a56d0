"""Functions that kernels call: part of the caller's machine code, and none of their own."""

from __future__ import annotations

from numba import njit
from numba.core.compiler_lock import global_compiler_lock

from qwenref.engine.kernels.cpu.machine.kernel import helper


@helper
def twice(x):  # type: ignore[no-untyped-def]
    return x + x


@helper
def four_times(x):  # type: ignore[no-untyped-def]
    return twice(twice(x))


@njit
def eight_times(x):  # type: ignore[no-untyped-def]
    return four_times(x) + four_times(x)


def test_a_helper_is_compiled_as_part_of_its_callers_only() -> None:
    four_times.compile("intp(intp)")
    with global_compiler_lock:
        for function in (twice, four_times):
            (made,) = function.overloads.values()
            assert made.library.get_pointer_to_function(made.fndesc.llvm_func_name) == 0
    assert eight_times(3) == 24
