"""What the sum over values takes for probabilities.

Stored: those of the soft-max, as the dump has them. Float32: attention in one piece, in float32 inside. Flash: the same
with exp(s - m), not normalised, rounded to the format of the values; m is the largest score of the row so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "stored": "",
    "float32": "attention in one piece, float32 inside",
    "flash": "flash attention with probabilities in {}",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    return tuple(WORDS) if stage.kind == "mix" and result is not FLOAT32 else ()


FACT = Fact("mix", values, lambda value, result: WORDS[value].format(result.name))
