"""Whole or not at all, also where the process is killed: nothing of it stays, and nothing of another's is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwenref.trace.beside import Beside, sweep

# Makes sys.argv[2] and is killed: at once ("making"), or between the two renamings ("moving").
KILLED = """
import os, signal, sys
from pathlib import Path
from qwenref.trace.beside import Beside
when, place, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "folder"
b = Beside(place, folder=folder)
if folder:
    (b.path / "new").touch()
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if when == "waiting":
    print(flush=True); sys.stdin.read()
if when == "moving":
    rename = Path.rename
    Path.rename = lambda self, to: kill() if self == b.path else rename(self, to)
    b.move()
kill()
"""


def killed(when: str, place: Path, kind: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", KILLED, when, str(place), kind], check=False)
    assert done.returncode == -signal.SIGKILL
    return sorted(p.name.rstrip("0123456789") for p in place.parent.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_has_left_goes(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "x.gguf"
    assert killed("making", place, kind) == [".x.gguf.partial-"]
    b = Beside(place, folder=kind == "folder")
    assert list(tmp_path.iterdir()) == [b.path]
    b.move()
    b.discard()
    assert list(tmp_path.iterdir()) == [place]


def test_what_was_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    place = tmp_path / "dump"
    place.mkdir()
    (place / "old").touch()
    assert killed("moving", place, "folder") == [".dump.older-", ".dump.partial-"]
    sweep(place)
    assert list(tmp_path.rglob("*")) == [place, place / "old"]


def test_what_others_are_making_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "x"
    other = subprocess.Popen(
        [sys.executable, "-c", KILLED, "waiting", str(place), "folder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    theirs, mine_of_another_name = tmp_path / f".x.partial-{other.pid}", tmp_path / f".xy.partial-{2**22}"
    mine_of_another_name.touch()
    sweep(place)
    assert theirs.is_dir()

    def nobody(pid: int, signal: int) -> None:
        raise ProcessLookupError

    with monkeypatch.context() as m:  # as seen from another container: no such process, but the lock is held
        m.setattr(os, "kill", nobody)
        sweep(place)
    assert theirs.is_dir()
    other.communicate()
    sweep(place)
    assert list(tmp_path.iterdir()) == [mine_of_another_name]
