"""What the activations of a product become before they meet the weights."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "int16": "activations in 16-bit integers",
    "x86": "activations in 8 bits, as ggml",
    "reference": "activations in 8 bits, as ggml",
    "arm": "activations in 8 bits, as ggml",
}


def values(stage: Stage, result: Float) -> Sequence[str | None]:
    if stage.kind != "product":
        return ()
    return (None, "x86", "reference", "arm", "int16") if result is FLOAT32 else (None,)


FACT = Fact("quantiser", values, lambda value, result: WORDS.get(value, ""))
