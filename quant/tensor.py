"""QTensor: a tensor as it lies in its file, and the one way from a format's name to the file that knows it.

Every format is a module of this package, named as ggml names the type, in lower case. It has

    BLOCK: int                                 values per block
    BYTES: int                                 bytes per block
    decode(blocks: uint8 [n, BYTES]) -> float32 [n, BLOCK]
    encode(values: float32 [n, BLOCK]) -> uint8 [n, BYTES]     (where the format can be written; finite values only)

and, where it is decoded here and a C struct, STRUCT: the NumPy record of one block. F32, F16 and BF16 have BLOCK = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadInput

SLAB = 1 << 17  # values encoded at a time: bounds the memory of the search, and keeps it near a core's cache


@dataclass(frozen=True, slots=True)
class QTensor:
    """A tensor in its file's own bytes.

    format: ggml's type name, upper case ("Q4_K", "F32").
    shape: outermost first, row-major; a matrix is (O, I): y[o] = sum_i w[o, i] x[i].
    data: uint8, 1-D, usually a view of a memory map, never written to; exactly rows * row_bytes long. Only APR has
    rows that are no whole number of blocks: its writer pads each to one, and `dequantize` drops the padding.
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
        found = import_module(module) if name.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        found = None
    if found and hasattr(found, "BLOCK"):
        return found
    raise BadInput(f"no decoder for weight format {name}")


def format_of(w: QTensor) -> ModuleType:
    """The module of a tensor's format. Raises BadInput that names the tensor if there is none."""
    try:
        return format_module(w.format)
    except BadInput as error:
        raise BadInput(f"tensor {w.name}: {error}; weights are floats of 16 or 32 bits, or blocks") from None


def can_encode(name: str) -> bool:
    """Whether the format can be written. Raises BadInput if it is not even known."""
    return hasattr(format_module(name), "encode")


def row_bytes(name: str, width: int) -> int:
    """Bytes of one row of `width` values. Raises BadInput if the row is no whole number of blocks."""
    f = format_module(name)
    if width % f.BLOCK:
        raise BadInput(f"a row of {width} values is not a whole number of {name} blocks of {f.BLOCK}")
    return int(width // f.BLOCK * f.BYTES)


def blocks_of(w: QTensor) -> NDArray[np.uint8]:
    """The tensor's bytes, [blocks, bytes of one]. Raises BadInput if they are not those of its shape."""
    f = format_of(w)
    if not w.shape:
        raise BadInput(f"tensor {w.name}: a single value has no rows")
    *outer, width = w.shape
    takes = prod(outer) * -(-width // f.BLOCK) * f.BYTES
    if w.data.size != takes:
        raise BadInput(f"tensor {w.name}: {w.data.size} bytes, but {w.format} of shape {w.shape} takes {takes}")
    return w.data.reshape(-1, f.BYTES)


def dequantize(w: QTensor, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Rows start..stop (of the outermost dimension) as float32 [stop - start, ...], bit for bit what ggml decodes.

    Raises BadInput if the tensor's bytes are not those of its shape.
    """
    f, blocks = format_of(w), blocks_of(w)
    *outer, width = w.shape
    per_row = -(-width // f.BLOCK)
    if outer:
        start, stop, _ = slice(start, stop).indices(outer[0])
        per_start = len(blocks) // max(outer[0], 1)
        blocks = blocks[start * per_start : stop * per_start]
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN scales decode to what ggml makes of them
        values: NDArray[np.float32] = f.decode(blocks).reshape(-1, per_row * f.BLOCK)[:, :width]
    return values.reshape(-1, *w.shape[1:]) if outer else values.reshape(-1)[start:stop]


def take(w: QTensor, rows: NDArray[np.integer[Any]]) -> QTensor:
    """The rows of those numbers (of the outermost dimension), as a tensor [len(rows), ...]."""
    data = w.data.reshape(w.shape[0], -1)[rows]
    return QTensor(w.format, (len(rows), *w.shape[1:]), data.reshape(-1), w.name)


def quantize(values: NDArray[np.floating], name: str, tensor: str = "") -> QTensor:
    """Values [..., width] in the format of that name, a slab of blocks at a time.

    tensor: its name, for the result and for messages. Raises BadInput if the format cannot be written, if the rows are
    no whole number of blocks, if a value is not finite (saying where) or too large for the format.
    """
    f = format_module(name)
    if not hasattr(f, "encode"):
        raise BadInput(f"{name} can be read but not written")
    row_bytes(name, values.shape[-1])
    blocks = values.reshape(-1, f.BLOCK)
    data = np.empty((len(blocks), f.BYTES), np.uint8)
    step = SLAB // f.BLOCK
    for i in range(0, len(blocks), step):
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            x = np.ascontiguousarray(blocks[i : i + step], np.float32)
            _refuse_unless_finite(x, values, i, f"tensor {tensor}: {{value}} at {{index}} is not a finite float32")
            data[i : i + step] = f.encode(x)
            _refuse_unless_finite(
                f.decode(data[i : i + step]),
                values,
                i,
                f"tensor {tensor}: the block of {{value}} at {{index}} is too large for {name}",
            )
    return QTensor(name, values.shape, data.reshape(-1), tensor)


def _refuse_unless_finite(x: NDArray[np.float32], values: NDArray[np.floating], block: int, message: str) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        at = np.unravel_index(block * x.shape[1] + int(finite.argmin()), values.shape)
        raise BadInput(message.format(value=values[at], index=tuple(int(j) for j in at)))
