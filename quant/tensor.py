"""QTensor: a tensor as it lies in its file, and the one way from a format's name to the file that knows it.

Every format is a module of this package, named as ggml names the type, in lower case, with its FORMAT: a Format; or,
where the format comes in sizes, a function of whole numbers, and of types by their names, that makes one. They follow
the name: of module x.py with FORMAT(group: int, scales: str), "X/64/F16" is FORMAT(64, "F16").
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from importlib import import_module
from inspect import signature
from math import prod
from pkgutil import iter_modules
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .by_column import DECODED, ByColumn
from .format import Bytes, Format

SLAB = 1 << 17  # values encoded at a time: bounds the memory of the search, and keeps it near a core's cache


@dataclass(frozen=True, slots=True)
class QTensor:
    """A tensor in its file's own bytes.

    format: the name of its Format, upper case ("Q4_K", "F32").
    shape: outermost first, row-major; a matrix is (O, I): y[o] = sum_i w[o, i] x[i].
    data: uint8, 1-D, usually a view of a memory map, never written to; exactly rows * row_bytes long. Only APR has
    rows that are no whole number of blocks: its writer pads each to one, and `dequantize` drops the padding.
    name: the tensor's name in its file, for messages.
    """

    format: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]
    name: str = ""


class Assembled(QTensor):
    """A tensor whose bytes are made out of several of its file's, when they are first asked for; then they are kept,
    until `forget`.

    data: what makes them; or bytes, as in a QTensor. by_column: the same values as the file has them, where no Format
    does: who can compute with these need not ask for the bytes.
    """

    by_column: ByColumn | None

    def __init__(
        self,
        format: str,
        shape: tuple[int, ...],
        data: Callable[[], Bytes] | Bytes,
        name: str = "",
        by_column: ByColumn | None = None,
    ) -> None:
        fields = {"format": format, "shape": shape, "name": name, "_make": data, "by_column": by_column}
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @cached_property
    def data(self) -> Bytes:
        made = self._make  # type: ignore[attr-defined]
        return made() if callable(made) else made

    def forget(self) -> None:
        """Lets go of bytes that were made: they are made again if anyone asks."""
        if callable(self._make):  # type: ignore[attr-defined]
            vars(self).pop("data", None)


def by_column(w: QTensor) -> ByColumn | None:
    """The matrix as its file has it, where that is in whole numbers whose columns are of any group."""
    return w.by_column if isinstance(w, Assembled) else None


def as_stored(w: QTensor) -> tuple[str, int]:
    """The name of the format that a tensor's file has it in, and its bytes there or, in blocks, here."""
    columns = by_column(w)
    return (columns.name, columns.bytes) if columns else (w.format, w.data.size)


def forget(data: Bytes) -> None:
    """Lets go of the memory behind a piece of a mapped file: it is read again from the file if anyone asks."""
    base: Any = data
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", getattr(base, "obj", None))
    if base is None or data.flags.writeable or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = data.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + data.size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        base.madvise(mmap.MADV_DONTNEED, first, last - first)


@cache
def format_of(name: str) -> Format:
    """The format of that name, in either case. Raises BadInput if there is none, saying which one is like it."""
    file, *said = name.split("/")
    found = _declared(file)
    if isinstance(found, Format):
        if not said:
            return found
    elif found is not None:
        wants = signature(found).parameters.values()
        whole = [w.annotation not in (str, "str") for w in wants]
        if len(said) != len(whole) or not all(
            s.isascii() and s.isdecimal() and len(s) < 10 for s, w in zip(said, whole, strict=True) if w
        ):
            written = "/".join([file.upper(), *(w.name for w in wants)])
            raise BadInput(f"weight format {name:.80}: is written {written}, in whole numbers")
        made: Format = found(*(int(s) if w else s.upper() for s, w in zip(said, whole, strict=True)))
        return made
    like = get_close_matches(name.upper(), _names(), 1)
    raise BadInput(f"no decoder for weight format {name:.80}" + (f"; did you mean {like[0]}?" if like else ""))


def _declared(file: str) -> Any:
    """FORMAT of a module of this package, None where there is none."""
    module = f"{__package__}.{file.lower()}"
    try:
        return getattr(import_module(module), "FORMAT", None) if file.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def _names() -> list[str]:
    """Of all formats."""
    modules = iter_modules(import_module(__package__).__path__)
    return [m.name.upper() for m in modules if _declared(m.name) is not None]


