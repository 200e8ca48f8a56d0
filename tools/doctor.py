"""engine doctor: what a bug report needs to say of this machine, and whether it computes the right bits."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..engine.aliases import MODELS, directory
from ..engine.kernels import numba_settings
from ..errors import BadInput
from . import memory
from .columns import hanging
from .terminal import json_text, one_line

# As in pyproject.toml (a test holds them together): what must be installed, and what may be.
NEEDED = ("numpy", "numba", "safetensors", "gguf", "tokenizers", "jinja2", "rich", "huggingface_hub", "threadpoolctl")
OPTIONAL = ("zstandard", "lz4", "distributed", "matplotlib", "numba-cuda", "torch", "transformers", "accelerate")
BESIDE = ("llvmlite", "cuda-bindings", "llama-cpp-python", "PyYAML")  # brought by those, or used where they are there

# What changes how Python, the libraries or this project go about their work.
MATTER = re.compile(
    r"(NUMBA|QWENREF|OMP|KMP|OPENBLAS|CUDA|PYTHON|LD|DYLD)_.*|PYTHON[A-Z]+|XDG_CACHE_HOME|HF_(ENDPOINT|HOME)|TMPDIR"
)

RIGHT = "is right"

Section = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Says what a bug report needs to say of this machine, and computes a small model whose bits
must be the same on every machine (the first time, its kernels are compiled). Exit status: 0 healthy, 1 the bits differ
or could not be computed. Your home is shown as ~; nothing is sent anywhere."""
    parser.epilog = "examples:\n  engine doctor\n  engine doctor --json > report.json"
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")


# ---- what is there


def versions() -> Section:
    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    python = f"{platform.python_version()} ({platform.python_implementation()})"
    return {"qwenref": __version__, "python": python} | {p: installed(p) for p in (*NEEDED, *BESIDE, *OPTIONAL)}


def system() -> Section:
    u = platform.uname()
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "system": " ".join(filter(None, (u.system, u.release, u.machine, libc))),
        "memory": size(memory.installed()),
    }


def processor() -> Section:
    import llvmlite.binding as llvm

    from ..engine.kernels.cpu.machine import paths

    asked = set().union(*(s.needs for s in paths.SETS.values())) | {
        "avxvnni",
        "amx-int8",
        "neon",
        "dotprod",
        "i8mm",
        "sve",
    }
    names = re.findall(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.M)
    features = sorted(asked & {name for name, there in llvm.get_host_cpu_features().items() if there})
    return {
        "name": names[0] if names else platform.machine(),
        "llvm's name": llvm.get_host_cpu_name(),
        "features": " ".join(features),
        "path": f"{paths.PATH} ({paths.why()})",
    }


def threads() -> Section:
    import numba

    from ..cores import cores
    from ..engine.kernels.cpu.machine import team  # noqa: F401  it chooses the layer

    layer = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
    given = {"of the machine": os.cpu_count(), "for this process": cores()}
    return given | {"used": numba.get_num_threads(), "layer": layer}


def card() -> Section:
    try:
        from ..engine.kernels.cuda.machine.card import describe

        return {"card": describe()}
    except BadInput as error:
        return {"card": f"none: {error}"}


def folders() -> Section:
    from ..engine.kernels.cpu.machine.compiled import store

    kept = store()
    if kept is None:
        return {"kernels": "no private folder can be had: compiled anew each time"}
    files = [p for p in kept.folder.iterdir() if p.is_file()]
    others = sum(_bytes(p) for p in kept.folder.parent.iterdir() if p.is_dir() and p != kept.folder)
    kernels = f"{kept.folder}, {len(files)} of {size(sum(p.stat().st_size for p in files))}"
    return {"kernels": kernels + (f"; {size(others)} of other versions beside it" if others else "")}


def models() -> Section:
    try:
        folder = directory()
    except BadInput as error:
        return {"folder": str(error)}
    found: Section = {"folder": str(folder)}
    for alias, model in MODELS.items():
        there = model.there()
        if there is None:
            found[alias] = "not pulled"
        elif there.name == model.part:
            found[alias] = f"{size(there.stat().st_size)} of {size(model.bytes)}; engine pull {alias} goes on"
        else:
            right = there.stat().st_size == model.bytes
            found[alias] = size(there.stat().st_size) + ("" if right else f", not the published {model.bytes:,} bytes")
    return found


def environment() -> Section:
    without = numba_settings.ignored()
    hidden = {"PYTHONSAFEPATH"} if not sys.flags.safe_path else set()  # set by this command itself
    found = {}
    for name in sorted(n for n in os.environ if MATTER.fullmatch(n) and n not in hidden):
        value = re.sub(r"//[^/@]*@", "//...@", os.environ[name])  # a name and a password in an address
        found[name] = value + (" (no effect here)" if name in without else "")
    return found


SECTIONS: dict[str, Callable[[], Section]] = {
    "versions": versions, "system": system, "processor": processor, "threads": threads, "card": card,
    "caches": folders, "models": models, "environment": environment,
}  # fmt: skip


def self_test() -> Section:
    """Precision -> the digest of what was computed, and whether it is the right one."""
    from ..engine.selftest import DIGESTS, found
    from .load import show_compiling

    return {
        p: f"{d} {RIGHT if d == DIGESTS[p] else f'is wrong; right is {DIGESTS[p]}'}" for p, d in found(show_compiling)
    }


# ---- how it is said


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _bytes(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def looked(section: Callable[[], Section]) -> Section:
    """The section, or why it cannot be had: whoever asks has something that is broken."""
    try:
        return section()
    except BadInput as error:
        return {"unknown": str(error)}
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def homeless(value: Any) -> Any:
    """The user's home is nobody's business."""
    home = os.path.expanduser("~")
    return re.sub(rf"{re.escape(home)}(?![^/:;, ])", "~", value) if isinstance(value, str) and len(home) > 1 else value


def text(report: dict[str, Section]) -> str:
    lines: list[str] = []
    for title, section in report.items():
        lines.append(title)
        for name, value in section.items():
            lines += hanging(f"  {name:20s} ", "not installed" if value is None else str(value))
    return "\n".join(one_line(line) for line in lines)


def main(args: argparse.Namespace) -> int:
    report = {title: looked(section) for title, section in SECTIONS.items()} | {"self-test": looked(self_test)}
    report = {title: {n: homeless(v) for n, v in section.items()} for title, section in report.items()}
    verdicts = report["self-test"].values()
    healthy = bool(verdicts) and all(verdict.endswith(RIGHT) for verdict in verdicts)
    if args.json:
        print(json_text(report | {"healthy": healthy}, indent=1))
    else:
        print(text(report))
    if healthy:
        print("healthy: this machine computes the bits that every machine computes", file=sys.stderr)
        return 0
    if "unknown" in report["self-test"]:
        what = "nothing can be computed here, for the reason above"
    else:
        what = "the self-test's bits are not those of every other machine: in that precision nothing computed here can "
        what += "be relied on, or compared with others"
    print(f"not healthy: {what}. Please report all of it", file=sys.stderr)
    return 1
