"""What matrices, gains and biases are rounded to before they are used; in a product, activations as well."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import BFLOAT16, FLOAT16, FLOAT32, TF32, TF32_CUT, Float
from .fact import Fact

KINDS = ("look-up", "norm", "product", "bias")


def values(stage: Stage, result: Float) -> Sequence[Float | None]:
    if stage.kind not in KINDS:
        return ()
    if result is not FLOAT32:
        return (result, None)
    return (None, BFLOAT16, FLOAT16, TF32, TF32_CUT) if stage.kind == "product" else (None, BFLOAT16, FLOAT16)


def words(value: Float | None, result: Float) -> str:
    if value in (TF32, TF32_CUT):
        return f"products of {value.name} inputs"
    if result is FLOAT32:
        return "" if value is None else f"weights in {value.name}"
    return "unrounded weights" if value is None else ""


FACT = Fact("weights", values, words)