def format_of_tensor(w: QTensor) -> Format:
    """A tensor's format. Raises BadInput that names the tensor if there is none."""
    try:
        return format_of(w.format)
    except BadInput:  # what it is like is of no use here: the file has said what it is
        wants = "weights are floats of 16 or 32 bits, or blocks"
        raise BadInput(f"tensor {w.name}: no decoder for weight format {w.format}; {wants}") from None


def row_bytes(name: str, width: int) -> int:
    """Bytes of one row of `width` values. Raises BadInput if the row is no whole number of blocks."""
    f = format_of(name)
    if width % f.block:
        raise BadInput(f"a row of {width} values is not a whole number of {name} blocks of {f.block}")
    return width // f.block * f.bytes


def blocks_of(w: QTensor) -> NDArray[np.uint8]:
    """The tensor's bytes, [blocks, bytes of one]. Raises BadInput if they are not those of its shape."""
    f = format_of_tensor(w)
    if not w.shape:
        raise BadInput(f"tensor {w.name}: a single value has no rows")
    *outer, width = w.shape
    takes = prod(outer) * -(-width // f.block) * f.bytes
    if w.data.size != takes:
        raise BadInput(f"tensor {w.name}: {w.data.size} bytes, but {w.format} of shape {w.shape} takes {takes}")
    return w.data.reshape(-1, f.bytes)


def dequantize(w: QTensor, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Rows start..stop (of the outermost dimension) as float32 [stop - start, ...], bit for bit what ggml decodes.

    Raises BadInput if the tensor's bytes are not those of its shape.
    """
    f, blocks = format_of_tensor(w), blocks_of(w)
    *outer, width = w.shape
    per_row = -(-width // f.block)
    if outer:
        start, stop, _ = slice(start, stop).indices(outer[0])
        per_start = len(blocks) // max(outer[0], 1)
        blocks = blocks[start * per_start : stop * per_start]
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN scales decode to what ggml makes of them
        values: NDArray[np.float32] = f.decode(blocks).reshape(-1, per_row * f.block)[:, :width]
    return values.reshape(-1, *w.shape[1:]) if outer else values.reshape(-1)[start:stop]


def vector_of(*parts: QTensor | NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """Vectors one after the other, in float32, or in float64 where numbers that no file holds are among them."""
    return np.concatenate([dequantize(p) if isinstance(p, QTensor) else p for p in parts])


def row_slabs(w: QTensor, most: int = DECODED) -> Iterator[tuple[int, int]]:
    """Ranges of rows (of the outermost dimension), first and behind the last, of at most so many values, but of a row
    each: what to decode at a time, so that memory stays bounded."""
    step = max(1, most * w.shape[0] // max(1, prod(w.shape)))
    for start in range(0, w.shape[0], step):
        yield start, min(start + step, w.shape[0])


def take(w: QTensor, rows: NDArray[np.integer[Any]]) -> QTensor:
    """The rows of those numbers (of the outermost dimension), as a tensor [len(rows), ...]."""
    data = w.data.reshape(w.shape[0], -1)[rows]
    return QTensor(w.format, (len(rows), *w.shape[1:]), data.reshape(-1), w.name)


def transposed(w: QTensor) -> QTensor:
    """A matrix's columns as its rows, in float32."""
    values = np.ascontiguousarray(dequantize(w).T)
    return QTensor("F32", values.shape, values.reshape(-1).view(np.uint8), w.name)


def quantize(values: NDArray[np.floating], name: str, tensor: str = "") -> QTensor:
    """Values [..., width] in the format of that name, a slab of blocks at a time.

    tensor: its name, for the result and for messages. Raises BadInput if the format cannot be written, if the rows are
    no whole number of blocks, if a value is not finite (saying where) or too large for the format.
    """
    f = format_of(name)
    if f.encode is None:
        raise BadInput(f"{name} can be read but not written")
    row_bytes(name, values.shape[-1])
    blocks = values.reshape(-1, f.block)
    data = np.empty((len(blocks), f.bytes), np.uint8)
    step = SLAB // f.block
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
