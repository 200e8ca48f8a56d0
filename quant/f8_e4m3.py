"""F8_E4M3/group/scales: 8-bit floats of 4 exponent bits and 3 of mantissa, without infinities; 127 and 255 are NaN."""

from __future__ import annotations

import numpy as np

from .float8 import finite_levels, scaled
from .format import Format

LEVELS = finite_levels(4, 3)
LEVELS[[127, 255]] = np.nan


def FORMAT(group: int, scales: str) -> Format:
    return scaled("F8_E4M3", LEVELS, group, scales)
