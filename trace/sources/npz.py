"""NumPy's own files: an .npz, a zip of arrays, and one .npy."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.files.mapped import map_file
from ...errors import BadInput
from . import npy
from .array import KINDS, Array, Arrays
from .zipped import members


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix in (".npz", ".npy")


def read(path: Path) -> Arrays:
    """The arrays of an .npz by the names that they were saved under, or that of a .npy under its file's.

    Stored arrays are mapped. Raises BadInput for anything that is no array of numbers; nothing is unpickled.
    """
    if path.suffix == ".npy":
        return Arrays(path, (array_of(map_file(path), path.stem, str(path)),))
    found = []
    for name, member in members(path).items():
        if not name.endswith(".npy"):
            raise BadInput(f"{path}: holds {name!r:.80}; an .npz holds .npy files only")
        found.append(array_of(member.data, name.removesuffix(".npy"), f"{path}: {name:.80}"))
    return Arrays(path, tuple(found))


def array_of(data: NDArray[np.uint8], name: str, where: str) -> Array:
    """The array in a .npy file's bytes."""
    if data[:2].tobytes() == b"PK":
        raise BadInput(f"{where}: this is an .npz, a zip of arrays; name it so")
    shape, fortran, kind, start = npy.header(data, where)
    little = kind.newbyteorder("<") if kind.itemsize > 1 else kind
    if little not in KINDS:
        raise BadInput(f"{where}: values of {kind!s:.100}; floats of 16, 32 or 64 bits are wanted")
    return Array(name, where, KINDS[little], _values(data[start:], kind, shape, fortran))


def _values(data: NDArray[np.uint8], kind: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> NDArray[Any]:
    if not prod(shape):
        return np.empty(shape, kind)
    return data.view(kind).reshape(shape, order="F" if fortran else "C")
