"""Module: the tensors that one quantised weight consists of; and how they become one of a Format with groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import BadInput
from ....quant.by_column import ByColumn
from ....quant.codes import SCALES, scales_of
from ....quant.tensor import Assembled, QTensor, format_of

Array = NDArray[Any]

DTYPES: dict[str, Any] = SCALES | {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}


class Module:
    """A module by its name in the file, and the parts of its weight, by how their names end.

    notes: a line each for the user; whoever makes the weight adds them.
    """

    def __init__(self, name: str, parts: Mapping[str, QTensor]) -> None:
        self.name, self.parts, self.notes, self.read = name, parts, set[str](), set[str]()

    def bad(self, part: str, why: str) -> BadInput:
        return BadInput(f"tensor {f'{self.name}.{part}'!r:.100} {why}")

    def tensor(self, part: str, *dtypes: str) -> QTensor:
        """Raises BadInput unless it is there, of one of the dtypes, and holds something."""
        if part not in self.parts:
            there = next(iter(self.parts))
            raise self.bad(part, f"is missing; there is {self.name}.{there}")
        self.read.add(part)
        w = self.parts[part]
        if w.format not in dtypes:
            raise self.bad(part, f"has dtype {w.format}; it must have {' or '.join(dtypes)}")
        if not prod(w.shape):
            raise self.bad(part, f"has shape {w.shape}, and no values")
        return w

    def check_all_read(self) -> None:
        """Raises BadInput for a part that whoever made the weight has not looked at, unless it is all zeros."""
        for part, w in self.parts.items():
            if part not in self.read and w.data.any():
                raise self.bad(part, "has no place beside the module's other tensors")

    def array(self, part: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> Array:
        """As it lies in the file, of its own type (BF16: uint16). None in shape: any size. Raises BadInput."""
        w = self.tensor(part, *dtypes)
        if len(w.shape) != len(shape) or any(n not in (None, m) for m, n in zip(w.shape, shape, strict=True)):
            wants = ", ".join("any" if n is None else str(n) for n in shape)
            raise self.bad(part, f"has shape {w.shape}; beside the module's other tensors it must be ({wants})")
        return w.data.view(DTYPES[w.format]).reshape(w.shape)

    def scales(self, part: str, shape: tuple[int | None, ...]) -> tuple[Array, str]:
        """Scales as they lie in the file, and their type. Raises BadInput for one that is not finite."""
        raw = self.array(part, tuple(SCALES), shape)
        kind = self.parts[part].format
        values = scales_of(raw, kind)
        finite = np.isfinite(values)
        if not finite.all():
            at = np.unravel_index(int(finite.argmin()), values.shape)
            raise self.bad(part, f"is {values[at]} at {tuple(map(int, at))}, and a scale must be a finite number")
        return raw, kind

    def group(self, width: int, groups: int, said: int | None, where: str) -> int:
        """Values in a group of a row. said: what config.json says, -1 or None for a whole row. Raises BadInput."""
        size = width if said in (-1, None) else said
        if size is None or size < 1 or width % size or width // size != groups:
            raise self._no_groups(width, groups, said, where)
        return size

    def check_sizes(self, group_I: Array, groups: int, said: int | None, where: str) -> None:
        """Raises BadInput unless the groups of the columns are of the size that config.json says; the last may be
        smaller. said: as in `group`; None says nothing."""
        size, own = len(group_I) if said == -1 else said, np.bincount(group_I, minlength=groups)
        if size is not None and ((own[:-1] != size).any() or not 0 < own[-1] <= size):
            raise self._no_groups(len(group_I), groups, said, where)

    def _no_groups(self, width: int, groups: int, said: int | None, where: str) -> BadInput:
        size = width if said in (-1, None) else said
        return BadInput(
            f"{where} is {said}: the {width} values of a row of {self.name} are no {groups} groups of {size}"
        )

    def weight(self, format: str, shape: tuple[int, int], fields: Callable[[], Mapping[str, Array]]) -> QTensor:
        """The weight [O, I] in blocks. fields: the blocks' fields, each [O, groups] or broadcast to it."""
        (O, I), f = shape, format_of(format)

        def make() -> NDArray[np.uint8]:
            blocks = np.empty((O, I // f.block), f.struct)
            for field, values in fields().items():
                blocks[field] = values
            return blocks.reshape(-1).view(np.uint8)

        return Assembled(format, shape, make, f"{self.name}.weight")

    def in_act_order(
        self,
        kind: str,
        shape: tuple[int, int],
        bits: int,
        stream: Callable[[], NDArray[np.uint8]],
        scales_and_zeros: Callable[[], tuple[Array, Array]],
        group_I: Array,
    ) -> QTensor:
        """The weight [O, I] of whole numbers whose columns are of any group (quant/by_column.py says of what). Its
        format and bytes are those of the decoded values, for whoever does not compute with codes.
        """
        encode = format_of(kind).encode
        assert encode is not None
        columns = ByColumn(bits, kind, shape, stream, scales_and_zeros, group_I)
        return Assembled(kind, shape, lambda: columns.decoded(encode), f"{self.name}.weight", columns)

    def groups_of(self, part: str, width: int | None, groups: int) -> Array:
        """The group of each column. Raises BadInput for one that is not there."""
        g_idx_I = self.array(part, ("I32",), (width,))
        if g_idx_I.min() < 0 or g_idx_I.max() >= groups:
            at = int(np.flatnonzero((g_idx_I < 0) | (g_idx_I >= groups))[0])
            raise self.bad(part, f"is {g_idx_I[at]} at {at}, and there are {groups} groups")
        return g_idx_I
