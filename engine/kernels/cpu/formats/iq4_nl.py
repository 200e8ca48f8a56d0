"""IQ4_NL, packed: as Q4_0. Read as unsigned codes, each 128 above its level (quant/iq4_nl.py)."""

from __future__ import annotations

from .....quant import iq4_nl
from ..machine.kernel import helper
from ..machine.paths import SET
from ..machine.tiles import code8_128, table16
from ..matmul.form import Form
from ..matmul.integer import blocks_of_32
from ..matmul.product import coded
from .q4_0 import codes as indices
from .q4_0 import scale
from .q8_0 import MULTIPLY, OFFSET, PLANES

# quant/iq4_nl.py's, said again: the digest of the compiled kernels knows only this backend's own files.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
look_up, look_up_signed = table16([level + 128 for level in LEVELS]), table16([level & 0xFF for level in LEVELS])


@helper
def codes(w, group, quad):
    return look_up(indices(w, group, quad))


@helper
def signed(w, group, quad):
    return look_up_signed(indices(w, group, quad))


FORM = Form(
    iq4_nl.FORMAT,
    half_at=0,
    words_at=2,
    f32=coded(__name__, codes, code8_128, scale, rest=None, quads=8),
    **blocks_of_32(__name__, signed if SET.signed else codes, MULTIPLY, OFFSET, scale, bits=8 // PLANES, planes=PLANES),
)
