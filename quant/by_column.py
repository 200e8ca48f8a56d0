"""ByColumn: a matrix of whole numbers, as int.py's, whose columns are of any group: what a file in act order holds.

GPTQ with `desc_act` quantises the columns in the order of their activations' sizes, and a group is a run of that order:
in the matrix no run of columns shares a scale, and there are no blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import SCALES, rounded, scales_of, unpack

DECODED = 1 << 22  # values decoded at a time


@dataclass(frozen=True, slots=True)
class ByColumn:
    """[O, I] in codes of `bits`. kind: the type of the scales, one of codes.SCALES.

    stream: makes the codes of each row, one behind the other, uint8 [O, bytes]. scales_and_zeros: makes the scales as
    they lie in the file, and the zero points, both [O, G]. group_I: the group of each column.
    """

    bits: int
    kind: str
    shape: tuple[int, int]
    stream: Callable[[], NDArray[np.uint8]]
    scales_and_zeros: Callable[[], tuple[NDArray[Any], NDArray[Any]]]
    group_I: NDArray[Any]

    @property
    def name(self) -> str:
        """As of a format: INT_ACT/bits/scales."""
        return f"INT_ACT/{self.bits}/{self.kind}"

    @property
    def bytes(self) -> int:
        """Of codes, scales, zero points of 16 bits and groups of 32."""
        (O, I), groups = self.shape, int(self.group_I.max()) + 1
        return O * I * self.bits // 8 + O * groups * (SCALES[self.kind].itemsize + 2) + 4 * I

    def decoded(self, encode: Callable[[NDArray[np.float32]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The values in the type of the scales, to which they are rounded anyhow, as bytes. encode: to that type."""
        (O, I), (scale_OG, zero_OG), codes_OB = self.shape, self.scales_and_zeros(), self.stream()
        blocks = np.empty((O, I * SCALES[self.kind].itemsize), np.uint8)
        step = max(1, DECODED // I)
        for start in range(0, O, step):
            rows = slice(start, start + step)
            y = unpack(codes_OB[rows], self.bits)[:, :I].astype(np.float32)
            y -= zero_OG[rows].astype(np.float32)[:, self.group_I]
            with np.errstate(over="ignore"):  # in half precision, as in a block
                y *= scales_of(scale_OG[rows], self.kind)[:, self.group_I]
                blocks[rows] = encode(rounded(y, self.kind)).reshape(len(y), -1)
        return blocks.reshape(-1)
