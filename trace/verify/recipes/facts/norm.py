"""Whether a norm is rounded before its gain and after it, or once, at the end.

Apart: once, and the mean square is of the residual sum as it was before it was stored, the values are the stored ones
(torch.compile of one token: a reduction of its own).
"""

from __future__ import annotations

from collections.abc import Sequence

from ....stages import Stage
from ...span import FLOAT32, Float
from .fact import Fact

WORDS = {
    "twice": "",
    "once": "norm rounded once",
    "apart": "norm rounded once, by the mean square of the unrounded residual sum",
}


def values(stage: Stage, result: Float) -> Sequence[str]:
    if stage.kind != "norm" or result is FLOAT32:
        return ()
    return tuple(w for w in WORDS if w != "apart" or "D" in stage.letters)


FACT = Fact("norm", values, lambda value, result: WORDS[value])
