"""What keys, values and their partners are rounded to in the two products of attention."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import BFLOAT16, FLOAT16, FLOAT32, TF32, TF32_CUT, Float
from .fact import Fact


def values(stage: Stage, result: Float) -> Sequence[Float]:
    if stage.kind not in ("scores", "mix"):
        return ()
    return (FLOAT32, FLOAT16, BFLOAT16, TF32, TF32_CUT) if result is FLOAT32 else (result,)


def words(value: Float, result: Float) -> str:
    if value in (TF32, TF32_CUT):
        return f"attention's products of {value.name} inputs"
    return "" if value is result else f"keys and values in {value.name}"


FACT = Fact("attention", values, words)
