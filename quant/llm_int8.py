"""LLM_INT8/group: bitsandbytes' LLM.int8() (Dettmers et al. 2022): signed bytes, 127 of them the row's largest size.

A block is a row, in a layout of this project's own, as bitsandbytes keeps two tensors: float32 absmax (its SCB); int8
codes. value[j] = q[j] * absmax * (1 / 127), each product and the reciprocal rounded to float32, from left to right, as
bitsandbytes' int8_vectorwise_dequant computes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .codes import check_size
from .format import Format


def FORMAT(group: int) -> Format:
    name = f"LLM_INT8/{group}"
    check_size(name, group)
    block = np.dtype([("absmax", "<f4"), ("qs", "i1", group)])

    def decode(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        b = np.ascontiguousarray(blocks).view(block)[:, 0]
        y = b["qs"].astype(np.float32)
        y *= b["absmax"][:, None]
        y *= np.float32(1 / 127)
        return y

    return Format(name, group, block, decode, scale="absmax", codes=("qs",), levels=255)
