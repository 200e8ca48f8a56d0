"""BF16, packed: column by column, 32 rows side by side."""

from __future__ import annotations

from .....quant import bf16
from ..machine.kernel import helper
from ..machine.simd import load_bf16
from ..matmul.form import Form
from ..matmul.product import columns


@helper
def column(w, k):
    return load_bf16(w + 64 * k)


FORM = Form(bf16.FORMAT, half_at=0, words_at=2, f32=columns(__name__, column))
