"""MXFP4, packed: 32 rows' powers, as bfloat16, then 4 words of 32 rows a block of 32, as Q4_0 (quant/mxfp4.py).

A block has 17 bytes, packed 18: its first two are taken for a half, of which the power is the lower byte.
"""

from __future__ import annotations

from .....quant import mxfp4
from ..machine.kernel import Kernel, helper
from ..machine.simd import get_u16, load_bf16, set_u16
from ..machine.tiles import dot4_tile, table16, table16_f32
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded
from .q4_0 import SIZE
from .q4_0 import codes as indices

LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # quant/mxfp4.py's, said again
look_up, value_of = table16([level + 12 for level in LEVELS]), table16_f32([float(level) for level in LEVELS])


def _powers(first, last, w):
    """Blocks first..last of 32 rows: from e to 2^(e - 128), whose bfloat16 has bit 5 or 6 where it is subnormal."""
    for i in range(first, last):
        for lane in range(32):
            at = w + i * SIZE + 2 * lane
            e = get_u16(at) & 0xFF
            set_u16(at, (e - 1) << 7 if e > 1 else 0x20 << e)


@helper
def codes(w, group, quad):
    return look_up(indices(w, group, quad))


@helper
def value(nibbles, byte):
    return value_of(nibbles, 2 * byte)


@helper
def scale(w, group):
    return load_bf16(w + group * SIZE)


FORM = Form(
    mxfp4.FORMAT,
    half_at=0,
    words_at=1,
    f32=coded(__name__, indices, value, scale, rest=None, quads=8),
    **blocks_of_32(__name__, codes, dot4_tile, 12, scale, bits=5),
    rearrange=Kernel(_powers),
)
