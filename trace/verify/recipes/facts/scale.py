"""Where attention's scale 1/sqrt(H) meets the scores: after they were rounded, before, or in the queries."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "after": "",
    "inside": "scores rounded after their scale",
    "queries": "scale folded into the queries",
    "halves": "half of the scale folded into queries and keys each",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    return tuple(WORDS) if stage.kind == "scores" and result is not FLOAT32 else ()


FACT = Fact("scale", values, lambda value, result: WORDS[value])
