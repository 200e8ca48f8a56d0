"""bitsandbytes' 4-bit floats: 16 levels from -1 to 1, times the largest size of each group of the weight as it lies.

A block is a group, in a layout of this project's own, as bitsandbytes keeps two to seven tensors: float32 absmax; two
codes a byte, the first in the upper half. The level times absmax is a float32, which is then rounded to the type that
the weight had, as bitsandbytes' dequantize_4bit does it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codes import check_size, decoded, rounded
from .format import Format

Values = NDArray[np.float32]


def levelled(kind: str, levels: Values, group: int, dtype: str) -> Format:
    """KIND/group/dtype."""
    name = f"{kind}/{group}/{dtype}"
    check_size(name, group, 4, dtype)
    block = np.dtype([("absmax", "<f4"), ("qs", "u1", group // 2)])

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        b = np.ascontiguousarray(blocks).view(block)[:, 0]
        codes = np.stack((b["qs"] >> 4, b["qs"] & 15), axis=-1).reshape(len(b), group)
        return decoded(codes, 16, lambda q: rounded(levels[q] * b["absmax"][:, None], dtype))

    return Format(name, group, block, decode, scale="absmax", codes=("qs",), nibbles=("qs", 2))
