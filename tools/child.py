"""Processes of our own: this very package, and nothing from the directory where the user stands."""

from __future__ import annotations

import sys
from pathlib import Path

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
        init=str(Path(__file__).parents[1] / "__init__.py"),
        module=module,
    )
    return [sys.executable, "-P", "-c", start, *arguments]
