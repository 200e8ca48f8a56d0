"""F16 on the card: halves, two to a word (quant/f16.py)."""

from __future__ import annotations

from numba import uint16, uint32

from .....quant import f16
from ..machine.ptx import device, half
from .pairs import pack, pairs

__all__ = ["FORMAT", "pack", "values"]
FORMAT = f16.FORMAT
LOW, S16 = uint32(0xFFFF), uint32(16)


@device
def four(a, b):
    return half(uint16(a & LOW)), half(uint16(a >> S16)), half(uint16(b & LOW)), half(uint16(b >> S16))


values = pairs(four)
