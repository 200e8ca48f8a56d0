"""What of RoPE is rounded to 16 bits: cosine and sine, and the two products of each number. An engine that keeps
float32 may have its table of cosines and sines in 16 bits.

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
TABLES = {
    "float16 tables": "RoPE's cosines and sines in float16",
    "bfloat16 tables": "RoPE's cosines and sines in bfloat16",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    if stage.kind != "rotation":
        return ()
    return tuple(WORDS) if result is not FLOAT32 else ("rounded", *TABLES)


FACT = Fact("turn", values, lambda value, result: (WORDS | TABLES)[value])
