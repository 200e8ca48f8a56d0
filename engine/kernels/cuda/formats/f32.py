"""F32 on the card: as it is; also what formats without kernels of their own are decoded to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .....quant import f32
from ..machine.ptx import device, float_of, load4

FORMAT = f32.FORMAT


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return {"codes": blocks.view("<u4").reshape(-1)}


@device
def four(codes, i):
    w = load4(codes, i)
    return float_of(w[0]), float_of(w[1]), float_of(w[2]), float_of(w[3])


@device
def values(codes, i):
    """Group i's values: eight times four."""
    i *= 8
    return (
        four(codes, i),
        four(codes, i + 1),
        four(codes, i + 2),
        four(codes, i + 3),
        four(codes, i + 4),
        four(codes, i + 5),
        four(codes, i + 6),
        four(codes, i + 7),
    )
