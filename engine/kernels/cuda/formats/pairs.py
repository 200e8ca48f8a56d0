"""Values of 16 bits, two to a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine.ptx import device, load4


def pack(blocks: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    return {"codes": blocks.view("<u4").reshape(-1)}


def pairs(four: Any) -> Any:
    """Group i's values: eight times four, which `four` makes of two words."""

    @device
    def values(codes, i):
        a, b, c, d = load4(codes, 4 * i), load4(codes, 4 * i + 1), load4(codes, 4 * i + 2), load4(codes, 4 * i + 3)
        return (
            four(a[0], a[1]),
            four(a[2], a[3]),
            four(b[0], b[1]),
            four(b[2], b[3]),
            four(c[0], c[1]),
            four(c[2], c[3]),
            four(d[0], d[1]),
            four(d[2], d[3]),
        )

    return values
