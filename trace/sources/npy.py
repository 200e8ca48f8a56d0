"""The header of a .npy file, which is another tool's Python literal, and is not trusted."""

from __future__ import annotations

import io
import warnings
from math import prod
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ...errors import BadInput

HEADER_BYTES = 10_000  # NumPy's own limit for a header that it has not written itself
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def header(data: np.ndarray[Any, np.dtype[np.uint8]], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran's order, type, where the values begin) of a whole .npy file's bytes.

    Raises BadInput unless numbers of that shape fill the rest of it exactly; nothing is unpickled.
    """
    file = io.BytesIO(data[: HEADER_BYTES + 64].tobytes())
    head = file.read(npy.MAGIC_LEN)
    if len(head) < npy.MAGIC_LEN or not head.startswith(npy.MAGIC_PREFIX):
        raise BadInput(f"{where}: not a .npy file (it begins with {head[:6]!r})")
    version = (head[-2], head[-1])
    if version not in READERS:
        raise BadInput(f"{where}: a .npy file of version {version[0]}.{version[1]}; plain numbers have 1.0 or 2.0")
    try:
        with warnings.catch_warnings(action="ignore"):
            shape, fortran, kind = READERS[version](file, max_header_size=HEADER_BYTES)
    except Exception as error:  # whatever NumPy's parser makes of a literal: it evaluates, tokenizes and builds a dtype
        raise BadInput(f"{where}: its header is not that of an array ({type(error).__name__})") from None
    start = file.tell()
    if kind.names is not None or kind.subdtype is not None or kind.kind not in "fiub" or kind.itemsize > 8:
        raise BadInput(f"{where}: values of {kind!s:.100}; floats of 16, 32 or 64 bits are wanted")
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise BadInput(f"{where}: {shape!s:.100} is no shape")
    if (held := data.size - start) != (takes := prod(shape) * kind.itemsize):
        raise BadInput(f"{where}: {held} bytes of values, where {shape} of {kind} takes {takes}")
    return shape, fortran, kind, start
