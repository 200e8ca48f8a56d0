"""The dot products of ARM's path, as LLVM makes them for two of its processors: their own instruction, and no call."""

from __future__ import annotations

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from qwenref.engine.kernels.cpu.machine import tiles
from qwenref.engine.kernels.cpu.machine.codegen import VI, i32, i64, read_from, splat_of, write_to
from qwenref.engine.kernels.cpu.machine.paths import SETS

TARGETS = {"aarch64-unknown-linux-gnu": "neoverse-n1", "arm64-apple-macosx": "apple-m1"}
DOTS = {
    "dot4": (lambda b, *v: tiles._dot4(b, *v, wide=False), {"sdot": 8}),
    "dot4 wide": (lambda b, *v: tiles._dot4(b, *v, wide=True), {"sdot": 24}),
    "dot2": (tiles._dot2, {"smull": 16, "addp": 8}),
}


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize("triple", TARGETS)
def test_dot_products_are_the_machines_own(triple: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "PATH", "neon")
    monkeypatch.setattr(tiles, "SET", SETS["neon"])
    write, wanted = DOTS[name]
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * 3), "dot")
    b = ir.IRBuilder(function.append_basic_block())
    acc, codes, token = function.args
    value = write(b, read_from(b, acc, VI), read_from(b, codes, VI), splat_of(b, read_from(b, token, i32)))
    write_to(b, acc, value)
    b.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=TARGETS[triple], opt=3)
    lines = [line.split() for line in machine.emit_assembly(llvm.parse_assembly(str(module))).splitlines()]
    names = [words[0].partition(".")[0].removesuffix("2") for words in lines if words]
    assert {n: names.count(n) for n in wanted} == wanted
    assert "bl" not in names and not any("[sp" in word for words in lines for word in words)
