"""A progress bar on a terminal, silence in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .terminal import one_line


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "") -> Iterator[Callable[..., None]]:
    """Yields a function that takes how much is done so far, and of how much if that is known only then; the bar is on
    stderr and goes at the end.

    unit: "bytes" shows sizes and speed, "parts" tenths of one, anything else a plain count.
    rich is imported only where there is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda *done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    count = "{task.completed:.1f}/{task.total}" if unit == "parts" else "{task.completed:.0f}/{task.total:.0f}"
    numbers = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [TextColumn(count)]
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *numbers, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(one_line(label), total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)
