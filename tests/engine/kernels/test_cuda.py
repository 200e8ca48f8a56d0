"""The CUDA backend without a card: what it refuses, the machine code of every kernel, and its results in the simulator.

With a card there is more to see, and `make gpu` sees it (docs/gpu.md).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qwenref.errors import BadInput

installed = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed (extra cuda)")
TESTS = Path(__file__).parents[2]
ARCHITECTURES = ((7, 5), (8, 0), (9, 0), (10, 0))
REGISTERS = 65536  # of a multiprocessor, on all of these
NAMES = ("Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "F16", "BF16", "F32", "others")


@installed
@pytest.mark.parametrize(
    "of", [ARCHITECTURES[::2], pytest.param(ARCHITECTURES[1::2], marks=pytest.mark.matrix)], ids=str
)
@pytest.mark.parametrize("group", NAMES)
def test_machine_code(group: str, of: tuple[tuple[int, int], ...]) -> None:
    """Every kernel compiles, keeps all in registers (no local memory, no spills), and fits a multiprocessor."""
    from qwenref.engine.kernels.cuda import Cuda, signatures
    from qwenref.engine.kernels.cuda.matmul import packed
    from qwenref.tests.cuda_kernels import Compiled

    if group == "others":
        kernels = list(signatures.others())
    else:
        kernels = list(signatures.products(group, packed.FORMS[group][0], Cuda.PRECISIONS))
    for name, kernel, signature in kernels:
        compiled = Compiled(kernel, signature)
        for cc in of:
            looked_at(f"{name} for sm_{cc[0]}{cc[1]}", name, kernel, compiled.ptx(cc), cc)
    assert len(kernels) >= 3


def looked_at(what: str, name: str, kernel: Any, text: str, cc: tuple[int, int]) -> None:
    from qwenref.tests.cuda_kernels import resources

    assert ".local" not in text, f"{what} has an array in local memory"
    assert not re.search(r"\b(atom|red)\.", text), f"{what} uses atomics"
    assert not re.search(r"(?<!ex2)\.approx", text), f"{what} uses an approximation"  # exp's own step is ex2.approx
    if cc[0] < 10:  # whose compiler divides when it unrolls
        assert not re.search(r"\b(div|rem)\.[su]64", text), f"{what} divides 64 bits: a hundred instructions"
    assert ".f64" not in text or name == "rope", f"{what} computes in float64"
    if name == "quantise" or name.endswith("-embed"):
        assert "fma." not in text, f"{what} is to round as ggml does, product by product"
    if name.endswith(("-vector", "-vector8")):
        assert "ld.global.nc.v4" in text, f"{what} does not load 16 bytes at a time"
    if name.endswith("8"):
        assert "dp4a.u32.s32" in text
    used = resources(text, cc)
    assert (used["stack"], used["stores"], used["loads"]) == (0, 0, 0), f"{what} spills: {used}"
    threads = (kernel.targetoptions["launch_bounds"] or (256,))[0]
    assert used["registers"] * threads <= REGISTERS, f"{what}: {used['registers']} registers by {threads} threads"
    assert used["shared"] <= 48 * 1024


@pytest.mark.parametrize(
    ("which", "part"),
    [
        *(("-k", part) for part in ("product", "stage", "not product and not stage")),
        pytest.param("-m", "matrix", marks=pytest.mark.matrix),
    ],
)
def test_in_the_simulator(which: str, part: str) -> None:
    """tests/cuda_simulator.py, in a process of its own: the simulator takes numba.cuda's place for good."""
    pytest.importorskip("greenlet", reason="greenlet is not installed (extra dev)")
    root = TESTS.parent
    site = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/cuda_simulator.py", which, part],
        cwd=root,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def refusal(code: str) -> str:
    """What `code` is refused with, in a process of its own."""
    program = f"from qwenref.errors import BadInput\ntry:\n    {code}\nexcept BadInput as e:\n    print('refused:', e)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    return done.stdout


def test_the_extra_is_asked_for() -> None:
    hidden = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: None if n == 'numba_cuda' else f(n)"
    message = refusal(f"{hidden}; from qwenref.engine.kernels import backend; backend('cuda')")
    assert "needs the package numba-cuda" in message and "pip install 'qwenref[cuda]'" in message


@installed
def test_no_card_is_told() -> None:
    from numba import cuda

    if cuda.is_available():
        pytest.skip("there is a card; make gpu tests it")
    message = refusal(
        "from qwenref.engine.kernels import backend; from qwenref.tests.tiny import tiny_weights; "
        "backend('cuda').prepare(tiny_weights(), 'f32')"
    )
    assert "no NVIDIA card or no driver" in message and "--backend cpu" in message


def test_make_gpu_keeps_what_a_section_found_before_it_died(tmp_path: Path) -> None:
    from qwenref.tools.dev.gpu import markdown, run_section

    code = 'import os, sys, time; open(sys.argv[-1], \'w\').write(\'{"rows": [["a", "b"]], "wrong": []}\'); '
    for end, status, why in (("os._exit(3)", 3, "ended with status 3"), ("time.sleep(60)", -1, "stopped after 1 s")):
        result = run_section([sys.executable, "-c", code + end], "card", tmp_path / end, 1)
        assert (result["rows"], result["status"], result["wrong"]) == ([["a", "b"]], status, [f"card: {why}"])
    assert markdown("card", result["rows"]).splitlines()[-1] == "| a | b |"


@installed
@pytest.mark.parametrize(
    ("version", "count", "compiler", "capability", "says"),
    [
        ((12, 8), 1, True, (9, 0), "driver is for CUDA 12.8, the installed packages are for 1"),
        ((99, 0), 0, True, (9, 0), "names no card"),
        ((99, 0), 1, False, (9, 0), "compiler library"),
        ((99, 0), 1, True, (7, 0), "7.0; 7.5 or more"),
        ((99, 0), 1, True, None, r"no driver that answers \(\[46\] the card is another's\); take --backend cpu"),
    ],
)
def test_what_is_missing_is_named(
    version: tuple[int, int], count: int, compiler: bool, capability: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from numba import cuda
    from numba.cuda.cudadrv import driver, nvvm

    from qwenref.engine.kernels.cuda.machine import card

    def current() -> Any:
        if capability is None:
            raise driver.CudaAPIError(46, "the card is another's")
        return SimpleNamespace(compute_capability=capability)

    monkeypatch.setattr(driver.driver, "ensure_initialized", lambda: None)
    monkeypatch.setattr(driver.driver, "get_version", lambda: version)
    monkeypatch.setattr(cuda, "gpus", [None] * count)
    monkeypatch.setattr(nvvm, "is_available", lambda: compiler)
    monkeypatch.setattr(cuda, "get_current_device", current)
    with pytest.raises(BadInput, match=says):
        card.require_card()
