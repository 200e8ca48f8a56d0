"""Where compiled kernels are kept: a folder named after all that they were made from, so that none is ever stale.

Numba by itself looks only at the file that a kernel stands in, not at the helpers it calls (numba/numba#1833), and
keeps its files in the installed package, where they outlive an uninstall. So `set_up` comes before any kernel.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import config as numba_config

from ...user_cache import user_cache
from .simd import PATH

config: Any = numba_config  # its names come from the environment, unseen by a type checker


def digest(sources: Iterable[Path], *circumstances: str) -> str:
    """Twelve hexadecimal digits that change with any source's name or text, and with the circumstances."""
    h = sha256()
    for part in (*circumstances, *(f"{p.name}\0{p.read_text('utf-8')}" for p in sorted(sources))):
        h.update(sha256(part.encode()).digest())
    return h.hexdigest()[:12]


def machine() -> tuple[str, ...]:
    """What machine code depends on beside its source."""
    host = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    forced = f"{config.CPU_NAME} {config.CPU_FEATURES} {config.OPT} {PATH}"
    return host, forced, numba.__version__, llvmlite.__version__


def folder() -> Path:
    """A folder of the user's own: $NUMBA_CACHE_DIR or the user's cache, and the digest.

    Machine code is loaded from there, so it must be the user's and nobody else's to write. Where none such can be had,
    and for a user without a home, one in the folder for temporary files serves.
    """
    name, base = digest(Path(__file__).parent.glob("*.py"), *machine()), config.CACHE_DIR or user_cache()
    temporary = Path(tempfile.gettempdir()) / f"qwenref-{os.getuid()}-{name}"
    for path in (Path(base) / name, temporary) if base else (temporary,):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = path.lstat()
            private = S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
            if private and os.access(path, os.W_OK):
                return path
        except OSError:
            pass
    return Path(tempfile.mkdtemp(prefix="qwenref-"))


def set_up() -> None:
    """Tells Numba where to keep kernels, and how to run threads unless the user said so."""
    config.CACHE_DIR = str(folder())
    if "NUMBA_THREADING_LAYER" not in os.environ:
        # OpenMP's threads spin while they wait: on a busy machine a parallel region took 3 ms instead of 10 us.
        config.THREADING_LAYER = "workqueue"
