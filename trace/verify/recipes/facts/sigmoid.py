"""How SiLU's sigmoid is computed: in float32 and rounded with the rest, or by steps that are rounded or less exact.

Rounded: exp(-x), the sum and the quotient each (JAX in 16 bits). Mirrored: from exp(|x|), rounded, by symmetry, and the
sigmoid rounded (MLX on a CPU). Absolute, in float32: a quotient of polynomials that is good to units of 1's last place,
not of its own, so that far below 0 few of its digits are right (ONNX Runtime's MLAS on a CPU).
"""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "float32": "",
    "rounded": "each step of SiLU rounded",
    "mirrored": "SiLU by a rounded sigmoid of a rounded e^|x|",
    "absolute": "a sigmoid good to units of 1's last place",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    if stage.kind != "activation":
        return ()
    return ("float32", "absolute") if result is FLOAT32 else ("float32", "rounded", "mirrored")


FACT = Fact("sigmoid", values, lambda value, result: WORDS[value])
