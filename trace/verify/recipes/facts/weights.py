"""What matrices, gains and biases are rounded to before they are used."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import BFLOAT16, FLOAT16, FLOAT32, Float
from .fact import Fact

KINDS = ("look-up", "norm", "product", "bias")


def values(stage: Stage, result: Float) -> Sequence[Float | None]:
    if stage.kind not in KINDS:
        return ()
    return (None, BFLOAT16, FLOAT16) if result is FLOAT32 else (result, None)


def words(value: Float | None, result: Float) -> str:
    if result is FLOAT32:
        return "" if value is None else f"weights in {value.name}"
    return "unrounded weights" if value is None else ""


FACT = Fact("weights", values, words)
