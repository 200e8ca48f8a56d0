"""F8_E5M2/group/scales: 8-bit floats of 5 exponent bits and 2 of mantissa, infinities and NaN as IEEE 754 has them."""

from __future__ import annotations

import numpy as np

from .float8 import finite_levels, scaled
from .format import Format

LEVELS = finite_levels(5, 2)
LEVELS[[124, 252]] = np.inf, -np.inf
LEVELS[[125, 126, 127, 253, 254, 255]] = np.nan


def FORMAT(group: int, scales: str) -> Format:
    return scaled("F8_E5M2", LEVELS, group, scales)
