"""What of RoPE is rounded to 16 bits: cosine and sine, and the two products of each number.

Contracted: a compiler made one product and the sum a fused operation, so that either product may be unrounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "rounded": "",
    "tables": "RoPE in float32 with 16-bit cosines",
    "float32": "RoPE in float32",
    "contracted": "RoPE in 16 bits with contracted products",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    return tuple(WORDS) if stage.kind == "rotation" and result is not FLOAT32 else ()


FACT = Fact("turn", values, lambda value, result: WORDS[value])
