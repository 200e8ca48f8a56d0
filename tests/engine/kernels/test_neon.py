"""The machine code of the CPU backend's kernels on ARM's path, as LLVM makes it for two of its processors: its own dot
product, nothing kept on the stack in the loops that multiply, and no call from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwenref.engine.kernels.cpu.matmul.packed import FORMATS, form_named
from qwenref.tools.dev.elsewhere import assembly
from qwenref.tools.dev.loops import loops

PROCESSORS_OF_ARM = ("neoverse-n1", "apple-m1")
OTHERS = ("attention/scores", "attention/mix", "rows/rms_norm")
# Of each a few: a kernel takes a second to compile.
QUICK = {
    "neoverse-n1": ["Q6_K/int8 few", "IQ4_XS/int8 many", "attention/scores"],
    "apple-m1": ["Q8_0/int16 many"],
}

# What a loop of this may look like: weights asked for ahead in a loop of its own, a spilled sum, a call.
LOOP = """
kernel:
	mov	x9, #4
.LBB0_1:
	prfm	pldl1keep, [x1]
	subs	x9, x9, #1
	b.ne	.LBB0_1
.LBB0_2:
	ldr	q1, [x0], #16 // 16-byte Folded Reload
.LBB0_3:
	prfm	pldl1keep, [x2]
	ldr	x3, [sp, #8]
	subs	x4, x4, #1
	b.ne	.LBB0_3
	sdot	v0.4s, v1.16b, v2.4b[1]
	str	q0, [sp, #32]
	bl	memcpy
	cbnz	x8, .LBB0_2
	ret
"""


def test_a_spill_and_a_call_would_be_seen() -> None:
    (loop,) = loops(LOOP)
    assert loop.names == ["ldr", "sdot", "str", "bl", "cbnz"] and loop.products == 16
    assert loop.on_the_stack == ["str\tq0, [sp, #32]"] and loop.calls == ["bl\tmemcpy"]


def looked_at(processor: str, names: Sequence[str]) -> None:
    made = assembly(processor, names)
    assert made
    for name, text in made.items():
        what = f"{name} for {processor}"
        found = loops(text)
        assert found, f"{what} multiplies nothing in a loop"
        for loop in found:
            assert not loop.calls, f"{what} calls {loop.calls}"
            assert not loop.on_the_stack, f"{what} spills {loop.on_the_stack}"
        if "/int" in name:
            assert max(loop.names.count("sdot") for loop in found) >= 8, f"{what} has no dot product of bytes"


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
