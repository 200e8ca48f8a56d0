"""What an engine rounds matrices to when it loads them, beside a format: 8 bits with a scale (scaled.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import Float
from .fact import Fact

WORDS = {
    "int8 even tensor": "matrices in int8, one scale (torch.ao)",
    "int8 tensor": "matrices in int8, one scale",
    "int8 token": "matrices in int8, a scale for each row",
    "e4m3 tensor": "matrices in FP8 (e4m3), one scale",
    "e4m3 token": "matrices in FP8 (e4m3), a scale for each row",
}


def values(stage: Stage, result: Float) -> Sequence[str | None]:
    return (None, *WORDS) if stage.kind == "product" else ()


FACT = Fact("requantised", values, lambda value, result: WORDS.get(value, ""))
