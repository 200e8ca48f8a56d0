"""Codes of any width in a stream of bits, and what the formats in sizes share: the check of a size, and the type that a
decoded value is rounded to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from . import bf16

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

LARGEST = 1 << 24  # values in a group; a row is one, where it has one scale
# How a scale lies in a block.
SCALES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def unpack(stream: Codes, bits: int) -> Codes:
    """[n, bytes] -> [n, 8 bytes / bits]: codes of so many bits, each behind the last, the lowest bit first."""
    if bits == 8:
        return stream
    if bits in (2, 4):
        codes: Codes = np.empty((*stream.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            codes[..., i] = stream >> np.uint8(bits * i) & np.uint8((1 << bits) - 1)
        return codes.reshape(len(stream), -1)
    bit = np.unpackbits(np.ascontiguousarray(stream), axis=1, bitorder="little").reshape(len(stream), -1, bits)
    codes = bit[..., 0].copy()
    for i in range(1, bits):
        codes |= bit[..., i] << np.uint8(i)
    return codes


def pack(codes: Codes, bits: int) -> Codes:
    """The inverse of unpack."""
    if bits == 4:
        return codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    bit = codes[..., None] >> np.arange(bits, dtype=np.uint8) & np.uint8(1)
    return np.packbits(bit.reshape(len(codes), -1), axis=1, bitorder="little")


def decoded(codes: Codes, levels: int, value: Callable[[NDArray[Any]], Floats]) -> Floats:
    """value(codes), [n, group]; of every code once, where a group has more values than there are levels.

    value: of codes [n, any] or [1, any]; it gives [n, any].
    """
    n, group = codes.shape
    if group <= levels:
        return value(codes)
    table_nL = value(np.arange(levels, dtype=np.uint8)[None])
    return np.take(table_nL.reshape(-1), codes + np.arange(0, n * levels, levels, dtype=np.intp)[:, None])


def scales_of(field: NDArray[np.generic], kind: str) -> Floats:
    """A block's scales, of a type of SCALES, as float32 of the same shape."""
    if kind == "BF16":
        return bf16.decode(np.ascontiguousarray(field).view(np.uint8)).reshape(field.shape)
    return field.astype(np.float32)


def rounded(values: Floats, kind: str) -> Floats:
    """To nearest, ties to even, in a type of SCALES."""
    if kind == "F32":
        return values
    if kind == "F16":
        return values.astype(np.float16).astype(np.float32)
    return bf16.decode(bf16.encode(values)).reshape(values.shape)


def check_size(name: str, group: int, bits: int = 8, kind: str = "F32") -> None:
    """Raises BadInput for a size of a group that no file can have, or an unknown type of scales."""
    if not 1 <= bits <= 8 or not 0 < group <= LARGEST or group * bits % 8:
        raise BadInput(f"weight format {name:.80}: no group is {group} values of {bits} bits, in whole bytes")
    if kind not in SCALES:
        raise BadInput(f"weight format {name:.80}: scales are {', '.join(SCALES)}")
