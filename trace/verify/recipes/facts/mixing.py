"""What the sum over values takes for probabilities.

Stored: those of the soft-max, as the dump has them. Float32: attention in one piece, in float32 inside. Flash: the
same with exp(s - m), not normalised, rounded to the format of the values; m is the largest score of the row so far.
Fast flash: with an exponential that is good to 13 bits (PyTorch's on a CPU, in 16 bits), so that more of them may
round either way. Blocks: m is the largest of the blocks so far, so that any of them may.

Ggml, in float32: probabilities are not rounded, and values of a cache in halves are summed in halves, key after key,
unless queries come in tiles of 64 (from a prompt of 64 tokens on, in newer versions), which are not rounded either.
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
    "fast flash": "flash attention with probabilities in {} of a fast exponential",
    "blocks": "flash attention with probabilities in {}, keys in blocks of a size and order that nobody told",
    "ggml": "flash attention of ggml on a CPU",
    "ggml rows": "flash attention of ggml on a CPU, one query at a time",
}
GGML = ("ggml", "ggml rows")


def values(stage: Stage, result: Float) -> Sequence[str]:
    if stage.kind != "mix":
        return ()
    return ("stored", *GGML) if result is FLOAT32 else tuple(way for way in WORDS if way not in GGML)


FACT = Fact("mix", values, lambda value, result: WORDS[value].format(result.name), wide={"blocks": "flash"})
