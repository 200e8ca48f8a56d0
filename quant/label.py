"""Whether 16-bit weights carry the wrong label: BF16 read as F16, or F16 as BF16, gives numbers that no model has."""

from __future__ import annotations

import numpy as np

from .tensor import QTensor

SAMPLE = 1 << 14


def mislabelled(w: QTensor) -> str | None:
    """The format that a matrix more likely is in than the one it is labelled with, None where nothing looks wrong.

    BF16's eight exponent bits read as F16's five: weights from 2^-15 to 1 all land in [0.5, 2), none near zero. F16
    read as BF16: most of them below 2^-20. Trained weights are bell-shaped about zero on a scale of 0.001 to 1. A few
    values again and again, as decoded ternary weights are, tell nothing.
    """
    if len(w.shape) < 2 or w.format not in ("F16", "BF16"):
        return None
    bits = w.data[: 2 * SAMPLE].view("<u2") & 0x7FFF
    bits = bits[bits != 0]
    if bits.size < 64 or np.unique(bits).size < min(256, bits.size // 2):
        return None
    if w.format == "F16":
        inside = np.count_nonzero((bits >= 0x3800) & (bits < 0x4000))  # 0.5 <= |x| < 2
        return "BF16" if inside > 0.995 * bits.size else None
    return "F16" if np.median(bits) < (127 - 20) << 7 else None
