"""Parts of a command by processes of this machine, which share its cores (--workers N).

A worker is given a part through its standard input and answers through what was its standard output, a pickle at a
time; both ends are this very package. One that is killed has taken no other part with it: its own is tried once more,
by a new worker, since what killed it may have been another program's hunger for memory. All end with the command.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from queue import SimpleQueue
from threading import Thread
from typing import Any

from ..child import own_process, take_leave_with_parent
from ..cores import SHARE, cores
from .part import Desk, Outcome, Part, Reached, attempt, failed
from .signals import end_at_a_cut_file

TRIES = 2  # of a part whose worker ends
PAUSE_S = 0.1  # between two words about how far a part is


class Worker:
    """A process that computes a part at a time. heard: where what it says goes, and None when it has ended."""

    def __init__(self, heard: SimpleQueue[tuple[Worker, Reached | Outcome | None]], share: int) -> None:
        numba = "NUMBA_NUM_THREADS"
        most = os.environ.get(numba, "")
        threads = str(min(share, int(most))) if most.isdecimal() else str(share)
        self.process = subprocess.Popen(
            own_process(__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {SHARE: str(share), numba: threads},
        )
        self.number: int | None = None  # of the part in hand
        Thread(target=self._listen, args=(heard,), daemon=True).start()

    def take(self, number: int, part: Part) -> None:
        self.number = number
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended, and that will be heard
            pickle.dump(part, self.process.stdin)
            self.process.stdin.flush()

    def _listen(self, heard: SimpleQueue[tuple[Worker, Reached | Outcome | None]]) -> None:
        assert self.process.stdout is not None
        try:
            with suppress(EOFError, pickle.UnpicklingError, ValueError, OSError):  # killed in the middle of a word
                while True:
                    heard.put((self, pickle.load(self.process.stdout)))
        finally:
            heard.put((self, None))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()


def with_workers(
    parts: Sequence[Part],
    workers: int,
    done: Callable[[int, int, int], None],
    share: int | None = None,
    whole: bool = False,
) -> list[Outcome]:
    """What became of each part, in their order. done: told (number, how much, of how much).

    share: cores of each worker; None for an equal part of all, at least one. whole: the parts are one answer, so those
    behind the first that failed are not computed and lack at the end.
    """
    workers = min(workers, len(parts))
    share = max(1, cores() // workers) if share is None else share
    heard: SimpleQueue[tuple[Worker, Reached | Outcome | None]] = SimpleQueue()
    waiting, tries = list(range(len(parts))), Counter[int]()  # a heap
    found: dict[int, Outcome] = {}
    crew: list[Worker] = []
    needed = len(parts)

    def employ(worker: Worker) -> None:
        if waiting and waiting[0] < needed:
            number = heappop(waiting)
            tries[number] += 1
            worker.take(number, parts[number])

    def keep(number: int, outcome: Outcome) -> None:
        nonlocal needed
        found[number] = outcome
        done(number, 1, 1)
        if whole and "error" in outcome.told:
            needed = min(needed, number + 1)

    try:
        for _ in range(workers):
            crew.append(Worker(heard, share))
            employ(crew[-1])
        while any(number not in found for number in range(needed)):
            worker, said = heard.get()
            number = worker.number
            if isinstance(said, Reached):
                if number is not None:
                    done(number, *said)
            elif said is not None and number is not None:
                worker.number = None
                keep(number, said)
                employ(worker)
            else:
                status = worker.process.wait()
                crew.remove(worker)
                worker.end()
                if number is not None and tries[number] < TRIES:
                    heappush(waiting, number)
                    done(number, 0, 1)
                elif number is not None:
                    keep(number, failed(how_it_ended(status)))
                if waiting and waiting[0] < needed:
                    crew.append(Worker(heard, share))
                    employ(crew[-1])
    finally:
        for worker in crew:
            worker.end()
    return [found[number] for number in range(needed)]


def how_it_ended(status: int) -> str:
    """What is said of a part whose worker has ended each time. status: Popen's."""
    if status >= 0:
        return f"the process that computed it ended with status {status}, {TRIES} times"
    with suppress(ValueError):
        name = signal.Signals(-status).name
        more = "; fewer --workers leave each of them more memory" if name == "SIGKILL" else ""
        return f"the process that computed it was killed ({name}), {TRIES} times{more}"
    return f"the process that computed it was killed by signal {-status}, {TRIES} times"


# ---- the worker's side


def serve() -> None:
    """Computes the parts that come through standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal: whoever has started us ends us
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    said = time.monotonic()

    def reply(word: Reached | Outcome) -> None:
        pickle.dump(word, replies)
        replies.flush()

    def done(so_far: int, of: int) -> None:
        nonlocal said
        if (now := time.monotonic()) - said >= PAUSE_S:
            said = now
            reply(Reached(so_far, of))

    end_at_a_cut_file(lambda line: reply(failed(line)))
    given: SimpleQueue[Any] = SimpleQueue()
    take_leave_with_parent(lambda: given.put(pickle.load(sys.stdin.buffer)))
    desk = Desk()
    while True:
        reply(attempt(given.get(), desk, done))


if __name__ == "__main__":
    serve()
