"""How Numba compiles a function that only kernels call: as far as LLVM's text, which becomes part of theirs.

By itself Numba optimises each such function with all that it calls, makes machine code of it and a wrapper for Python,
and then does the same with the function around it: of a kernel's innermost loops four times. That was half of the time
of compiling kernels.
"""

from __future__ import annotations

from typing import Any

from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import AnalysisPass, register_pass
from numba.core.typed_passes import NativeLowering


class _Text(JITCodeLibrary):
    """A library whose functions are optimised where they are linked to, and are never machine code of their own."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=False, analysis_only=True)
class _Known(AnalysisPass):
    """Makes the function known to its callers, by an object that Python cannot call."""

    _name = "known_to_callers"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        lowered = state["cr"]
        function = lowered.fndesc
        known = make_function(function.lookup_module(), function.qualname, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(known, function, [state.library])
        state["cr"] = lowered._replace(cfunc=known)
        return False


class Inlined(Compiler):
    """numba.njit(pipeline_class=Inlined), with forceinline."""

    def define_pipelines(self) -> list[Any]:
        state, flags = self.state, self.state.flags
        state.library = _Text(state.targetctx.codegen(), state.func_id.func_qualname)
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        pipelines: list[Any] = super().define_pipelines()
        for passes in pipelines:
            passes.add_pass_after(_Known, NativeLowering)
            passes.finalize()
        return pipelines
