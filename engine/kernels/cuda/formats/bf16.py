"""BF16 on the card: the upper halves of float32, two to a word (quant/bf16.py)."""

from __future__ import annotations

from numba import uint32

from .....quant import bf16
from ..machine.ptx import device, float_of
from .pairs import pack, pairs

__all__ = ["FORMAT", "pack", "values"]
FORMAT = bf16.FORMAT
HIGH, S16 = uint32(0xFFFF0000), uint32(16)


@device
def four(a, b):
    return float_of(a << S16), float_of(a & HIGH), float_of(b << S16), float_of(b & HIGH)


values = pairs(four)
