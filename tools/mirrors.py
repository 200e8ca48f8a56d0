"""The list of mirrors (mirrors.toml): which wheels of a package index hold the bytes of a published model."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BadInput


@dataclass(frozen=True, slots=True)
class Wheels:
    """A file in `parts` wheels; see mirrors.toml."""

    sha256: str
    project: str
    version: str
    parts: int
    part_bytes: int


def mirrors() -> list[Wheels]:
    """Every mirror of the list that $QWENREF_MIRRORS names, else of our own.

    Raises BadInput for a list that cannot be read or says something else.
    """
    path = Path(os.environ.get("QWENREF_MIRRORS") or Path(__file__).with_name("mirrors.toml"))
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}: the list of mirrors cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    rows = found.pop("wheels", [])
    if found or not isinstance(rows, list):
        raise BadInput(f"{path}: a list of mirrors has [[wheels]] and nothing else, not {', '.join(found) or 'this'}")
    return [_wheels(path, row) for row in rows]


def _wheels(path: Path, row: Any) -> Wheels:
    kinds = {f.name: {"int": int, "str": str}[str(f.type)] for f in fields(Wheels)}
    if (
        not isinstance(row, dict)
        or {k: type(v) for k, v in row.items()} != kinds
        or min(row["parts"], row["part_bytes"]) < 1
    ):
        raise BadInput(f"{path}: [[wheels]] needs {', '.join(f'{k} ({t.__name__})' for k, t in kinds.items())}")
    return Wheels(**row)
