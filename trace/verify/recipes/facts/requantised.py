"""What an engine makes of matrices when it loads them, beside a format (loaded.py)."""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from ..loaded import LEVELS, ROWS
from .fact import Fact

WORDS = {
    "int8 even tensor": "matrices in int8, one scale (torch.ao)",
    "int8 tensor": "matrices in int8, one scale",
    "int8 token": "matrices in int8, a scale for each row",
    "e4m3 tensor": "matrices in FP8 (e4m3), one scale",
    "e4m3 token": "matrices in FP8 (e4m3), a scale for each row",
    "float16": "matrices in float16",
    LEVELS: "4-bit levels and sizes in bfloat16, products too (bitsandbytes on a CPU)",
}
SIXTEEN = ("float16",)  # of engines of 16 bits `weights` says it


def values(stage: Stage, result: Float) -> Sequence[str | None]:
    if stage.kind != "product":
        return ()
    return (None, *(kind for kind in ROWS if result is FLOAT32 or kind not in SIXTEEN))


FACT = Fact("requantised", values, lambda value, result: "" if value is None else WORDS[value])
