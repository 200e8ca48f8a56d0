"""Whether SiLU is computed in float32 and rounded once, or each of its steps is rounded (JAX in 16 bits)."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact


def values(stage: Stage, result: Float) -> Sequence[str]:
    return ("float32", "rounded") if stage.kind == "activation" and result is not FLOAT32 else ()


FACT = Fact("sigmoid", values, lambda value, result: "each step of SiLU rounded" if value == "rounded" else "")
