"""Codes of four bits and more: how 32 of them lie in four words, and where their upper bits lie.

Byte b of word k holds value 8 k + b in its low nibble and 8 k + 4 + b in its high one: a mask and a shift make words of
four codes in order. Upper bits lie in words of their own, so that a shift and a mask put them in place.
"""

from __future__ import annotations

import numpy as np
from numba import uint32
from numpy.typing import NDArray

from ..machine.ptx import device, load4

LOW = uint32(0x0F0F0F0F)
FOUR = uint32(4)


def pack_nibbles(q: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """[groups, 32] codes -> their lower four bits, uint32 [groups * 4]."""
    pairs = q.reshape(-1, 4, 2, 4)
    return np.ascontiguousarray(pairs[:, :, 0] & 15 | pairs[:, :, 1] << 4).view("<u4").reshape(-1)


def pack_upper(q: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """[groups, 32] codes -> the `bits` bits above the lower four, uint32 [groups * bits].

    A word serves 8 / bits words of four codes: byte b has the bits of code 4 j + b at bit `bits` j.
    """
    per = 8 // bits
    upper = (q >> 4).reshape(-1, bits, per, 4)
    shift = (bits * np.arange(per, dtype=np.uint8))[:, None]
    return np.bitwise_or.reduce(upper << shift, axis=2).view("<u4").reshape(-1)


@device
def nibbles(codes, i):
    """Group i's codes: eight words of four, one to a byte."""
    w = load4(codes, i)
    return (
        w[0] & LOW,
        (w[0] >> FOUR) & LOW,
        w[1] & LOW,
        (w[1] >> FOUR) & LOW,
        w[2] & LOW,
        (w[2] >> FOUR) & LOW,
        w[3] & LOW,
        (w[3] >> FOUR) & LOW,
    )
