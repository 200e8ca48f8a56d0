"""Root mean squares, and how large one is beside another."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray


def rms(x: NDArray[np.floating[Any]]) -> float:
    """Root of the mean square, safe from overflow; 0 of nothing."""
    top = float(np.abs(x).max(initial=0.0))
    return top * float(np.sqrt(np.mean(np.square(x / top)))) if 0 < top < np.inf else top


def ratio(a: float, b: float) -> float:
    """a / b of two that are not negative: 0 of nothing, whatever beside, and infinite of something beside nothing."""
    return a / b if b else (0.0 if a == 0 else inf)
