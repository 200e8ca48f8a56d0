"""A file or folder that appears whole or not at all: made beside its place, then moved there.

    .<name>.qwenref-partial-<mark>   in the making, locked by its maker
    .<name>.qwenref-older-<mark>     the folder that it replaces, between two renamings

The mark is drawn at random, so nobody stands in another's way. A process that was killed leaves them; whoever next
makes anything in that folder removes the first, and puts the second back if nothing has taken its place. That a maker
is gone is known by its lock, and on a file system without locks by a day in which nothing of it was written: process
numbers repeat, in a container at once.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from errno import EEXIST, EINVAL, ENOTEMPTY
from pathlib import Path
from shutil import rmtree

try:
    import fcntl
except ModuleNotFoundError:  # on Windows, where nobody removes what is open
    fcntl = None  # type: ignore[assignment]

HIDDEN = re.compile(r"\.(?P<name>.+)\.qwenref-(?:partial|older)-(?P<mark>[0-9a-f]{16})")
FORGOTTEN_S = 86400.0  # without a change: its maker is taken for dead where there are no locks


class Beside:
    """Makes `path`, an empty folder or file, to be filled; `move` puts it in its place. `discard` at the end, always:
    a context does it.

    All raise OSError where the disk refuses.
    """

    def __init__(self, place: Path, *, folder: bool) -> None:
        if not place.name:  # "", ".", "/"
            raise OSError(EINVAL, "a name of its own is needed for what is written", str(place))
        sweep(place.parent)
        self.place, self.folder = place, folder
        self.lock: int | None = None
        while True:
            self.path, self.older = hidden(place, secrets.token_hex(8))
            try:
                if folder:
                    self.path.mkdir(parents=True)
                else:
                    self.path.touch(exist_ok=False)
            except FileExistsError:
                continue
            _making.add(self)
            with suppress(BlockingIOError, FileNotFoundError):  # a sweep came between, and has it or has removed it
                self.lock = lock(self.path)
                if self.lock is None or os.path.samestat(os.fstat(self.lock), self.path.stat()):
                    return
            self.discard()

    def move(self) -> None:
        """Into its place, over what is there. Of two that move at once the later one stays.

        If that fails, what was there is there again.
        """
        try:
            while True:
                try:
                    self.path.replace(self.place)
                    break
                except OSError as error:
                    # Windows says only that it may not; elsewhere the number says that it was taken, if not that it is.
                    taken = error.errno in (ENOTEMPTY, EEXIST) or self.place.is_dir()
                    if not (self.folder and self.path.exists() and taken):
                        raise
                remove(self.older)  # of a turn before this one: another maker's has replaced it
                with suppress(FileNotFoundError):  # another maker's turn
                    self.place.rename(self.older)
        except OSError:
            put_back(self.place, self.path, self.older)
            raise
        remove(self.older)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Removes what was not moved."""
        put_back(self.place, self.path, self.older)
        remove(self.path)
        _making.discard(self)
        if self.lock is not None:
            held, self.lock = self.lock, None
            with suppress(OSError):
                os.close(held)


_making: set[Beside] = set()


def discard_all() -> None:
    """Removes all that this process has in the making: for who ends it from outside."""
    for beside in list(_making):
        beside.discard()


def sweep(folder: Path) -> bool:
    """Removes what killed makers have left in a folder; whether anything in the making is left there."""
    try:
        found = {(m["name"], m["mark"]) for name in os.listdir(folder) if (m := HIDDEN.fullmatch(name))}
        return sum(not swept(folder / name, mark) for name, mark in found) > 0
    except OSError:
        return False


def swept(place: Path, mark: str) -> bool:
    """Whether it was left, and is gone."""
    partial, older = hidden(place, mark)
    held = None
    try:
        held = lock(partial)
        if held is None and time.time() - newest(partial) < FORGOTTEN_S:
            return False
        put_back(place, partial, older)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # moved: what it has replaced is what was left
        pass
    else:
        remove(partial)
    finally:
        if held is not None:
            os.close(held)
    remove(older)
    return not (partial.exists() or older.exists())


def hidden(place: Path, mark: str) -> tuple[Path, Path]:
    """Where a maker with this mark makes it, and where it keeps what it replaces."""
    partial, older = (place.with_name(f".{place.name}.qwenref-{kind}-{mark}") for kind in ("partial", "older"))
    return partial, older


def lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where there are no locks. Raises BlockingIOError if another has it."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        # Network file systems lock a file only for who may write it.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except (BlockingIOError, FileNotFoundError):
        if descriptor is not None:
            os.close(descriptor)
        raise
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def newest(path: Path) -> float:
    """When anything in it was last written."""
    return max(p.lstat().st_mtime for p in (path, *path.rglob("*")))


def put_back(place: Path, partial: Path, older: Path) -> None:
    """What was to be replaced, where its maker came no further. Once it was, the older one may be gone in parts."""
    if older.exists() and partial.exists() and not place.exists():
        older.rename(place)


def remove(path: Path) -> None:
    """A file, a link or a whole folder, or nothing, if nothing is there."""
    if path.is_dir() and not path.is_symlink():
        rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
