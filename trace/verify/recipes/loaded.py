"""What an engine makes of a matrix when it loads it, beside a format: numbers of 8 bits with a scale (scaled.py), or
levels and sizes, each rounded for itself (levels.py). A row of ROWS each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..span import BFLOAT16, Float, Span
from . import levels
from .matrix import FileMatrix
from .scaled import KINDS

Rows = Callable[[int, int], Span]  # first row, and the row after the last -> these rows, as a product has them


@dataclass(frozen=True, slots=True)
class Loaded:
    """rows: a matrix -> its rows as the engine has made them. takes: whether it makes others of weights in a format.

    decoded: whether it takes the weights as they decode, whoever decodes them. top: whether it must know the largest
    weight first. both: what activations and the result are rounded to, whatever the engine keeps; None: as that says.
    """

    rows: Callable[[FileMatrix], Rows]
    takes: Callable[[str], bool]
    decoded: bool
    top: bool = False
    both: Float | None = None


def _eight(kind: str) -> Loaded:
    scaled = KINDS[kind]

    def rows(w: FileMatrix) -> Rows:
        own = scaled
        if scaled.over == "all" and scaled.fixed is None:
            own = replace(scaled, fixed=float(np.float32(w.top() / scaled.top)))
        return lambda start, stop: own.of(w.rows(start, stop).astype(np.float64))

    return Loaded(rows, lambda weight_format: True, decoded=True, top=scaled.over == "all" and scaled.fixed is None)


def _levels(w: FileMatrix) -> Rows:
    return lambda start, stop: Span.point(levels.rows(w, start, stop))


LEVELS = "levels in bfloat16"
LOADED = ("int8 even tensor", "int8 tensor", "int8 token", "e4m3 tensor", "e4m3 token", "float16")
ROWS: dict[str, Loaded] = {
    **{kind: _eight(kind) for kind in LOADED},
    LEVELS: Loaded(_levels, levels.known, decoded=False, both=BFLOAT16),
}


def loaded(kind: str | None, w: FileMatrix) -> Loaded | None:
    """What an engine makes of this matrix; None where it leaves it as it is. A hypothesis about the decoder says
    nothing of an engine that does not decode."""
    found = None if kind is None else ROWS[kind]
    return found if found and found.takes(w.format) and (found.decoded or w.change is None) else None
