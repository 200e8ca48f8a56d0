"""Processes of our own: this very package, nothing from the directory where the user stands, and an end with ours.

What such a process reads as its standard input we hold open, and nobody else: the system closes it when we end, also
where we are killed, and a thread of the process waits for that.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import Thread

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# -P: Python itself looks there first, for -m and -c alike. The package is then no longer found by its name where the
# caller ran it from a folder, so it is loaded from its place, and the rest from where the caller finds it.
_START = """\
import sys
sys.path[:] = {path!a}
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location({package!r}, {init!a})
sys.modules[{package!r}] = package = module_from_spec(spec)
spec.loader.exec_module(package)
from runpy import run_module
run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def own_process(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package with these arguments, as `python -m` would."""
    start = _START.format(
        path=[str(place) for place in sys.path if place],  # "": wherever the user stands
        package=__package__.partition(".")[0],
        init=str(Path(__file__).with_name("__init__.py")),
        module=module,
    )
    return [sys.executable, "-P", "-c", start, *arguments]


def run_to_the_end(module: str, *arguments: str, cwd: str | None = None, **environment: str) -> tuple[int, str]:
    """Runs a module of anyone's as own_process does: its exit status, and its stderr. Ended if we are interrupted."""
    ours = os.pipe()
    process = subprocess.Popen(
        own_process(__name__, module, *arguments),
        stdin=ours[0],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=cwd,
        env=os.environ | environment,
    )
    try:
        assert process.stderr is not None
        with process.stderr as pipe:
            said = pipe.read()
        return process.wait(), said
    finally:
        process.kill()
        process.wait()
        for end in ours:
            os.close(end)


def end_with_parent() -> None:
    """To be called once, when all that is meant has been read from standard input."""

    def wait() -> None:
        if not os.read(0, 1 << 16):
            raise EOFError

    take_leave_with_parent(wait)


def take_leave_with_parent(read: Callable[[], object]) -> None:
    """Reads from standard input on a thread, again and again; this process ends where that ends, with EOFError.

    Linux is asked for it too (when the parent's thread ends that has started us: its main one): a thread cannot end a
    process whose interpreter is inside a long regular expression.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def listen() -> None:
        try:
            while True:
                read()
        except EOFError:
            pass
        except BaseException:  # of who has called us: it is told, since nobody can catch it
            traceback.print_exc()
        finally:
            os._exit(1)

    Thread(target=listen, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
