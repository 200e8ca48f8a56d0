"""One array of a .npy file: floats, mapped. The header is another tool's Python literal, and is not trusted."""

from __future__ import annotations

import warnings
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import BadInput

HEADER_BYTES = 10_000  # NumPy's own limit for a header that it has not written itself
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read(path: Path) -> NDArray[np.floating[Any]]:
    """The array of a .npy file, 16, 32 or 64 bits a value, read-only and mapped; nothing is unpickled. Raises BadInput
    for anything else."""
    if not path.is_file():
        raise BadInput(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(npy.MAGIC_LEN)
            if head[:2] == b"PK":
                raise BadInput(f"{path}: this is an .npz, a zip of arrays; unpack it")
            if len(head) < npy.MAGIC_LEN or not head.startswith(npy.MAGIC_PREFIX):
                raise BadInput(f"{path}: not a .npy file (it begins with {head[:6]!r})")
            version = (head[-2], head[-1])
            if version not in READERS:
                raise BadInput(
                    f"{path}: a .npy file of version {version[0]}.{version[1]}; plain floats have 1.0 or 2.0"
                )
            with warnings.catch_warnings(action="ignore"):
                shape, fortran, kind = READERS[version](file, max_header_size=HEADER_BYTES)
            start = file.tell()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except BadInput:
        raise
    except Exception as error:  # whatever NumPy's parser makes of a literal: it evaluates, tokenizes and builds a dtype
        raise BadInput(f"{path}: its header is not that of an array ({type(error).__name__})") from None
    if kind.names is not None or kind.subdtype is not None or kind.kind != "f" or kind.itemsize not in (2, 4, 8):
        raise BadInput(f"{path}: values of {kind!s:.100}; floats of 16, 32 or 64 bits are wanted")
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise BadInput(f"{path}: {shape!s:.100} is no shape")
    if not prod(shape):
        raise BadInput(f"{path}: an array of shape {shape} holds no value")
    if (held := size - start) != (takes := prod(shape) * kind.itemsize):
        raise BadInput(f"{path}: {held} bytes of values, where {shape} of {kind} takes {takes}")
    return np.memmap(path, kind, "r", start, shape, "F" if fortran else "C")
