"""A command of ours that stops at a known place: `python busy.py WHERE HOW engine's words ...`, a program for tests.

WHERE is module:name (in this package) of what it stops at when it is called, or - for a command that is busy anyway.
HOW: `python` sleeps there, `native` waits in machine code that no signal wakes, `stdin` waits for a line and goes on,
`cut FILE SIZE` cuts the file and goes on. Says `busy` on stderr when it is there.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from typing import Any


def stop(how: str) -> None:
    if how.startswith("cut "):
        _, file, size = how.split(" ")
        os.truncate(file, int(size))
        return
    os.write(2, b"busy\n")
    if how == "python":
        time.sleep(600)
    if how == "native":
        lock, C = ctypes.create_string_buffer(128), ctypes.CDLL(None)
        C.pthread_mutex_init(lock, None)
        C.pthread_mutex_lock(lock)
        C.pthread_mutex_lock(lock)
    if how == "stdin":
        os.read(0, 1)


if __name__ == "__main__":
    where, how, *words = sys.argv[1:]
    if where != "-":
        module, _, path = where.partition(":")
        *owner, name = path.split(".")
        holder: Any = importlib.import_module(f"qwenref.{module}")
        for part in owner:
            holder = getattr(holder, part)
        original = getattr(holder, name)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            stop(how)
            return original(*args, **kwargs)

        setattr(holder, name, stopping)
    sys.argv = ["engine", *words]
    from qwenref.tools.main import main

    sys.exit(main())
