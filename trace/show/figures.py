"""What is in a part of a stage, in figures: row by row, and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
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
    """statistics of a line; largest: what `largest` finds."""

    line: Line
    statistics: Statistics
    largest: tuple[Peak, ...]


def row_figures(v: View, line: Line, top: int) -> RowFigures:
    """Of one of the view's lines, with so many of its largest values."""
    return RowFigures(line, statistics([line.computed]), largest(v, line, top))


def largest(v: View, line: Line, top: int) -> tuple[Peak, ...]:
    """The finite values of largest magnitude, of logits the largest ones; the earlier first among equals."""
    x = line.computed.astype(np.float64)
    size = np.where(np.isfinite(x), x if v.entry.stage.letters[-1] == "V" else np.abs(x), -np.inf)
    order = np.argsort(-size, kind="stable")[: min(top, int(np.isfinite(x).sum()))]
    return tuple(Peak(v.columns[i], float(x[i])) for i in order.tolist())


def massive(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which values are massive activations, the others given."""
    size = np.where(np.isfinite(values), np.abs(values), 0).astype(np.float64)
    if not size.size:
        return np.zeros(values.shape, np.bool_)
    return np.asarray(size > max(MASSIVE, MASSIVE_MEDIANS * float(np.median(size))))


def by_channel(v: View) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """([columns], [columns]): the largest finite magnitude in each, over the rows and heads, 0 where nothing is finite;
    and whether one of its values is massive."""
    size_RC = np.abs(v.by_head.reshape(-1, len(v.columns)).astype(np.float64))
    size_RC = np.where(np.isfinite(size_RC), size_RC, 0)
    is_RC = massive(v.by_head).reshape(-1, len(v.columns))
    return np.asarray(size_RC.max(0)), np.asarray(is_RC.any(0))


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
    peaks = [(line, peak) for line in lines for peak in largest(v, line, 1)]
    worst = max(peaks, key=lambda p: abs(p[1].value), default=None)
    every = v.computed()
    return LayerFigures(v.entry, statistics([every]), worst, int(massive(every).sum()))


def by_layer(layers: Iterable[View]) -> list[tuple[int, float, float]]:
    """(layer, RMS, largest magnitude) of those whose values are finite and not all zero."""
    found = []
    for f in map(layer_figures, layers):
        if f.worst is not None and f.statistics.rms and f.entry.layer is not None:
            found.append((f.entry.layer, f.statistics.rms, abs(f.worst[1].value)))
    return found
