"""Whether a norm is rounded before its gain and after it, or once, at the end."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact


def values(stage: Stage, result: Float) -> Sequence[str]:
    return ("twice", "once") if stage.kind == "norm" and result is not FLOAT32 else ()


FACT = Fact("norm", values, lambda value, result: "norm rounded once" if value == "once" else "")
