"""Q16: activations as whole numbers of 16 bits, in blocks with one step each, for `--precision int16`. No file holds
it, and no other engine has it.

A product takes such a number as two signed bytes, 256 * high + low, hence the limit: both must be at most 127.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .fit import ratio

LARGEST = 127 * 256 + 127
BLOCKS = {"Q16_0": 32, "Q16_K": 256}  # numbers that share a step, where ggml has Q8_0 or Q8_K


def rounded(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Blocks [n, width], each value as the product uses it: step * round(value / step), step = largest size / LARGEST.

    The step and the reciprocal of it are float32, ties go to even; step * number is exact in float64.
    """
    size = np.abs(values).max(axis=1).astype(np.float32)
    numbers = np.rint(values * ratio(LARGEST, size)[:, None])
    return numbers.astype(np.float64) * (size / np.float32(LARGEST)).astype(np.float64)[:, None]
