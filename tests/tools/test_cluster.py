"""Parts on a Dask cluster of this machine: a scheduler and two workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from qwenref.engine.files.convert import convert
from qwenref.tests.parts import Stalled, killing
from qwenref.tools.cluster import on_cluster
from qwenref.tools.main import main

from ..models import model

pytest.importorskip("distributed", reason="distributed is not installed (pip install 'qwenref[cluster]')")

STAGES = "embedding"  # what takes time is the hypotheses for all that follows from it


Process = subprocess.Popen[bytes]


@contextmanager
def running(folder: Path, name: str, *words: str) -> Iterator[Process]:
    """One of Dask's programs, which stands elsewhere than the command."""
    with (folder / f"{name}.{len(list(folder.iterdir()))}.log").open("wb") as log:
        line = (sys.executable, "-P", "-m", f"distributed.cli.{name}", "--host", "127.0.0.1", "--no-dashboard", *words)
        process = subprocess.Popen(line, cwd=folder, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[Process, str]]:
    """And its address."""
    file = folder / "scheduler.json"
    with running(folder, "dask_scheduler", "--port", "0", "--scheduler-file", str(file)) as process:
        limit = time.monotonic() + 120
        while not (file.exists() and file.read_text().endswith("}")):
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.05)
        yield process, json.loads(file.read_text())["address"]


@dataclass
class Cluster:
    scheduler: Process
    address: str
    workers: list[Process]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    at = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        process, address = stack.enter_context(scheduler(at))
        words = (address, "--nthreads", "2", "--no-nanny")
        workers = [stack.enter_context(running(at, "dask_worker", *words)) for _ in range(2)]
        yield Cluster(process, address, workers)


def test_a_scheduler_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    begun = time.monotonic()
    words = ["verify", str(tmp_path), "model.gguf", "--scheduler"]
    for address in ("tcp://127.0.0.1:1", "none://x"):
        assert main([*words, address]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert f"--scheduler {address}: no scheduler answers there" in captured.err
    assert time.monotonic() - begun < 30


def test_a_scheduler_without_a_worker_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qwenref.tools.cluster.PATIENCE_S", 2)
    with scheduler(tmp_path) as (process, address):
        assert main(["verify", str(tmp_path), "model.gguf", "--scheduler", address]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert f"--scheduler {address}: it has no worker; start one: dask worker {address}" in captured.err
        assert process.poll() is None


def test_a_worker_is_killed_and_the_other_does_its_part(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And all that the cluster says is what the commands say that compute it here."""
    monkeypatch.chdir(tmp_path)
    convert(model("F32"), Path("base.gguf"))
    convert(model("F32"), Path("coarse.gguf"), quantize="q4_0")
    Path("a").write_text("The quick brown fox jumps over the lazy dog.\n")
    Path("b").write_bytes(b"\xff")
    Path("long").write_text("The quick brown fox jumps over the lazy dog.\n" * 9)
    for name in ("base", "coarse"):
        words = ["--backend", "reference", "--save-tensor", STAGES, "--save-tensor-dir", f"dump-{name}"]
        assert main(["trace", f"{name}.gguf", "-p", "low", *words]) == 0
    evaluation = ["base.gguf", "coarse.gguf", "-f", "a", "-f", "b", "-c", "16", "--backend", "reference"]
    commands = {
        ("eval", *evaluation, "--against", "base.gguf"): 2,
        ("eval", "base.gguf", "-f", "long", *evaluation[-4:], "--against", "coarse.gguf"): 0,
        ("verify", "dump-base", "dump-coarse", "base.gguf"): 1,
    }

    def told(status: int, *words: str) -> str:
        capsys.readouterr()
        assert main([*words, "--json"]) == status
        return capsys.readouterr().out

    expected = {words: told(status, *words) for words, status in commands.items()}
    for words, status in commands.items():
        assert told(status, *words, "--scheduler", cluster.address) == expected[words]

    with monkeypatch.context() as other:
        other.setattr("qwenref.tools.cluster.__version__", "0.0.1")
        refused = on_cluster([Stalled({"n": "0"}, tmp_path, 0)], cluster.address, lambda *reached: None)
    assert "a worker of the cluster has qwenref 0" in str(refused[0].told["error"]), "and another version is none"

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


def test_a_scheduler_that_ends_leaves_a_line_for_each_part(cluster: Cluster, tmp_path: Path) -> None:
    def kill() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        cluster.scheduler.kill()

    thread = Thread(target=kill)
    thread.start()
    parts = [Stalled({"n": str(n)}, tmp_path, 9) for n in range(2)]
    found = on_cluster(parts, cluster.address, lambda *reached: None)
    thread.join()
    said = {"error": "the cluster has given it up: its scheduler ended, or was told to"}
    assert [o.told for o in found] == [said, said]
