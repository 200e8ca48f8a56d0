"""Tensors of ONNX as ONNX Runtime's node dumps write them, without onnx: protobuf by hand (message TensorProto)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

TYPES = {"<f4": 1, "<i4": 6, "<i8": 7, "<f2": 10, "<f8": 11}


def varint(n: int) -> bytes:
    found = bytearray()
    while n >= 0x80:
        found.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes((*found, n))


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name: str, x: np.ndarray) -> bytes:
    """dims one by one, type, name, raw_data: the fields and the order that onnx's own library writes."""
    x = np.ascontiguousarray(x)
    kind = TYPES[x.dtype.newbyteorder("<").str]
    shape = b"".join(b"\x08" + varint(n) for n in x.shape)
    return shape + b"\x10" + varint(kind) + block(8, name.encode()) + block(9, x.tobytes())


def write_nodes(folder: Path, arrays: dict[str, np.ndarray], suffix: str = "") -> Path:
    """A file for each tensor, named as ONNX Runtime names it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in arrays.items():
        (folder / f"{re.sub('[^0-9A-Za-z]', '_', name)}{suffix}.tensorproto").write_bytes(tensor(name, x))
    return folder
