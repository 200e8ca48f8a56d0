"""A part of a stage: the values that NumPy's own slices have, and figures that NumPy finds of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.errors import BadInput
from qwenref.trace.dump import Entry
from qwenref.trace.show.figures import layer_figures, massive, row_figures
from qwenref.trace.show.histogram import BINS, histogram
from qwenref.trace.show.view import view
from qwenref.trace.stages import by_name

SIZES = {"T": 5, "S": 7, "N": 4, "K": 2, "H": 6, "D": 24, "E": 48, "F": 30, "V": 50}
STAGES = ("attn_norm", "qkv_bias", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "lm_head")
SPANS = (":", "2", "1:3", "1..3", "-2:", ":-1", "-1", "0")


def entry(name: str, seed: int = 0) -> Entry:
    """Of two positions before and five that are there."""
    s = by_name(name)
    shape = tuple(SIZES[letter] for letter in s.letters)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Entry(Path("d") / name, s, 1, 0, shape, (2, 3, 4, 5, 6) if "T" in s.letters else (6,), array=values)


def python(text: str) -> slice:
    """The slice that Python makes of it, of one number one that keeps the axis."""
    start, two, stop = text.replace("..", ":").partition(":")
    if not two:
        return slice(int(text), int(text) + 1 or None)
    return slice(int(start) if start else None, int(stop) if stop else None)


def past(text: str, size: int) -> bool:
    """Whether it names what is not there; a slice of Python's would say nothing."""
    numbers = [int(word) for word in text.replace("..", ":").split(":") if word]
    return any(not -size <= n <= size for n in numbers)


@pytest.mark.parametrize("name", STAGES)
@given(st.sampled_from(SPANS), st.sampled_from(SPANS), st.sampled_from(SPANS))
def test_parts_are_those_of_numpy(name: str, heads: str, rows: str, columns: str) -> None:
    e = entry(name)
    letters, headed = e.stage.letters, bool({"N", "K"} & set(e.stage.letters))
    rows = rows if "T" in letters else ":"
    cuts = {"N": heads, "K": heads, "T": rows} | {letters[-1]: columns}
    expected = e.values()[tuple(python(cuts[a]) for a in letters)]
    said = (heads if headed else None, rows, columns)
    if not expected.size or any(past(cuts[a], SIZES[a]) for a in letters):
        with pytest.raises(BadInput, match="there are 0 to"):
            view(e, *said)
        return
    v = view(e, *said)
    np.testing.assert_array_equal(v.values, expected)
    for line in v.lines():
        whole = (
            np.moveaxis(e.values(), e.stage.letters.index("T"), 0)[line.row] if "T" in e.stage.letters else e.values()
        )
        row = (whole if line.head is None else whole[line.head])[python(columns)]
        np.testing.assert_array_equal(line.values, row)
        assert line.position == (2 + line.row if "T" in letters else 6)
        if "S" in letters:  # keys up to the query, which has seen two positions before
            keys = np.arange(SIZES["S"])[python(columns)]
            np.testing.assert_array_equal(line.computed, row[keys <= line.position])
        else:
            np.testing.assert_array_equal(line.computed, row)


@pytest.mark.parametrize("span", ["5", "-6", "3:9", "3:3", "4:2", "-9:", "a", "", "1:2:3", "1.5", "9" * 30, "\x1b[2J"])
def test_a_part_that_is_not_there(span: str) -> None:
    with pytest.raises(BadInput, match=r"^--rows .*there are 0 to 4"):
        view(entry("attn_norm"), rows=span)
    with pytest.raises(BadInput, match="attn_norm has no heads"):
        view(entry("attn_norm"), heads="0")


def test_figures_are_those_of_numpy() -> None:
    e = entry("attn_norm")
    assert e.array is not None
    e.array[1, 3:6] = np.nan, -np.inf, 0
    v = view(e)
    for line in v.lines():
        f, x = row_figures(v, line, 4), line.values.astype(np.float64)
        finite = x[np.isfinite(x)]
        s = f.statistics
        found = [s.mean, s.std, s.rms, s.min, s.max]
        expected = [finite.mean(), finite.std(), np.sqrt(np.mean(finite**2)), finite.min(), finite.max()]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
        assert (s.nan, s.inf, s.zero) == ((1, 1, 1) if line.row == 1 else (0, 0, 0))
        size = np.where(np.isfinite(x), np.abs(x), -1)
        assert [p.column for p in f.largest] == np.argsort(-size, kind="stable")[:4].tolist()
        assert [p.value for p in f.largest] == x[[p.column for p in f.largest]].tolist()


def test_the_largest_logits_are_not_the_most_negative() -> None:
    e = entry("lm_head")
    v = view(e)
    (line,) = v.lines()
    assert [p.column for p in row_figures(v, line, 3).largest] == np.argsort(-e.values(), kind="stable")[:3].tolist()


def test_what_stands_after_a_query_counts_nowhere() -> None:
    e = entry("attn_scores")
    assert e.array is not None
    after = np.arange(7) > np.arange(2, 7)[:, None]
    e.array[:, after] = -np.inf
    f = layer_figures(view(e))
    assert f.statistics.inf == 0 and f.statistics.count == e.array.size - 4 * after.sum()
    assert f.worst is not None
    line, peak = f.worst
    at = np.unravel_index(np.argmax(np.where(after, 0, np.abs(e.array))), e.shape)
    assert (line.head, line.row, peak.column) == at and peak.value == e.array[at]


def test_massive_activations_as_sun_et_al_define_them() -> None:
    """Above 100, and above a thousand times the median magnitude: both."""
    x = np.full(1001, 0.05, np.float32)
    x[3], x[4], x[5] = 101, -99, -5000
    assert np.flatnonzero(massive(x)).tolist() == [3, 5]
    assert np.flatnonzero(massive(x * 4)).tolist() == [3, 4, 5]
    assert np.flatnonzero(massive(np.where(np.abs(x) < 1, np.float32(0.5), x))).tolist() == [5]
    assert not massive(np.array([np.nan, np.inf], np.float32)).any() and massive(np.zeros(0, np.float32)).shape == (0,)


@given(st.lists(st.floats(width=32), max_size=60))
def test_a_histogram_holds_every_finite_value_once(values: list[float]) -> None:
    x = np.array(values, np.float32)
    h, finite = histogram(x), x[np.isfinite(x)].astype(np.float64)
    if h is None:
        assert not finite.size
        return
    assert 1 <= len(h.counts) == len(h.edges) - 1 <= BINS + 1
    assert all(a < b for a, b in zip(h.edges, h.edges[1:], strict=False))
    assert (h.below, h.above) == ((finite < h.edges[0]).sum(), (finite >= h.edges[-1]).sum())
    inside = finite[(finite >= h.edges[0]) & (finite < h.edges[-1])]
    expected, _ = np.histogram(inside, bins=h.edges)
    assert list(h.counts) == expected.tolist() and sum(h.counts) + h.below + h.above == finite.size


def test_bins_are_round_and_outliers_do_not_stretch_them() -> None:
    x = np.random.default_rng(1).normal(size=5000)
    h = histogram(np.append(x, [1e5, -1e6]))
    assert h is not None
    assert h.edges == tuple(np.round(np.arange(-2.5, 2.6, 0.5), 1)) and h.above and h.below
