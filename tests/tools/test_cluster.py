"""Parts on a Dask cluster of this machine: a scheduler and two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwenref.engine.files.convert import convert
from qwenref.tests.parts import Stalled, killing
from qwenref.tools.cluster import on_cluster
from qwenref.tools.main import main

from ..models import model

pytest.importorskip("distributed", reason="distributed is not installed (pip install 'qwenref[cluster]')")

STAGES = "embedding"  # what takes time is the hypotheses for all that follows from it


@dataclass
class Cluster:
    address: str
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its processes stand elsewhere than the command, and the system ends them if we are killed."""
    at = tmp_path_factory.mktemp("cluster")
    file = at / "scheduler.json"
    started = []

    def start(name: str, *words: str) -> None:
        log = (at / f"{name}.{len(started)}.log").open("wb")
        words = (sys.executable, "-P", "-m", f"distributed.cli.{name}", "--scheduler-file", str(file), *words)
        started.append(subprocess.Popen(words, cwd=at, stdout=log, stderr=log))
        log.close()

    try:
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        limit = time.monotonic() + 120
        while not (file.exists() and file.read_text().strip()):
            assert time.monotonic() < limit and started[0].poll() is None
            time.sleep(0.05)
        for _ in range(2):
            start("dask_worker", "--host", "127.0.0.1", "--nthreads", "2", "--no-nanny", "--no-dashboard")
        yield Cluster(json.loads(file.read_text())["address"], started[1:])
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_scheduler_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    begun = time.monotonic()
    words = ["verify", str(tmp_path), "model.gguf", "--scheduler"]
    for address in ("tcp://127.0.0.1:1", "none://x"):
        assert main([*words, address]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert f"--scheduler {address}: no scheduler answers there" in captured.err
    assert time.monotonic() - begun < 30


def test_a_worker_is_killed_and_the_other_does_its_part(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And all that the cluster says is what the commands say that compute it here."""
    monkeypatch.chdir(tmp_path)
    convert(model("F32"), Path("base.gguf"))
    convert(model("F32"), Path("coarse.gguf"), quantize="q4_0")
    Path("a").write_text("The quick brown fox jumps over the lazy dog.\n")
    Path("b").write_bytes(b"\xff")
    for name in ("base", "coarse"):
        words = ["--backend", "reference", "--save-tensor", STAGES, "--save-tensor-dir", f"dump-{name}"]
        assert main(["trace", f"{name}.gguf", "-p", "low", *words]) == 0
    evaluation = ["base.gguf", "coarse.gguf", "-f", "a", "-f", "b", "-c", "16", "--backend", "reference"]
    commands = {
        ("eval", *evaluation, "--against", "base.gguf"): 2,
        ("verify", "dump-base", "dump-coarse", "base.gguf"): 1,
    }

    def told(status: int, *words: str) -> str:
        capsys.readouterr()
        assert main([*words, "--json"]) == status
        return capsys.readouterr().out

    expected = {words: told(status, *words) for words, status in commands.items()}
    for words, status in commands.items():
        assert told(status, *words, "--scheduler", cluster.address) == expected[words]

    (place := tmp_path / "stalled").mkdir()
    parts = [Stalled({"n": str(n)}, place, 1) for n in range(4)]
    with killing(place) as killed:
        found = on_cluster(parts, cluster.address, lambda *reached: None)
    assert [o.told for o in found] == [{"result": 1}] * 4, [o.told for o in found]
    gone = [w for w in cluster.workers if w.poll() is not None]
    assert len(killed) == 1 and [w.returncode for w in gone] == [-signal.SIGKILL]
    for words, status in commands.items():
        assert told(status, *words, "--scheduler", cluster.address) == expected[words], "by the one that is left"
    os.kill(next(w.pid for w in cluster.workers if w.poll() is None), 0)
