"""Scores and probabilities of a long prompt are judged some queries at a time: the same spans, in bounded memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from qwenref.engine.config import ALL
from qwenref.trace.verify.fit import fit_of
from qwenref.trace.verify.recipes import operations
from qwenref.trace.verify.recipes.recipe import FLOAT32_RECIPE, Recipe
from qwenref.trace.verify.span import FLOAT16, Span

HALF = replace(FLOAT32_RECIPE, result=FLOAT16, attention=FLOAT16)


def span(rng: np.random.Generator, *shape: int, exact: bool) -> Span:
    """Whole numbers, whose sums of products are exact in any order."""
    x = rng.integers(-9, 10, shape).astype(np.float64)
    return Span.point(x) if exact else Span(x, x - 1, x + 1)


def same(a: Span, b: Span) -> None:
    assert a.exact == b.exact
    for x, y in ((a.mid, b.mid), (a.lo, b.lo), (a.hi, b.hi)):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("recipe", [FLOAT32_RECIPE, HALF, replace(HALF, scale="queries")])
def test_spans_are_those_of_all_queries_at_once(recipe: Recipe, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, T, S = np.random.default_rng(0), 11, 15
    pos_T = np.arange(S - T, S, dtype=np.int32)
    q, k = span(rng, T, 4, 16, exact=exact), span(rng, S, 2, 16, exact=exact)
    s = span(rng, 4, T, S, exact=exact)

    def all_of() -> list[Span]:
        return [operations.scores(recipe, q, k, pos_T), *(operations.softmax(recipe, s, pos_T, w) for w in (ALL, 3))]

    whole = all_of()
    for piece in (1, 4 * S * 2, 4 * S * 4):  # one query at a time, two, four of eleven
        monkeypatch.setattr(operations, "PIECE", piece)
        for a, b in zip(whole, all_of(), strict=True):
            same(a, b)


def test_only_the_result_is_as_large_as_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span is three arrays of 8 MB here; what bounds it took a dozen more."""
    monkeypatch.setattr(operations, "PIECE", 1 << 15)
    T, N = 512, 4
    pos_T, x = np.arange(T, dtype=np.int32), np.zeros((N, T, T))
    q, k = np.ones((T, N, 16)), np.ones((T, 2, 16))
    for f in (
        lambda: operations.scores(HALF, Span.point(q), Span.point(k), pos_T),
        lambda: operations.softmax(HALF, Span.point(x), pos_T),
    ):
        tracemalloc.start()
        try:
            f()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4.5 * x.nbytes, peak / x.nbytes


def test_behind_a_query_whose_scores_are_nan_stands_0_or_nan() -> None:
    """Transformers writes NaN into the whole row, this engine 0 behind the query; neither is a mistake, 0.5 is."""
    pos_T, scores_NTS = np.arange(6, dtype=np.int32), np.ones((2, 6, 6))
    scores_NTS[1, 2, 1] = np.nan
    y = operations.softmax(FLOAT32_RECIPE, Span.point(scores_NTS), pos_T)
    got = np.tril(np.ones((2, 6, 6))) / (np.arange(6) + 1)[:, None]
    got[1, 2, :3] = np.nan
    for fill, outside in ((0.0, 0), (np.nan, 0), (0.5, 3)):
        got[1, 2, 3:] = fill
        assert fit_of(got.astype(np.float32), y).outside == outside
    got[1, 2, 0] = got[0, 2, 4] = 0.25
    assert fit_of(got.astype(np.float32), y).outside == 3 + 2
