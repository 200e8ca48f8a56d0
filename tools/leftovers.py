"""Where things are in the making is written down in the user's cache, so that what a killed command has left beside its
destination goes with the next command that writes anything, wherever that writes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from ..beside import Beside, sweep
from ..engine.user_cache import user_cache
from ..errors import BadInput

PATIENCE_S = 2.0  # a folder of an hour ago may be on a network that is gone


@contextmanager
def written_down(place: Path) -> Iterator[None]:
    """While something is made beside this place. Removes what others have left first."""
    cache = user_cache()
    if cache is None:
        yield
        return
    notes = cache / "making"
    sweeper = Thread(target=sweep_all, args=(notes,), daemon=True)
    sweeper.start()
    sweeper.join(PATIENCE_S)
    note = notes / secrets.token_hex(8)
    with suppress(OSError):  # a cache that cannot be written
        notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_text(str(place.absolute().parent), "utf-8", "surrogateescape")
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink()


@contextmanager
def whole_file(place: Path, what: str) -> Iterator[Path]:
    """An empty file to be filled, which is at its place when the block ends: whole, or not at all.

    what: "the report", for the message. Raises BadInput where the disk refuses.
    """
    try:
        with written_down(place), Beside(place, folder=False) as beside:
            yield beside.path
            beside.move()
    except OSError as error:
        raise BadInput(f"{place}: cannot write {what}: {error.strerror}") from None


def sweep_all(notes: Path) -> None:
    """Sweeps the folders that are written down, and forgets those in which nothing is left."""
    with suppress(OSError):
        for note in notes.iterdir():
            with suppress(OSError, ValueError):  # another sweep's, or not written yet
                folder = note.read_text("utf-8", "surrogateescape")
                if folder and not sweep(Path(folder)):
                    note.unlink()
