"""F32, packed: column by column, 32 rows side by side."""

from __future__ import annotations

from .....quant import f32
from ..machine.kernel import helper
from ..machine.simd import load_f32
from ..matmul.form import Form
from ..matmul.product import columns


@helper
def column(w, k):
    return load_f32(w + 128 * k)


FORM = Form(f32.FORMAT, half_at=-1, words_at=0, f32=columns(__name__, column))
