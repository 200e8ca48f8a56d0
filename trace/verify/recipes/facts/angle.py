"""How RoPE's angle comes about (recipes/rope.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import Float
from .fact import Fact


def values(stage: Stage, result: Float) -> Sequence[str]:
    return ("product", "repeated", "exact") if stage.kind == "rotation" else ()


FACT = Fact("angle", values)
