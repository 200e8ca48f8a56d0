"""Numba's settings come from this project alone: not from a file where the user stands, nor from a shell meant for
another program.

Numba reads `.numba_config.yaml` in the working directory, and every NUMBA_* variable, when it is imported and again
whenever it compiles. Its module of settings is therefore loaded here, without either, and never reads anew. A program
that has imported Numba before keeps the settings that it has.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from ...errors import BadInput

MOST_THREADS = 1024
LAYERS = ("workqueue", "omp", "tbb", "default", "safe", "threadsafe", "forksafe")

# What a user may set: whether a value will do, and what would. None of it changes a result.
USERS: dict[str, tuple[Callable[[str], bool], str]] = {
    "NUMBA_NUM_THREADS": (
        lambda v: v.isascii() and v.isdigit() and 1 <= int(v[:9]) <= MOST_THREADS,
        f"a number of threads, 1 to {MOST_THREADS}",
    ),
    "NUMBA_THREADING_LAYER": (LAYERS.__contains__, f"one of {', '.join(LAYERS)}"),
    "NUMBA_CPU_NAME": (str.isprintable, "LLVM's name of a processor to compile for"),
    "NUMBA_CPU_FEATURES": (str.isprintable, "LLVM's features of that processor, as in +avx2,-avx512f"),
    "NUMBA_ENABLE_CUDASIM": (("0", "1").__contains__, "1 for Numba's simulator of a card, or 0"),
}
# Where compiled kernels are kept: read here (cpu/machine/compiled.py), and not by Numba.
CACHE_DIR = "NUMBA_CACHE_DIR"
# Intel's vector functions are not loaded: they are found by name, and they are other functions on another machine.
OURS = {"NUMBA_DISABLE_INTEL_SVML": "1"}

CONFIGS = ("numba.core.config", "numba.cuda.core.config")  # the second is numba-cuda's


def settings() -> dict[str, str]:
    """What Numba is told: the variables that a user may set, as far as they are set, and our own.

    Raises BadInput for a value that Numba would complain of or fall over.
    """
    chosen = {name: os.environ[name] for name in USERS if os.environ.get(name)}
    for name, value in chosen.items():
        will_do, what = USERS[name]
        if not will_do(value):
            raise BadInput(f"{name}={value}: give {what}, or unset it")
    return chosen | OURS


def ignored() -> list[str]:
    """The names of Numba's variables that are set and have no effect. (numba-cuda reads some of its own elsewhere.)"""
    known = (*USERS, CACHE_DIR)
    return sorted(n for n in os.environ if n.startswith("NUMBA_") and n not in known and "CUDA" not in n)


@contextmanager
def _only(told: dict[str, str]) -> Iterator[None]:
    """In here there are no other NUMBA_* variables, and no YAML to read a file with."""
    before = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    yaml = sys.modules.get("yaml")
    try:
        for name in before:
            del os.environ[name]
        os.environ.update(told)
        sys.modules["yaml"] = None  # type: ignore[assignment]  # `import yaml` fails
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is a file, and no YAML
            yield
    finally:
        for name in told:
            os.environ.pop(name, None)
        os.environ.update(before)
        del sys.modules["yaml"]
        if yaml is not None:
            sys.modules["yaml"] = yaml


class _Find(MetaPathFinder):
    """Finds Numba's modules of settings where they are, and loads them as above."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in CONFIGS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with _only(settings()):
                load(module)
            module._config_fname = ""  # type: ignore[attr-defined]  # no file has that name
            module.reload_config = lambda: None  # type: ignore[attr-defined]  # the compiler calls it

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From here on Numba is imported with these settings, whoever imports it first."""
    if not any(isinstance(finder, _Find) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Find())
