"""Parts for tests of who computes them (tools/workers.py, tools/cluster.py). Workers import them: by the name
qwenref.tests.parts, which holds everywhere.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Event, Thread

from qwenref.cores import cores
from qwenref.tools.part import Desk, Outcome, failed


@dataclass(frozen=True)
class Stalled:
    """A part that comes to its end only when so many processes have been killed over it. place: an empty folder."""

    asked: dict[str, str]
    place: Path
    lives: int

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        tries = len(os.listdir(self.place))
        if tries < self.lives:
            done(1, 2)
            (self.place / str(os.getpid())).touch()
            time.sleep(600)
        return Outcome(0, {"result": tries}, (str(tries),))


@contextmanager
def killing(place: Path) -> Iterator[list[int]]:
    """In here every process that stalls there is killed, from outside, as the system does it that lacks memory."""
    over, killed = Event(), list[int]()

    def look() -> None:
        while not over.wait(0.05):
            for pid in (int(name) for name in os.listdir(place)):
                if pid not in killed:
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)

    thread = Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Failing:
    """A part that fails from the third on, after so many seconds."""

    asked: dict[str, str]
    after_s: float

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        time.sleep(self.after_s)
        number = self.asked["n"]
        return Outcome(0, {"result": number}) if int(number) < 2 else failed(number)


@dataclass(frozen=True)
class Share:
    """What a worker has to compute with."""

    asked: dict[str, str]

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        from qwenref.engine.kernels import numba_settings

        print("this is no reply")
        told = {"cores": cores(), "numba": numba_settings.settings()["NUMBA_NUM_THREADS"], "desk": desk.threads}
        return Outcome(0, {"result": told})


@dataclass(frozen=True)
class Cut:
    """A part whose file is cut while it is mapped. place: of the file."""

    asked: dict[str, str]
    place: Path

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        self.place.write_bytes(bytes(1 << 16))
        with self.place.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
            os.truncate(self.place, 4096)
            return Outcome(0, {"result": mapped[1 << 15]})
