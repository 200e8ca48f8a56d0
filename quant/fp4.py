"""FP4/group/dtype: bitsandbytes' 4-bit float, a sign, two bits of exponent and one of mantissa; see levels4.py.

Its levels are those of E2M1 over 12 but for the smallest, in an order of their own; no code stands for -0.
"""

from __future__ import annotations

import numpy as np

from .format import Format
from .levels4 import levelled

_SIZES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
LEVELS = np.concatenate((_SIZES, 0 - _SIZES)).astype(np.float32)


def FORMAT(group: int, dtype: str) -> Format:
    return levelled("FP4", LEVELS, group, dtype)
