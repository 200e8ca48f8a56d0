"""One safetensors file that holds a whole dump; its metadata are the facts of the run."""

from __future__ import annotations

from pathlib import Path

from ...engine.files.safetensors_header import read_tensors
from .array import BYTES, Array, Arrays, view


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix == ".safetensors"


def read(path: Path) -> Arrays:
    """Every tensor, mapped. Raises BadInput if the file is not exactly what the format asks for."""
    held, about = read_tensors(path, BYTES)
    found = []
    for name, (kind, shape, data) in held.items():
        where = f"{path}: {name:.80}"
        found.append(Array(name, where, kind, view(data, kind, shape, where)))
    return Arrays(path, tuple(found), about)
