"""engine doctor: what it says is so, it keeps to itself what is nobody's business, and it sees wrong bits."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.cores import cores
from qwenref.engine import aliases, selftest
from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.kernels.cpu import Cpu
from qwenref.engine.kernels.cpu.machine.paths import PATH, SET
from qwenref.engine.tap import SILENT
from qwenref.tools import doctor
from qwenref.tools.main import main

from ..tiny import relative

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call() -> tuple[int, dict[str, Any], str]:
        status = main(["doctor", "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return call


def test_a_healthy_machine(run: Run) -> None:
    status, report, said = run()
    assert (status, report["healthy"]) == (0, True) and said.endswith("every machine computes\n")
    assert report["self-test"] == {p: f"{d} is right" for p, d in selftest.DIGESTS.items()}
    assert report["self-test"].keys() == set(Cpu.PRECISIONS)
    assert report["versions"]["numpy"] == np.__version__
    assert report["versions"]["python"].startswith(platform.python_version())
    assert report["threads"]["for this process"] == cores() >= report["threads"]["used"]
    assert report["processor"]["path"].startswith(PATH)
    assert SET.needs <= set(report["processor"]["features"].split())
    assert not any("unknown" in section for section in report.values() if isinstance(section, dict))


def test_lines_say_the_same(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _, report, _ = run()
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for title in report.keys() - {"healthy"}:
        assert title in lines
    assert any(re.fullmatch(r"  f32 +[0-9a-f]{32} is right", line) for line in lines)
    assert any(line.split() == ["numpy", np.__version__] for line in lines)


def test_other_bits_are_seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding of one value in one layer is another result."""
    silu = Cpu.silu

    def off_by_one(k: Cpu, x_TF: Any) -> Any:
        y_TF = silu(k, x_TF)
        submitted = k.to_host(y_TF)
        return np.nextafter(submitted, np.float32(np.inf)) if len(submitted) == 1 else y_TF

    monkeypatch.setattr(Cpu, "silu", off_by_one)
    status, report, said = run()
    assert (status, report["healthy"]) == (1, False)
    assert all(f"is wrong; right is {selftest.DIGESTS[p]}" in report["self-test"][p] for p in Cpu.PRECISIONS)
    last = said.splitlines()[-1]  # it may have said before that it compiles
    assert last.startswith("not healthy: the self-test's bits are not those of every other machine")


def test_what_is_broken_does_not_hide_the_rest() -> None:
    env = os.environ | {"QWENREF_SIMD": "sse9"}
    command = [sys.executable, "-c", "import sys; from qwenref.tools.main import main; sys.exit(main(['doctor']))"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "not healthy: nothing can be computed here" in done.stderr
    assert "QWENREF_SIMD=sse9: this machine has" in done.stdout and f"{np.__version__}\n" in done.stdout


def test_paths_and_secrets(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QWENREF_MODELS", str(tmp_path / "m"))
    monkeypatch.setenv("PYTHONSTARTUP", f"{tmp_path}-not:{tmp_path}/x")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pass1word@hub.example/x")
    monkeypatch.setenv("HF_TOKEN", "pass1word")
    monkeypatch.setenv("NUMBA_DEBUG", "1")
    monkeypatch.setenv("OMP_X", "\x1b[2J")
    model = next(iter(aliases.MODELS.values()))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / model.file).write_bytes(b"x" * 2_500_000)
    _, report, _ = run()
    assert report["models"]["folder"] == report["environment"]["QWENREF_MODELS"] == "~/m"
    assert report["environment"]["PYTHONSTARTUP"] == f"{tmp_path}-not:~/x"
    assert report["environment"]["HF_ENDPOINT"] == "https://...@hub.example/x"
    assert report["environment"]["NUMBA_DEBUG"] == "1 (no effect here)"
    assert "HF_TOKEN" not in report["environment"] and "pass1word" not in json.dumps(report)
    said = next(iter(m for a, m in report["models"].items() if a != "folder"))
    assert said == f"2.5 MB, not the published {model.bytes:,} bytes"
    assert "\x1b" not in doctor.text(report | {"healthy": {}})


def test_its_packages_are_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(lines: list[str]) -> set[str]:
        return {re.match(r"[\w-]+", line)[0] for line in lines}

    assert set(doctor.NEEDED) == names(project["dependencies"])
    whole = [line for name in ("apr", "cluster", "png", "cuda", "oracle") for line in extras[name]]
    assert set(doctor.OPTIONAL) == names(whole)


def test_the_self_test_is_a_real_model() -> None:
    """Its bits are those of a forward pass that the plain float64 backend computes too."""
    tokens, logits = selftest.random_bytes("tokens", selftest.PROMPT).astype(np.int32), []
    for name, precision in (("reference", "f64"), ("cpu", "f32")):
        k = backend(name)
        w = k.prepare(selftest.weights(), precision)
        cache = k.new_cache(selftest.CONFIG, len(tokens), precision)
        logits.append(np.array(k.to_host(forward(tokens, w, cache, k, SILENT))))
    assert np.std(logits[0]) > 0.5 and relative(*logits) < 1e-5
