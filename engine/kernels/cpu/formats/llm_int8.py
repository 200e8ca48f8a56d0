"""LLM_INT8/group, packed: of each group absmax of 32 rows, then their signed bytes, a word of each row at a time
(quant/llm_int8.py). In groups of a multiple of 32 columns.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .....quant.tensor import format_of
from ..machine.kernel import helper
from ..machine.simd import load_f32, signed_byte, splat_f32, to_f32
from ..matmul.form import Form, Products
from ..matmul.grouped import CHAIN, grouped

SHARE = np.float32(1 / 127)


@helper
def value(words, i, absmax):
    return to_f32(signed_byte(words, i)) * absmax * splat_f32(SHARE)


@cache
def products() -> Products:
    return grouped(__name__, "8", load_f32, value, 8, 128)


def FORM(group: str) -> Form | None:
    if int(group) % CHAIN:
        return None
    return Form(format_of(f"LLM_INT8/{group}"), half_at=-1, words_at=0, f32=products())
