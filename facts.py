"""What a dump's manifest says of its run: which model, by digest, and what computed it."""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from hashlib import file_digest, sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from . import __version__
from .engine.files import Checkpoint


def model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Name, size and SHA-256 of the model: of the file; of `sha256sum` lines, sorted by name, where it has several:
    all parts of a split one, a folder's weights and JSON."""
    path = checkpoint.path
    beside = [p for p in path.iterdir() if p.suffix == ".json" and p.is_file()] if path.is_dir() else []
    files = sorted({*checkpoint.files, *beside})
    digests = []
    for p in files:
        with p.open("rb") as file:
            digests.append(file_digest(file, "sha256").hexdigest())
    lines = "".join(f"{d}  {p.name}\n" for d, p in zip(digests, files, strict=True))
    digest = digests[0] if len(files) == 1 else sha256(lines.encode()).hexdigest()
    return {"name": path.name, "bytes": sum(p.stat().st_size for p in files), "sha256": digest}


def versions() -> dict[str, str]:
    """What computed: versions of this package, Python, NumPy and Numba."""
    found = {"qwenref": __version__, "python": platform.python_version(), "numpy": np.__version__}
    try:
        return found | {"numba": version("numba")}
    except PackageNotFoundError:
        return found


def run_facts(checkpoint: Checkpoint, backend: str, precision: str, ids: list[int], made: list[int]) -> dict[str, Any]:
    """What the manifest says of the run; the model's digest is added when it is there."""
    formats = Counter(t.format for t in checkpoint.tensors.values())
    scaling = checkpoint.config.spelled().get("rope_scaling")
    return {
        "engine": "qwenref",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "container": checkpoint.container,
        **({"rope_scaling": scaling} if scaling else {}),
        **({"adapters": list(checkpoint.adapters)} if checkpoint.adapters else {}),
        "formats": dict(sorted(formats.items())),
        "backend": backend,
        "precision": precision,
        "tokens": ids,
        "generated": made,
    }
