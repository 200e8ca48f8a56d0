"""One tensor of ONNX in a file: ONNX Runtime's node dumps (`.tensorproto`), and ONNX's test data (`.pb`).

A TensorProto is a protobuf message; its fields are numbered in onnx/onnx.proto (message TensorProto), their encoding is
protobuf's (protobuf.dev, Encoding). ONNX Runtime writes the values as `raw_data`, which is mapped. It names a file by
the tensor with all but letters and digits made `_`, and the tensor itself within (onnxruntime,
core/framework/debug_node_inputs_outputs_utils.cc).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...engine.files.mapped import map_file
from ...errors import BadInput
from .array import LAYOUT, Array, Arrays, view

SUFFIXES = (".tensorproto", ".pb")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
DIMS, TYPE, FLOATS, INTS, LONGS, NAME, RAW, DOUBLES, UNSIGNED, ELSEWHERE, LOCATION = (  # fields
    1, 2, 4, 5, 7, 8, 9, 10, 11, 13, 14
)  # fmt: skip
KINDS = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 16: "BF16",
}  # fmt: skip
MAX_FIELDS, MAX_NAME = 1 << 12, 1000
MAX_TYPED = 1 << 24  # values that are not raw: they are decoded one by one
RANK = re.compile(r"_rank_(\d{1,4})$")  # ORT_DEBUG_NODE_IO_APPEND_RANK_TO_FILE_NAME


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix in SUFFIXES


def read(path: Path) -> Arrays:
    """The file's tensor by its own name, or the file's where it has none. Raises BadInput for what is no such message,
    for types that no dump has, and for values that lie in another file."""
    where = str(path)
    data = map_file(path)
    shape: list[int] = []
    numbers: dict[int, int] = {}
    held: dict[int, NDArray[np.uint8]] = {}
    for field, value in _fields(data, where):
        if field == DIMS:
            shape += [value] if isinstance(value, int) else _varints(value, where)
        elif isinstance(value, int):
            numbers[field] = value
        elif field in held and field != ELSEWHERE:
            raise BadInput(f"{where}: field {field} stands twice; one tensor was to be in the file")
        else:
            held[field] = value
    if ELSEWHERE in held or numbers.get(LOCATION):
        raise BadInput(f"{where}: its values lie in another file (external_data); save the tensor with its values")
    kind = KINDS.get(numbers.get(TYPE, 0))
    if kind is None:
        raise BadInput(f"{where}: data type {numbers.get(TYPE, 0)} of ONNX is not read, or this is no TensorProto")
    if len(shape) > 8 or not all(0 <= n < 1 << 48 for n in shape):
        raise BadInput(f"{where}: shape {str(shape)[:80]} must be up to 8 whole numbers")
    name = _name(held, path, where)
    return Arrays(path, (Array(name, where, kind, _values(held, kind, tuple(shape), where)),))


def _name(held: dict[int, NDArray[np.uint8]], path: Path, where: str) -> str:
    raw = held.get(NAME, np.empty(0, np.uint8))
    if raw.size > MAX_NAME:
        raise BadInput(f"{where}: the tensor's name has {raw.size} bytes; {MAX_NAME} is the limit")
    try:
        name = raw.tobytes().decode("utf-8") or path.stem
    except UnicodeDecodeError:
        raise BadInput(f"{where}: the tensor's name is no text; is it a TensorProto?") from None
    rank = RANK.search(path.stem)
    return f"rank{rank[1]}/{name}" if rank and not name.endswith(rank[0]) else name


def _values(held: dict[int, NDArray[np.uint8]], kind: str, shape: tuple[int, ...], where: str) -> NDArray[np.generic]:
    """raw_data, mapped; else the field that the type has its values in. 16 bits stand in int32_data as their bits."""
    if RAW in held:
        return view(held[RAW], kind, shape, where)
    field = {"F32": FLOATS, "F64": DOUBLES, "I64": LONGS, "U32": UNSIGNED, "U64": UNSIGNED}.get(kind, INTS)
    typed = held.get(field, np.empty(0, np.uint8))
    if field in (FLOATS, DOUBLES):
        return view(typed, kind, shape, where)
    if typed.size > MAX_TYPED:
        raise BadInput(f"{where}: {typed.size} bytes of numbers one by one; {MAX_TYPED} is the limit without raw_data")
    numbers = _varints(typed, where)
    if len(numbers) != prod(shape):
        raise BadInput(f"{where}: {len(numbers)} values, where {shape} takes {prod(shape)}")
    bits = np.array(numbers, np.uint64)
    layout = np.dtype(LAYOUT[kind])
    unsigned = np.dtype(f"<u{layout.itemsize}")
    return bits.astype(unsigned).view(layout).reshape(shape)


def _fields(data: NDArray[np.uint8], where: str) -> Iterator[tuple[int, int | NDArray[np.uint8]]]:
    """(number, value) of a message's fields. Values of more than a number are views."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == data.size:
            return
        tag, at = _varint(data, at, where)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at, where)
            yield field, value
            continue
        if wire not in (FIXED64, BYTES, FIXED32) or not field:
            raise BadInput(f"{where}: no protobuf message, or not whole (byte {at})")
        size = 8 if wire == FIXED64 else 4
        if wire == BYTES:
            size, at = _varint(data, at, where)
        if size > data.size - at:
            raise BadInput(f"{where}: {data.size - at} bytes of {size} are there; is the file cut?")
        yield field, data[at : at + size]
        at += size
    raise BadInput(f"{where}: more than {MAX_FIELDS} fields; this is no tensor with raw or packed values")


def _varint(data: NDArray[np.uint8], at: int, where: str) -> tuple[int, int]:
    """(the number that begins at a byte, where the next thing begins): 7 bits a byte, lowest first, of 64 in all."""
    value = 0
    for i, byte in enumerate(data[at : at + 10].tolist()):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & (1 << 64) - 1, at + i + 1
    raise BadInput(f"{where}: no protobuf message, or not whole (byte {at})")


def _varints(data: NDArray[np.uint8], where: str) -> list[int]:
    found, at = list[int](), 0
    while at < data.size:
        value, at = _varint(data, at, where)
        found.append(value)
    return found
