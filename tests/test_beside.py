"""Whole or not at all, also where the process is killed: nothing of it stays, and nothing of another's is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwenref import beside
from qwenref.beside import FORGOTTEN_S, HIDDEN, Beside, discard_all, hidden, sweep
from qwenref.tools import leftovers

# Makes sys.argv[2] and is killed: at once ("making"), or between the two renamings ("moving").
KILLED = """
import os, signal, sys
from pathlib import Path
from qwenref.beside import Beside
when, place, folder = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "folder"
b = Beside(place, folder=folder)
if folder:
    (b.path / "new").touch()
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if when == "waiting":
    print(flush=True); sys.stdin.read()
if when == "moving":
    replace = Path.replace
    Path.replace = lambda self, to: kill() if self == b.path and not place.exists() else replace(self, to)
    b.move()
kill()
"""


def kinds(folder: Path) -> list[str]:
    """The names in a folder, without marks."""
    return sorted(p.name[:-16] if HIDDEN.fullmatch(p.name) else p.name for p in folder.iterdir())


def killed(when: str, place: Path, kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, when, str(place), kind], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_has_left_goes(kind: str, tmp_path: Path) -> None:
    """With whatever is made next in that folder."""
    killed("making", tmp_path / "x.gguf", kind)
    killed("making", tmp_path / "y", kind)
    assert kinds(tmp_path) == [".y.qwenref-partial-"]
    place = tmp_path / "x.gguf"
    with Beside(place, folder=kind == "folder") as b:
        assert list(tmp_path.iterdir()) == [b.path]
        b.move()
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_has_left_goes_with_what_is_made_elsewhere(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "user_cache", lambda: tmp_path / "cache")
    (there := tmp_path / "there").mkdir()
    with leftovers.written_down(there / "x"):
        killed("making", there / "x", kind)
        left = next((tmp_path / "cache" / "making").iterdir()).read_bytes()
    assert kinds(there) == [".x.qwenref-partial-"]
    (tmp_path / "cache" / "making" / "1").write_bytes(left)  # which a killed process does not take away
    (tmp_path / "cache" / "making" / "2").write_bytes(bytes(tmp_path / "no such folder"))
    with leftovers.written_down(tmp_path / "elsewhere"):
        assert kinds(there) == []
        assert len(list((tmp_path / "cache" / "making").iterdir())) == 1
    assert list((tmp_path / "cache" / "making").iterdir()) == []


def test_a_place_that_cannot_be_written_down_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file" / "cache", None):
        monkeypatch.setattr(leftovers, "user_cache", lambda cache=cache: cache)
        with leftovers.written_down(tmp_path / "x"), Beside(tmp_path / "x", folder=False) as b:
            b.move()
        (tmp_path / "x").unlink()


def test_what_was_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    place = tmp_path / "dump"
    place.mkdir()
    (place / "old").touch()
    killed("moving", place, "folder")
    assert kinds(tmp_path) == [".dump.qwenref-older-", ".dump.qwenref-partial-"]
    sweep(tmp_path)
    assert list(tmp_path.rglob("*")) == [place, place / "old"]


def test_what_was_replaced_is_not_put_back(tmp_path: Path) -> None:
    """Its maker was killed while it removed it, and the user has removed the new one."""
    _, older = hidden(tmp_path / "dump", "0" * 16)
    older.mkdir()
    (older / "half of the old one").touch()
    assert not sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def waiting(place: Path) -> subprocess.Popen[bytes]:
    other = subprocess.Popen(
        [sys.executable, "-c", KILLED, "waiting", str(place), "folder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    return other


def test_what_others_are_making_stays(tmp_path: Path) -> None:
    place = tmp_path / "x"
    other = waiting(place)
    strangers = [tmp_path / ".x.partial-1", tmp_path / ".x.qwenref-partial-1", tmp_path / "x.qwenref-partial-"]
    for stranger in strangers:
        stranger.touch()
    with Beside(place, folder=True) as b:  # the same thing, at once
        (b.path / "mine").touch()
        assert sweep(tmp_path) and len(kinds(tmp_path)) == 5
        b.move()
    assert [p.name for p in place.iterdir()] == ["mine"]
    other.communicate()
    assert not sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([place, *strangers])


def test_a_name_that_exists_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter(["0" * 16, "0" * 16, "1" * 16])
    monkeypatch.setattr(beside.secrets, "token_hex", lambda count: next(marks))
    with Beside(tmp_path / "x", folder=False) as a, Beside(tmp_path / "x", folder=False) as b:
        assert a.path.name.endswith("0" * 16) and b.path.name.endswith("1" * 16)


def test_a_sweep_that_comes_before_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partial thing that nobody holds yet looks left: its maker sees that it has gone, or goes, and makes another."""
    before: list[Callable[[Path], object]] = [lambda path: path.unlink(), lambda path: held.append(taken(path))]
    held: list[int | None] = []
    taken = beside.lock

    def late(path: Path) -> int | None:
        if before:
            before.pop(0)(path)
        return taken(path)

    monkeypatch.setattr(beside, "lock", late)
    with Beside(tmp_path / "x", folder=False) as b:
        assert not before and list(tmp_path.iterdir()) == [b.path]
        monkeypatch.undo()
        assert sweep(tmp_path)
    os.close(held[0] or 0)


@pytest.mark.parametrize("folder", [True, False])
def test_makers_of_the_same_thing_at_once(folder: bool, tmp_path: Path) -> None:
    """Each ends well, one of theirs is there, whole, and nothing else."""
    place = tmp_path / "x"

    def make(i: int) -> None:
        with Beside(place, folder=folder) as b:
            if folder:
                for part in range(3):
                    (b.path / f"{i}-{part}").touch()
            else:
                b.path.write_text(str(i) * 3)
            b.move()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(100)))
    assert list(tmp_path.iterdir()) == [place]
    if folder:
        assert len({p.name.partition("-")[0] for p in place.iterdir()}) == 1 and len(list(place.iterdir())) == 3
    else:
        assert place.read_text() in {str(i) * 3 for i in range(100)}


@pytest.mark.parametrize("folder", [True, False])
def test_without_locks_a_day_must_pass(folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system, or Windows."""
    place = tmp_path / "x"
    monkeypatch.setattr(beside, "lock", lambda path: None)
    b = Beside(place, folder=folder)
    if folder:
        (b.path / "layer-0").mkdir()
        (b.path / "layer-0" / "a.bin").touch()
    now = beside.time.time()
    for late, there in ((0, True), (FORGOTTEN_S - 60, True), (FORGOTTEN_S + 60, False)):
        monkeypatch.setattr(beside.time, "time", lambda late=late: now + late)
        assert sweep(tmp_path) == b.path.exists() == there
    b.discard()


def test_who_ends_the_process_from_outside_removes_all(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "old").touch()
    made = [Beside(tmp_path / name, folder=name == "dump") for name in ("dump", "file")]
    (tmp_path / "dump").rename(made[0].older)  # it is between its two renamings
    discard_all()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dump", "old"]
    for b in made:
        b.discard()
    with pytest.raises(OSError, match=r"No such file"):
        made[0].move()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dump", "old"]
