"""APRT, aprender's stage file: `APRT`, u32 layer (0xFFFFFFFF: whole model), u32 count, float32 values; little-endian.

The file says neither shape nor stage nor positions: its path and the manifest (trace/store.py) do.

`write` makes a file of an array, `Growing` one whose rows come in parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import file_digest, sha256
from math import prod
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
    head = _head(path, layer, values.size)
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


class Growing:
    """A new file whose rows come in parts. shape: of all of it; axis: which one the rows are of.

    Rows of scores lie apart (axis 1 of N T S), each head's together, and the first know fewer keys than the last: what
    a part's last axis lacks is 0. Nothing is held; the file is open only while it is written, for a dump has hundreds.
    """

    def __init__(self, path: str | PathLike[str], layer: int | None, shape: tuple[int, ...], axis: int) -> None:
        """Raises BadInput for more values than the count can say, OSError as the system has it."""
        self.path, self.shape, self.axis, self.done = Path(path), shape, axis, 0
        head = _head(path, layer, prod(shape))
        self._digest = None if axis else sha256(head)  # rows that lie apart are not in the file's order
        with self.path.open("xb") as file:
            file.write(head)
            file.truncate(HEADER.size + 4 * prod(shape))

    @property
    def complete(self) -> bool:
        return self.done == self.shape[self.axis]

    def add(self, values: NDArray[np.floating]) -> None:
        """The next rows, of any float type and strides. Raises ValueError for more of them than there are to come."""
        lines, rows = prod(self.shape[: self.axis]), self.shape[self.axis]
        width = prod(self.shape[self.axis + 1 :])
        count = values.shape[self.axis]
        if count > rows - self.done:
            raise ValueError(f"{self.path}: {count} more rows, where {rows - self.done} of {rows} are to come")
        step = max(1, _SLAB // max(1, width))
        with self.path.open("r+b") as file:
            for line, part_TW in enumerate(values.reshape(lines, count, -1)):
                file.seek(HEADER.size + 4 * width * (line * rows + self.done))
                for i in range(0, count, step):
                    slab_TW = np.zeros((min(step, count - i), width), "<f4")
                    slab_TW[:, : part_TW.shape[1]] = part_TW[i : i + step]
                    file.write(slab_TW.data.cast("B"))
                    if self._digest is not None:
                        self._digest.update(slab_TW.data.cast("B"))
        self.done += count

    def digest(self) -> str:
        """The SHA-256 of the file, which is complete; of scores it is read once more for it."""
        if self._digest is not None:
            return self._digest.hexdigest()
        with self.path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()


def _head(path: str | PathLike[str], layer: int | None, count: int) -> bytes:
    if count > MAX_COUNT:
        raise BadInput(
            f"{path}: {count} values do not fit an APRT file, whose count is 32 bits ({MAX_COUNT}); "
            "trace fewer positions (--positions) or a shorter prompt"
        )
    return HEADER.pack(MAGIC, WHOLE_MODEL if layer is None else layer, count)


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
