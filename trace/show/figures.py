"""What is in a part of a stage, in figures: row by row, and layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..dump import Entry
from ..stats import Statistics, statistics
from .view import Line, View

# Sun, Chen, Kolter and Liu, Massive Activations in Large Language Models (2024), section 2: an activation is massive if
# its magnitude is above 100 and about 1,000 times the median magnitude of its hidden state.
MASSIVE, MASSIVE_MEDIANS = 100.0, 1000.0


@dataclass(frozen=True, slots=True)
class Peak:
    """A value and the column that it stands in."""

    column: int
    value: float


@dataclass(frozen=True, slots=True)
class RowFigures:
    """statistics of a line; largest: its values of largest magnitude."""

    line: Line
    statistics: Statistics
    largest: tuple[Peak, ...]


def row_figures(v: View, line: Line, top: int) -> RowFigures:
    """Of one of the view's lines, with so many of its largest values."""
    return RowFigures(line, statistics([line.computed]), largest(line.computed, v.columns.start, top))


def largest(values: NDArray[np.floating], first: int, top: int) -> tuple[Peak, ...]:
    """The finite values of largest magnitude, the earlier one first among equals. first: the number of values[0]."""
    size = np.where(np.isfinite(values), np.abs(values), -1)
    top = min(top, int((size >= 0).sum()))
    order = np.argsort(-size, kind="stable")[:top]
    return tuple(Peak(first + int(i), float(values[i])) for i in order)


def massive(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which values are massive activations, the others given."""
    size = np.where(np.isfinite(values), np.abs(values), 0)
    if not size.size:
        return np.zeros(values.shape, np.bool_)
    return np.asarray(size > max(MASSIVE, MASSIVE_MEDIANS * float(np.median(size))))


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer's. worst: where its largest magnitude stands, and the value; None where nothing is finite.
    massive: how many of its values are."""

    entry: Entry
    statistics: Statistics
    worst: tuple[Line, Peak] | None
    massive: int


def layer_figures(v: View) -> LayerFigures:
    """Of a view as a whole."""
    lines = list(v.lines())
    peaks = [(line, peak) for line in lines for peak in largest(line.computed, v.columns.start, 1)]
    worst = max(peaks, key=lambda p: abs(p[1].value), default=None)
    every = np.concatenate([line.computed for line in lines])
    return LayerFigures(v.entry, statistics([every]), worst, int(massive(every).sum()))
