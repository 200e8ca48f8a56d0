"""QTensor: a weight as it lies in its file, and the one way from a format's name to the file that knows it.

Every format is a module of this package, named as ggml names the type, in lower case. It has

    BLOCK: int                                 values per block
    BYTES: int                                 bytes per block
    decode(blocks: uint8 [n, BYTES]) -> float32 [n, BLOCK]
    encode(values: float32 [n, BLOCK]) -> uint8 [n, BYTES]          (where the format can be written)

F32, F16 and BF16 are formats with BLOCK = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from math import prod
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput


@dataclass(frozen=True, slots=True)
class QTensor:
    """A tensor in its file's own bytes.

    format: ggml's type name, upper case ("Q4_K", "F32").
    shape: outermost first, row-major; a matrix is (O, I): y[o] = sum_i w[o, i] x[i].
    data: uint8, 1-D, exactly rows * row_bytes long; usually a view of a memory map, never written to.
    name: the tensor's name in its file, for messages.
    """

    format: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    name: str = ""


def format_module(name: str) -> ModuleType:
    """The module of a format by ggml's type name. Raises BadInput if there is none."""
    module = f"{__package__}.{name.lower()}"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BadInput(f"no decoder for weight format {name}") from None


def row_bytes(name: str, width: int) -> int:
    """Bytes of one row of `width` values. Raises BadInput if the row is no whole number of blocks."""
    f = format_module(name)
    if width % f.BLOCK:
        raise BadInput(f"a row of {width} values is not a whole number of {name} blocks of {f.BLOCK}")
    return int(width // f.BLOCK * f.BYTES)


def dequantize(w: QTensor, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Rows start..stop (of the outermost dimension) as float32, bit for bit what ggml decodes."""
    f = format_module(w.format)
    width = w.shape[-1]
    rows = prod(w.shape[:-1])
    per_row = row_bytes(w.format, width)
    inner = rows // w.shape[0] if len(w.shape) > 1 else 1
    stop = w.shape[0] if stop is None else stop
    if len(w.shape) == 1:
        return f.decode(w.data.reshape(-1, f.BYTES)).reshape(-1)[start:stop]
    part = w.data[start * inner * per_row : stop * inner * per_row]
    return f.decode(part.reshape(-1, f.BYTES)).reshape(stop - start, *w.shape[1:])
