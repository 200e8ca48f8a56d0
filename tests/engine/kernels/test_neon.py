"""The machine code of the CPU backend's kernels on ARM's path, as LLVM makes it for two of its processors: its own dot
product, nothing kept on the stack in the loops that multiply, and no call from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwenref.engine.kernels.cpu.matmul.packed import FORMATS, form_named
from qwenref.tools.dev.elsewhere import assembly
from qwenref.tools.dev.loops import Loop, loops

PROCESSORS_OF_ARM = ("neoverse-n1", "apple-m1")
OTHERS = ("attention/scores", "attention/mix", "rows/rms_norm")
# Of both a few: a kernel takes a second to compile.
QUICK = {"neoverse-n1": ["Q6_K/int8", "rows/rms_norm"], "apple-m1": ["Q8_0/f32", "attention/scores", "attention/mix"]}


def looked_at(processor: str, names: Sequence[str]) -> None:
    made = assembly(processor, names)
    assert made
    for name, text in made.items():
        what = f"{name} for {processor}"
        found = loops(text)
        assert found, f"{what} multiplies nothing in a loop"
        integer = "int8" in name or "int16" in name
        for loop in found:
            assert not loop.calls, f"{what} calls {loop.calls}"
            assert len(loop.on_the_stack) <= allowed(name, loop), f"{what} spills {loop.on_the_stack}"
        if integer:
            assert max(loop.names.count("sdot") for loop in found) >= 8, f"{what} has no dot product of bytes"
            assert not any({"mul", "mla"} & set(loop.names) and "sdot" not in loop.names for loop in found), what


def allowed(name: str, loop: Loop) -> int:
    return 0


@pytest.mark.parametrize("processor", QUICK)
def test_machine_code(processor: str) -> None:
    looked_at(processor, QUICK[processor])


@pytest.mark.matrix
@pytest.mark.parametrize("processor", PROCESSORS_OF_ARM)
@pytest.mark.parametrize("form", [*FORMATS, "others"])
def test_machine_code_of_every_kernel(form: str, processor: str) -> None:
    if form == "others":
        return looked_at(processor, OTHERS)
    precisions = [p for p in ("f32", "int8", "int16") if getattr(form_named(form), p)]
    looked_at(processor, [f"{form}/{p}" for p in precisions])
