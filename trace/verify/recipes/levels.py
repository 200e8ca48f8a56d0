"""bitsandbytes' 4-bit products on a CPU that has dot products of bfloat16 (AVX512-BF16): activations, levels and the
largest size of each block are rounded to bfloat16, each for itself, and so is the result, whatever the engine keeps.

The products of a block's levels are summed in float32, then multiplied by its size: level times size is exact in
float32, so that the sum of its terms is bounded as any other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..span import BFLOAT16
from .matrix import Blocks, FileMatrix

FORMATS = ("NF4", "FP4")


def known(weight_format: str) -> bool:
    return weight_format.split("/", maxsplit=1)[0] in FORMATS


def rows(w: FileMatrix, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of the matrix as the product has them."""
    sizes: list[NDArray[np.float64]] = []

    def alone(b: Blocks) -> Blocks:
        sizes.append(b["absmax"].astype(np.float64))
        b["absmax"] = 1
        return b

    levels = w.rebuilt(alone, start, stop).rows(0, stop - start)
    sizes_OI = np.repeat(BFLOAT16.round(sizes[0]), w.facts.group, axis=1)
    return (BFLOAT16.round(levels) * sizes_OI).astype(np.float32)
