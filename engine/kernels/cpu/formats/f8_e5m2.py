"""F8_E5M2/group/scales, packed: as F8_E4M3, with a bit more of exponent (quant/f8_e5m2.py)."""

from __future__ import annotations

from .f8_e4m3 import scaled

FORM = scaled(__name__, "F8_E5M2", 2, 123)
