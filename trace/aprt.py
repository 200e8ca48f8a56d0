"""APRT, aprender's stage file: `APRT`, u32 layer (0xFFFFFFFF: whole model), u32 count, float32 values; little-endian.

The file says neither shape nor stage nor positions: its path and the manifest (trace/store.py) do.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

MAGIC = b"APRT"
WHOLE_MODEL = 0xFFFFFFFF
MAX_COUNT = 0xFFFFFFFF
HEADER = Struct("<4sII")
_SLAB = 1 << 20  # values converted at a time


@dataclass(frozen=True, slots=True)
class Stagefile:
    """layer: None for the whole model. values: float32, 1-D, read-only, mapped from the file."""

    layer: int | None
    values: NDArray[np.float32]


def write(path: str | PathLike[str], layer: int | None, values: NDArray[np.floating]) -> str:
    """Writes a new file and returns its SHA-256. float32 is kept bit for bit (NaN payloads, -0.0); float64 is rounded.

    values: any shape and strides, taken in row-major order, a slab at a time. Raises BadInput for more values than the
    count can say (scores of a very long prompt), OSError as the system has it.
    """
    if values.size > MAX_COUNT:
        raise BadInput(
            f"{path}: {values.size} values do not fit an APRT file, whose count is 32 bits ({MAX_COUNT}); "
            "trace fewer positions (--positions) or a shorter prompt"
        )
    head = HEADER.pack(MAGIC, WHOLE_MODEL if layer is None else layer, values.size)
    digest = sha256(head)
    with Path(path).open("xb") as file:
        file.write(head)
        rows = values.reshape(1) if values.ndim == 0 else values
        step = max(1, _SLAB * len(rows) // max(1, values.size))
        for i in range(0, len(rows), step):
            slab = np.ascontiguousarray(rows[i : i + step], "<f4").data.cast("B") if values.size else b""
            digest.update(slab)
            file.write(slab)
    return digest.hexdigest()


def read(path: str | PathLike[str]) -> Stagefile:
    """Opens a file without reading its values. Raises BadInput if it is not exactly one APRT header and its values."""
    path = Path(path)
    try:
        if not path.is_file():
            raise BadInput(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    if not MAGIC.startswith(head[:4]):
        raise BadInput(f"{path}: not an APRT stage file (it begins with {head[:4]!r}, not {MAGIC!r})")
    if len(head) < HEADER.size:
        raise BadInput(f"{path}: {len(head)} bytes are too short for an APRT header of {HEADER.size}")
    _, layer, count = HEADER.unpack(head)
    body = size - HEADER.size
    if body != 4 * count:
        what = "is truncated" if body < 4 * count else "has trailing bytes"
        raise BadInput(f"{path}: {what}: the header counts {count} float32 ({4 * count} bytes), {body} bytes follow it")
    values = np.memmap(path, "<f4", "r", HEADER.size, (count,)) if count else np.empty(0, np.float32)
    return Stagefile(None if layer == WHOLE_MODEL else layer, values)
