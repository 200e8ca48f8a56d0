"""Where compiled kernels are kept: a folder named after all that they were made from, so that none is ever stale, and
sealed, so that none is ever a stranger's.

Numba by itself looks only at the file that a kernel stands in, not at the helpers it calls (numba/numba#1833), keeps
its files in the installed package, where they outlive an uninstall, and unpickles whatever lies there.
"""

from __future__ import annotations

import hmac
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from hashlib import sha256
from operator import or_
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import config as numba_config
from numba import njit
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from .....errors import BadInput
from ....user_cache import user_cache
from ...numba_settings import CACHE_DIR
from .paths import PATH

config: Any = numba_config  # its names come from the environment, unseen by a type checker

SEAL = 32  # bytes of HMAC-SHA256 in front of a kernel
LARGEST = 1 << 26  # bytes of a kernel's file; ours have some 20 KB


def sources() -> list[Path]:
    """What machine code is made from: all of the CPU backend, at any depth, and how Numba is set up."""
    kernels = Path(__file__).parents[2]
    return [*(kernels / "cpu").rglob("*.py"), kernels / "numba_settings.py"]


def digest(sources: Iterable[Path], *circumstances: str) -> str:
    """Twelve hexadecimal digits that change with any source's name or text, and with the circumstances."""
    h = sha256()
    for part in (*circumstances, *(f"{p.parent.name}/{p.name}\0{p.read_text('utf-8')}" for p in sorted(sources))):
        h.update(sha256(part.encode()).digest())
    return h.hexdigest()[:12]


def machine() -> tuple[str, ...]:
    """What machine code, and the pickle that it lies in, depend on beside its source."""
    host = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    forced = f"{config.CPU_NAME} {config.CPU_FEATURES} {config.OPT} {PATH}"
    return host, forced, numba.__version__, llvmlite.__version__, str(sys.implementation.cache_tag)


# ---- the folder, and the key of its seals


def _own(status: os.stat_result, others: int) -> bool:
    """Whether what was looked at is this user's, and nobody else has those bits of its mode.

    Where there are no user numbers, on Windows, modes say nothing either: there a profile, in which the cache and the
    temporary files lie, is closed to other users.
    """
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & others)


def _open(path: Path, *flags: str) -> int:
    """A descriptor to read bytes from, with those flags of the module os that this system has."""
    return os.open(path, reduce(or_, (getattr(os, f, 0) for f in ("O_NONBLOCK", "O_BINARY", *flags)), os.O_RDONLY))


def private(path: Path) -> bool:
    """Whether there is a folder, made if need be, that is this user's own and nobody else's to write."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError:
        return False
    return S_ISDIR(status.st_mode) and _own(status, 0o022) and os.access(path, os.W_OK)


def _own_folders() -> Iterable[Path]:
    """Where this user's kernels and key may lie: in the user's cache, else among the temporary files.

    Not among those of the working directory, where Python looks for a place last: what is unpacked there belongs to
    the user too.
    """
    if cache := user_cache():
        yield cache / "kernels"
    temporary = tempfile.gettempdir()
    with suppress(OSError):
        if not os.path.samefile(temporary, os.curdir):
            yield Path(temporary) / (f"qwenref-{os.getuid()}" if hasattr(os, "getuid") else "qwenref")


def _read_key(path: Path) -> bytes | None:
    """The key there, if it is one, and this user's secret."""
    try:
        with open(_open(path, "O_NOFOLLOW"), "rb") as file:
            status = os.fstat(file.fileno())
            secret = S_ISREG(status.st_mode) and _own(status, 0o077)
            key = file.read(SEAL + 1)
    except OSError:
        return None
    return key if secret and len(key) == SEAL else None


