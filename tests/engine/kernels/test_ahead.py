"""Kernels compiled ahead by several processes: all of them once, whatever becomes of the helpers."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenref.child import own_process
from qwenref.engine.kernels.cpu import ahead
from qwenref.engine.kernels.cpu.machine import compiled
from qwenref.errors import BadInput

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no helpers: no pipe can be handed down")

LEFT = 6


class Fake:
    """A kernel that is compiled once asked, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def compile(self) -> bool:
        self.asked += 1
        return self.asked == 1


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Fake]]:
    """Fake kernels, and helpers that run this program; `started` are these."""
    needed, started = [Fake() for _ in range(LEFT + 1)], []

    def by(program: str, progress: Callable[[int, int], None]) -> list[Fake]:
        monkeypatch.setattr(ahead, "kernels", lambda formats, precisions: needed)
        monkeypatch.setattr(ahead, "own_process", lambda module, *words: [sys.executable, "-c", program, *words])
        monkeypatch.setattr(compiled, "store", lambda: True)
        whole = subprocess.Popen

        def popen(*given: Any, **how: Any) -> Any:
            started.append(whole(*given, **how))
            return started[-1]

        monkeypatch.setattr(subprocess, "Popen", popen)
        try:
            ahead.compile_kernels(["F32"], ["f32"], progress, 2)
        finally:
            assert len(started) == 2 and all(p.poll() is not None for p in started)
        return needed

    return by


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("raise SystemExit(1)", id="that can not begin"),
        pytest.param("import os, sys; os.read(int(sys.argv[1]), 2); os._exit(1)", id="that takes a kernel along"),
    ],
)
def test_helpers_that_die_leave_nothing_undone(program: str, helped: Callable[..., list[Fake]]) -> None:
    told: list[tuple[int, int]] = []
    assert all(kernel.asked for kernel in helped(program, lambda *now: told.append(now)))
    assert told == sorted(told) and told[-1] == (LEFT, LEFT + 1)


def test_what_progress_raises_ends_the_helpers(helped: Callable[..., list[Fake]]) -> None:
    def progress(done: int, total: int) -> None:
        raise BadInput("enough")

    with pytest.raises(BadInput, match="enough"):
        helped("import time; time.sleep(600)", progress)


def test_a_helper_compiles_what_it_is_given_and_ends(tmp_path: Path) -> None:
    names = [k.function.__qualname__ for k in ahead.kernels(["F32"], ["f32"])]
    numbers = [names.index("_add"), names.index("_mul")]
    queue = os.pipe()
    os.write(queue[1], array("H", numbers).tobytes())
    os.close(queue[1])
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    words = own_process(ahead.__name__, str(queue[0]), "F32", "f32")
    with subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, pass_fds=queue[:1]) as helper:
        os.close(queue[0])
        assert helper.wait(120) == 0
    kept = {p.name.partition("-")[0] for p in tmp_path.glob("qwenref/kernels/*/*")}
    assert {"_add", "_mul"} <= kept and "_append" not in kept


def test_numbers_mean_the_same_kernels_in_every_process() -> None:
    some = ["Q4_K", "Q6_K"], ["f32", "int8"]
    here = [k.function.__qualname__ for k in ahead.kernels(*some)]
    program = (
        f"from qwenref.engine.kernels.cpu import ahead; [print(k.function.__qualname__) for k in ahead.kernels{some}]"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.split() == here
