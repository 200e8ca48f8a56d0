"""Parts of a command as tasks of a Dask cluster (--scheduler ADDRESS; docs.dask.org): its workers may be on many
machines, and what a worker had in hand that ends is computed by another.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

from .. import __version__
from ..cores import cores
from ..errors import BadInput
from .part import Desk, Outcome, Part, attempt, failed

PATIENCE_S = 10  # for the scheduler to answer, and then for a worker to be there
EXTRA = "--scheduler needs the package distributed; get it with: pip install 'qwenref[cluster]'"


def on_cluster(
    parts: Sequence[Part], address: str, done: Callable[[int, int, int], None], whole: bool = False
) -> list[Outcome]:
    """What became of each part, in their order. done: told (number, how much, of how much).

    whole: the parts are one answer, so those behind the first that failed are not waited for and lack at the end.
    Raises BadInput if there is no scheduler at the address, or no worker at the scheduler.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise BadInput(EXTRA) from None
    for name in [n for n in logging.root.manager.loggerDict if n.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what there is to say is said here, on one line
    try:
        client = Client(address, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"--scheduler {address}: no scheduler answers there ({_line(error)})") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError:
            raise BadInput(f"--scheduler {address}: it has no worker; start one: dask worker {address}") from None
        run = secrets.token_hex(8)
        tasks = [
            client.submit(computed, part, __version__, run, key=f"qwenref-{run}-{number}", pure=False)
            for number, part in enumerate(parts)
        ]
        numbers = {task.key: number for number, task in enumerate(tasks)}
        found: dict[int, Outcome] = {}
        needed = len(parts)
        try:
            for task in as_completed(tasks, loop=client.loop):
                number = numbers[task.key]
                found[number] = _outcome(task)
                done(number, 1, 1)
                if whole and "error" in found[number].told:
                    needed = min(needed, number + 1)
                if all(number in found for number in range(needed)):
                    break
        finally:
            if len(found) < len(tasks):
                with suppress(Exception):  # who is interrupted has no use for what the cluster says of it
                    client.cancel(tasks)
        return [found[number] for number in range(needed)]


def _outcome(task: Any) -> Outcome:
    """What a task gave that has come to its end."""
    from distributed import CancelledError, KilledWorker

    try:
        found: Outcome = task.result()
        return found
    except KilledWorker:
        return failed("every worker of the cluster that took it has ended; is there memory for it?")
    except CancelledError:
        return failed("the cluster has given it up: its scheduler ended, or was told to")
    except Exception as error:  # of a worker that could not begin: another package there, or none
        return failed(f"a worker of the cluster could not compute it: {type(error).__name__}: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# ---- the worker's side

# A worker may run many tasks at once, in threads. A part computes with all of them, so it is alone.
ALONE = Lock()


def computed(part: Part, version: str, run: str) -> Outcome:
    """The task. version: of the package where the command runs. run: one word for all tasks of a command."""
    from distributed import get_worker

    if version != __version__:
        return failed(f"a worker of the cluster has qwenref {__version__}, and this is {version}; install one of them")
    worker: Any = get_worker()
    with ALONE:
        held = getattr(worker, "qwenref_desk", None)
        if held is None or held[0] != run:  # what an earlier command has opened may have been replaced since
            held = run, Desk(max(1, min(worker.state.nthreads, cores())))
            worker.qwenref_desk = held
        return attempt(part, held[1], lambda so_far, of: None)
