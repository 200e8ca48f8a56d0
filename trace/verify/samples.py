"""Bounded samples of what a dump holds and what was expected, for a report's pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .span import Array, Span

POINTS = 200  # pairs of found and expected
EDGE = 32  # positions and keys of an attention picture
EDGES = (0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 100.0, 1e4)  # of the histogram, in units of what rounding allows

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """The worst head of a stage of attention: found and expected, [queries][keys]; first_query, first_key: of the
    file's axes, where the piece begins that is shown."""

    head: int
    first_query: int
    first_key: int
    found: Rows
    expected: Rows


@dataclass(frozen=True, slots=True)
class Samples:
    """pairs: (expected, found), evenly spread over the tensor, the worst among them. counts: elements whose error is
    up to each of EDGES times what rounding allows, and those beyond. head: of stages of attention."""

    pairs: tuple[tuple[float, float], ...]
    counts: tuple[int, ...]
    head: Head | None = None


def sampled(got: NDArray[np.floating[Any]], span: Span, error: Array, letters: tuple[str, ...]) -> Samples:
    """error: |got - span.mid|, infinite where it is none."""
    found, expected = np.asarray(got, np.float64), span.mid
    at = np.unique(np.append(np.linspace(0, found.size - 1, POINTS - 1).astype(np.intp), error.argmax()))
    pairs = np.stack([expected.reshape(-1)[at], found.reshape(-1)[at]], 1)
    pairs = pairs[np.isfinite(pairs).all(1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0, error / np.where(np.isfinite(span.radius), span.radius, 0))
    counts = np.bincount(np.searchsorted(EDGES, ratio.reshape(-1)), minlength=len(EDGES) + 1)
    head = head_of(found, expected, error) if letters == ("N", "T", "S") else None
    return Samples(_rows(pairs), tuple(counts.tolist()), head)  # type: ignore[arg-type]


def head_of(found: Array, expected: Array, error: Array) -> Head:
    head, query, key = np.unravel_index(int(error.argmax()), error.shape)
    row, column = (
        max(0, min(int(i) - EDGE // 2, n - EDGE)) for i, n in zip((query, key), error.shape[1:], strict=True)
    )
    piece = np.s_[head, row : row + EDGE, column : column + EDGE]
    return Head(int(head), row, column, _rows(found[piece]), _rows(expected[piece]))


def _rows(x: Array) -> Rows:
    return tuple(tuple(float(f"{v:.4g}") for v in row) for row in x.tolist())
