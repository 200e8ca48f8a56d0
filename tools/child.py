"""A program of our own choosing as a child that ends with its parent, however the parent ends.

What a child reads as its standard input the parent holds open, and nobody else: the system closes it with the parent,
also where that is killed, and a thread of the child waits for it. Run as a file, so that a child needs nothing of this
package on its path: `python -P child.py MODULE ARGUMENT ...`.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from threading import Thread


def run(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs a module as `python -m` does, without the working directory on its path: its exit status and its stderr.

    Ended, if an exception comes between.
    """
    ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, module, *arguments],
        stdin=ours[0],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | (environment or {}),
    )
    try:
        assert process.stderr is not None
        said = process.stderr.read()
        return process.wait(), said
    finally:
        process.kill()
        process.wait()
        for end in ours:
            os.close(end)


def end_with_parent() -> None:
    """To be called once by the child, when it has read from its standard input what it is to read."""

    def wait() -> None:
        while os.read(0, 1 << 16):
            pass
        os._exit(1)

    Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
