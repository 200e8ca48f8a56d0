"""Where attention's scale 1/sqrt(H) meets the scores: after they were rounded, before, or in the queries.

The scale itself may be of 16 bits, which shows where H is no power of 4 (JAX and MLX: a constant takes its array's
format).
"""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "after": "",
    "inside": "scores rounded after their scale",
    "queries": "scale folded into the queries",
    "short share": "scores times a scale of 16 bits",
    "short root": "scores over a root of 16 bits",
    "short queries": "scale of 16 bits folded into the queries",
    "halves": "half of the scale folded into queries and keys each",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    return tuple(WORDS) if stage.kind == "scores" and result is not FLOAT32 else ()


FACT = Fact("scale", values, lambda value, result: WORDS[value])
