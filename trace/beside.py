"""A file or folder that appears whole or not at all: made beside its place, then moved there.

    .<name>.partial-<pid>   in the making, locked by its maker
    .<name>.older-<pid>     the folder that it replaces, between two renamings

A process that was killed leaves them. The next one to make the same thing removes the first, and puts the second back
if nothing has taken its place.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from shutil import rmtree


class Beside:
    """Makes `path`, an empty folder or file, to be filled; `move` puts it in its place. `discard` at the end, always.

    All raise OSError where the disk refuses.
    """

    def __init__(self, place: Path, *, folder: bool) -> None:
        sweep(place)
        self.place, self.folder = place, folder
        self.path, self.older = (place.with_name(f".{place.name}.{x}-{os.getpid()}") for x in ("partial", "older"))
        if folder:
            self.path.mkdir(parents=True)
        else:
            self.path.touch(exist_ok=False)
        self.lock = os.open(self.path, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            flock(self.lock, LOCK_EX | LOCK_NB)

    def move(self) -> None:
        """Into its place, over what is there; if that fails, what was there is there again."""
        if self.folder and self.place.exists():
            self.place.rename(self.older)
        try:
            self.path.rename(self.place)
        except OSError:
            if self.older.exists():
                self.older.rename(self.place)
            raise
        remove(self.older)

    def discard(self) -> None:
        """Removes what was not moved."""
        remove(self.path)
        os.close(self.lock)


def sweep(place: Path) -> None:
    """Removes what killed makers of the same thing have left beside its place."""
    left = re.compile(rf"\.{re.escape(place.name)}\.(partial|older)-(\d+)")
    with suppress(OSError):
        found = [m for name in os.listdir(place.parent) if (m := left.fullmatch(name))]
        for pid in {int(m[2]) for m in found if is_gone(int(m[2]), place.with_name(f".{place.name}.partial-{m[2]}"))}:
            older = place.with_name(f".{place.name}.older-{pid}")
            if older.exists() and not place.exists():
                older.rename(place)
            remove(older)
            remove(place.with_name(f".{place.name}.partial-{pid}"))


def is_gone(pid: int, partial: Path) -> bool:
    """No such process here, nor one in another container or on another computer that holds the lock."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        pass
    except (OSError, OverflowError):  # not ours to signal
        return False
    else:
        return False
    try:
        lock = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        flock(lock, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def remove(path: Path) -> None:
    """A file, a link or a whole folder, or nothing, if nothing is there."""
    if path.is_dir() and not path.is_symlink():
        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
