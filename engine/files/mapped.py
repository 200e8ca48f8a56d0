"""A user's file as bytes: a regular file or one BadInput; a pipe, a device or a loop of links can not hang us."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput


def _open(path: Path) -> tuple[int, int]:
    """A descriptor of the regular file, and its size. Non-blocking, because to open a pipe waits for a writer."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadInput(f"{path}: is a {'directory' if stat.S_ISDIR(status.st_mode) else 'device or pipe'}, not a file")
    return descriptor, status.st_size


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file, fewer where it is shorter. Raises BadInput for what is no readable regular file."""
    descriptor, _ = _open(path)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(count)


def map_file(path: Path) -> NDArray[np.uint8]:
    """The whole file, read-only and memory-mapped; as large as it is now. Raises BadInput as read_head does.

    The map holds on to the file itself: replacing or deleting its name does no harm. Cutting it in place does: the
    system answers a read behind the new end with SIGBUS, which ends a command with one line (tools/signals.py).
    Readers check all offsets by the size.
    """
    descriptor, size = _open(path)
    try:
        if size == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be mapped into memory: {error}") from None
    finally:
        os.close(descriptor)