def _key(folder: Path) -> bytes | None:
    """This user's key, made at the first call; None where it cannot be kept. Two first processes agree on one."""
    path = folder / "key"
    if (key := _read_key(path)) is None:
        try:
            descriptor, beside = tempfile.mkstemp(dir=folder, prefix="key-")  # readable by the user alone
            try:
                with open(descriptor, "wb") as file:
                    file.write(os.urandom(SEAL))
                with suppress(OSError):  # another process was first, or the file system has no links
                    os.link(beside, path)
                if (key := _read_key(path)) is None:  # something else lies there
                    os.replace(beside, path)
                    key = _read_key(path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(beside)
        except OSError:
            return None
    return key


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of compiled kernels, and the key that seals them.

    A kernel is machine code in a pickle: who reads it runs it. The seal is an HMAC with a key that never leaves the
    user's own cache, so a folder that came from elsewhere (unpacked, shared, named by $NUMBA_CACHE_DIR) is passed over
    as a damaged one is, even where every file in it belongs to the user. It does not guard against who can read the
    user's files.
    """

    folder: Path
    key: bytes

    def seal(self, name: str, data: bytes) -> bytes:
        return hmac.digest(self.key, f"{self.folder.name}/{name}\0".encode() + data, "sha256")

    def read(self, name: str) -> bytes | None:
        """What was written by that name; None where there is nothing, or anything else."""
        try:
            with open(_open(self.folder / name), "rb") as file:
                data = file.read(LARGEST)
        except OSError:
            return None
        return data[SEAL:] if hmac.compare_digest(data[:SEAL], self.seal(name, data[SEAL:])) else None

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all; where there is no room, the next process compiles again."""
        with suppress(OSError):
            descriptor, beside = tempfile.mkstemp(dir=self.folder, prefix="new-")
            try:
                with open(descriptor, "wb") as file:
                    file.write(self.seal(name, data) + data)
                os.replace(beside, self.folder / name)
            except OSError:
                os.unlink(beside)


@lru_cache(maxsize=1)
def store() -> Store | None:
    """This process's: in $NUMBA_CACHE_DIR, if that is an absolute path, else beside the key. None: nothing is kept."""
    name = digest(sources(), *machine())
    chosen = Path(os.environ.get(CACHE_DIR, ""))
    for own in filter(private, _own_folders()):
        if key := _key(own):
            for folder in (chosen / name, own / name) if chosen.is_absolute() else (own / name,):
                if private(folder):
                    return Store(folder, key)
    return None


# ---- kernels from there


class _Kept(NullCache):
    """What Numba asks before it compiles one function, and tells afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        assert function.__closure__ is None  # its values would have to be part of the name
        code = function.__code__
        self._name = function.__qualname__
        self._made_of = function.__module__, self._name, code.co_firstlineno, code.co_code

    def _file(self, signature: Any, codegen: Any) -> str:
        whole = repr((*self._made_of, str(signature), codegen.magic_tuple()))
        return f"{self._name}-{sha256(whole.encode()).hexdigest()[:16]}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        kept = store()
        data = kept and kept.read(self._file(sig, target_context.codegen()))
        return CompileResult._rebuild(target_context, *pickle.loads(data)) if data else None

    def save_overload(self, sig: Any, data: Any) -> None:
        kept = store()
        if kept and not data.library.has_dynamic_globals:  # addresses of this process
            kept.write(self._file(sig, data.library.codegen), dumps(data._reduce()))


def c_function(function: Callable[..., None], signature: Any) -> Any:
    """numba.cfunc, kept here: `address`, and `cache_hits`, 0 if it was compiled now."""
    made: Any = CFunc(function, (signature.args, signature.return_type), {}, {"error_model": "numpy"})
    made._cache = _Kept(function)
    made.compile()
    return made


class Jitted:
    """numba.njit of one signature, compiled when first called or asked for, then kept here."""

    def __init__(self, function: Callable[..., Any], signature: str, **options: Any) -> None:
        self.function, self._signature, self._options = function, signature, options

    @cached_property
    def _compiled(self) -> Any:
        made = njit(**self._options)(self.function)
        made._cache = _Kept(self.function)
        made.compile(self._signature)
        made.disable_compile()
        return made

    def compile(self) -> bool:
        """Whether it had to be compiled now, because it was not kept."""
        there = "_compiled" in vars(self)
        return not (self._compiled.stats.cache_hits or there)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled(*arguments)


def jitted(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Jitted]:
    return lambda function: Jitted(function, signature, **options)


def choose_threads() -> None:
    """How Numba runs threads, unless the user said so. Raises BadInput where what the user said cannot be had."""
    if not os.environ.get("NUMBA_THREADING_LAYER"):
        # OpenMP's threads spin while they wait: on a busy machine a parallel region took 3 ms instead of 10 us.
        config.THREADING_LAYER = "workqueue"
        return
    try:
        numba.get_num_threads()
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"NUMBA_THREADING_LAYER={config.THREADING_LAYER} cannot be had here ({reason})") from None
