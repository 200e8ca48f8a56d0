"""FP4/group/dtype, packed: as NF4, with other levels (quant/fp4.py)."""

from __future__ import annotations

from .nf4 import levelled

SIZES = tuple(level / 12 for level in (0, 0.0625, 8, 12, 4, 6, 2, 3))
LEVELS = (*SIZES, *(0 - size for size in SIZES))  # quant/fp4.py's, said again
FORM = levelled(__name__, "FP4", LEVELS)
