"""In what format products are summed: float32, or half (tensor cores with half accumulators, HGEMM)."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT16, FLOAT32, Float
from .fact import Fact

KINDS = ("product", "scores", "mix")


def values(stage: Stage, result: Float) -> Sequence[Float]:
    return (FLOAT32, FLOAT16) if stage.kind in KINDS and result is FLOAT16 else ()


def words(value: Float, result: Float) -> str:
    return "" if value is FLOAT32 else f"sums kept in {value.name}, in an order that nobody told"


FACT = Fact("sums", values, words, wide={FLOAT16: FLOAT32})
