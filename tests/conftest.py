"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

import qwenref.engine.kernels  # noqa: F401  Numba's settings, before any test imports Numba

settings.register_profile("untimed", deadline=None)  # how long an example takes says more of the machine's load
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's workers share the cores: each computes with its part of them. No result depends on the count.

    A shell's background job ignores Ctrl-C, and so do its children: the commands that are tested must not.
    """
    for number in (signal.SIGINT, signal.SIGQUIT) if sys.platform != "win32" else ():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        import numba

        numba.set_num_threads(max(1, numba.config.NUMBA_NUM_THREADS // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is slow is asked for by name: the rest of the matrices (make matrix), the other engines (make oracle)."""
    for name in ("matrix", "oracle"):
        if name not in config.option.markexpr:
            rest = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=rest)
            items[:] = [item for item in items if not item.get_closest_marker(name)]


@pytest.fixture(autouse=True, scope="session")
def one_blas_thread() -> Iterator[None]:
    """Of each of pytest's processes: several, with threads that spin while they wait, take each other's cores."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture
def score(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """score(table, row, **counts): counts to add up over all tests and to print at the end, under xdist too."""

    def add(table: str, row: str, **counts: int) -> None:
        record_property("score", [table, row, counts])

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The tables of what tests gave to `score`; and that there is more, which pytest-xdist does not count."""
    if "matrix" not in config.option.markexpr:
        terminalreporter.line("Of matrices of tests a part ran, if any (tests/thinned.py); the rest: make matrix.")
    if "oracle" not in config.option.markexpr:
        terminalreporter.line("Nothing was compared with engines that have to be installed: make oracle.")
    tables: dict[str, dict[str, Counter[str]]] = {}
    for report in (r for state in ("passed", "failed") for r in terminalreporter.getreports(state)):
        for table, row, counts in (
            x for name, x in report.user_properties if name == "score" and report.when == "call"
        ):
            tables.setdefault(table, {}).setdefault(row, Counter()).update(counts)
    for table, rows in tables.items():
        names = list(dict.fromkeys(name for counts in rows.values() for name in counts))
        terminalreporter.section(table)
        wide = max(map(len, [*rows, "all"]))
        terminalreporter.line(" " * wide + "".join(f"{name:>16}" for name in names))
        for row, counts in [*sorted(rows.items()), ("all", sum(rows.values(), Counter()))]:
            terminalreporter.line(f"{row:{wide}}" + "".join(f"{counts[name]:16d}" for name in names))


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The 0.5B model: $QWENREF_TEST_MODEL, or what `engine pull` put into its place."""
    from qwenref.engine.aliases import resolve
    from qwenref.errors import BadInput

    if named := os.environ.get("QWENREF_TEST_MODEL"):
        return Path(named)
    try:
        return resolve(None)
    except BadInput as error:
        pytest.skip(f"the 0.5B model is not here: {error}")
