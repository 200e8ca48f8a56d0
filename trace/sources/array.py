"""What every foreign source comes down to: arrays by the names that their writer gave them, mapped and not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

# How the values of a kind lie in a file. The upper half of a float32 is no type of NumPy's: its bits are kept.
LAYOUT = MappingProxyType(
    {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    | {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "BOOL": "?"}
    | {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"}  # ids of candle and MLX
)
FLOATS = ("F64", "F32", "F16", "BF16")
BYTES = MappingProxyType({kind: np.dtype(layout).itemsize for kind, layout in LAYOUT.items()})
KINDS = MappingProxyType({np.dtype(layout): kind for kind, layout in LAYOUT.items() if kind != "BF16"})
FORMAT = "qwenref-dump-1"  # under `format` in the facts of a source that docs/dumps.md describes: axes are in order
MAX_FACTS = 1 << 24  # ids, positions and masks of one pass, that are read at once


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a source.

    name: as its writer has it, parts of folders and nested objects apart by `/`. where: for messages.
    kind: of LAYOUT. raw: the values as they lie, mapped, of any strides; BF16 as its bits.
    """

    name: str
    where: str
    kind: str
    raw: NDArray[Any] = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape

    def whole_numbers(self) -> NDArray[np.int64]:
        """Ids, positions, a mask or lengths. Raises BadInput for floats that are not whole, and for too many."""
        if prod(self.shape) > MAX_FACTS:
            raise BadInput(f"{self.where}: shape {self.shape}: too many for ids or positions")
        values = decoded(self.kind, self.raw)
        if self.kind in FLOATS and not (np.isfinite(values).all() and (np.rint(values) == values).all()):
            raise BadInput(f"{self.where}: whole numbers are wanted, not fractions")
        return values.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Arrays:
    """What a reader finds. facts: what the source says of itself. no_arrays: what it holds besides, by name."""

    path: Path
    arrays: tuple[Array, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    no_arrays: tuple[str, ...] = ()


def decoded(kind: str, raw: NDArray[Any]) -> NDArray[Any]:
    """Floats as float32 (float64 is rounded; what float32 has not becomes infinite), all else as it is."""
    if kind == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind in FLOATS:
        with np.errstate(over="ignore"):
            return raw.astype(np.float32, copy=False)
    return raw


def view(data: NDArray[np.uint8], kind: str, shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """Bytes as values of a kind. Raises BadInput if they are not exactly so many."""
    takes = prod(shape) * BYTES[kind]
    if data.size != takes:
        raise BadInput(f"{where}: {data.size} bytes of values, where {shape} of {kind} takes {takes}")
    return data.view(LAYOUT[kind]).reshape(shape)
