"""Pictures of engine show: what is drawn is what the values say, with axes, units and tokens as they are spelled."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.trace.show import drawing, picture
from qwenref.trace.show.guess import Guess, Ranked
from qwenref.trace.show.names import Names
from qwenref.trace.show.picture import POSITIONS, layers_picture, lens_picture, stage_picture
from qwenref.trace.show.view import view

from .test_page import entry, layers, softmax

matplotlib = pytest.importorskip("matplotlib", reason="the extra [png] is not installed")
TEXTS = ["a$b$c", "\\$", "\n", "\u4ef7", "\U0010ffff", "x" * 40, "\u202e", "7"]


class Spelled:
    vocab_size = len(TEXTS)

    def text_of(self, id: int) -> str:
        return TEXTS[id]


NAMES = Names(list(range(len(TEXTS))), Spelled())


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Any]:
    """The figure that was written last; its bytes must be a picture of some size with something on it."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    written: list[Any] = []
    save = Figure.savefig

    def kept(self: Any, *args: Any, **kwargs: Any) -> None:
        written.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)

    def of(png: bytes) -> Any:
        assert png.startswith(b"\x89PNG") and (imread(BytesIO(png))[..., :3] < 0.5).all(-1).sum() > 200
        return written[-1]

    return of


def texts(ticks: list[Any]) -> list[str]:
    return [t.get_text().replace(r"\$", "$") for t in ticks]


def test_an_attention_map_is_the_probabilities(figure: Any) -> None:
    e = softmax()
    f = figure(stage_picture("d", view(e), [view(e)], NAMES))
    *maps, bar = f.axes
    assert [a.get_title() for a in maps] == ["head 0", "head 1"] and bar.get_ylabel() == "probability"
    for axes, p in zip(maps, e.values(), strict=True):
        drawn = axes.images[0].get_array().filled(np.nan)
        np.testing.assert_array_equal(drawn, np.where(np.tril(np.ones(p.shape)) > 0, p.astype(np.float64), np.nan))
        assert axes.images[0].get_clim() == (0, 1)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("key", "query")
        assert texts(axes.get_xticklabels()) == texts(axes.get_yticklabels())
    said = texts(maps[0].get_xticklabels())
    assert said[0] == "'a$b$c'" and said[1] == "'\\\\$'" and said[2] == r"'\n'" and said[7] == "'7'"
    assert said[4] == r"'\U0010ffff'" and len(said[5]) == 14 and said[5].endswith("…")
    assert f.get_suptitle().splitlines()[0] == "attn_softmax, layer 0 (prompt)"
    assert "2 N × 8 T × 8 S; tokens: 'a$b$c'" in f.get_suptitle().replace(r"\$", "$")


def test_characters_without_a_glyph_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty box would say nothing. With a font that has them they are drawn as they are."""
    monkeypatch.setattr(drawing, "fonts", lambda: (("Roman", frozenset(range(32, 127))),))
    assert drawing.plain("price \u4ef7 $\udcff") == "price \\u4ef7 \\$\\udcff"
    monkeypatch.setattr(drawing, "fonts", lambda: (("Roman", frozenset(range(32, 127))), ("Han", frozenset([0x4EF7]))))
    assert drawing.plain("price \u4ef7") == "price \u4ef7"


def test_a_map_is_bounded_and_says_so(figure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By smaller bounds here: so large a picture takes its time."""
    HEADS, KEYS = 2, 6
    monkeypatch.setattr(picture, "HEADS", HEADS)
    monkeypatch.setattr(picture, "KEYS", KEYS)
    e = softmax(HEADS + 1, KEYS + 3)
    f = figure(stage_picture("d" * 900, view(e), [view(e)], Names([], None)))
    assert len([a for a in f.axes if a.images]) == HEADS
    said = " ".join(f.get_suptitle().split())
    assert f"the last {KEYS} queries and {KEYS} keys" in said and f"the first {HEADS} heads of {HEADS + 1}" in said
    assert texts(f.axes[0].get_xticklabels())[0] == "3" and "ddd…ddd" in said
    part = figure(stage_picture("d", view(e, "2", "4:", "4:"), [view(e)], Names([], None)))
    cells = [float(t.get_text()) for t in part.axes[0].texts]
    p = e.values()[2, 4:, 4:]
    np.testing.assert_allclose(cells, p[np.tril_indices(len(p))], rtol=0.06)


def test_each_head_of_scores_has_its_own_scale(figure: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 8, 8)) * [[[1]], [[100]]]
    e = entry("attn_scores", np.where(np.tril(np.ones((8, 8))) > 0, scores, -np.inf))
    f = figure(stage_picture("d", view(e), [view(e)], NAMES))
    for axes, s in zip(f.axes[:2], e.values(), strict=True):
        some = s[np.tril_indices(8)]
        assert axes.images[0].get_clim() == (some.min(), some.max())
    assert [a.get_ylabel() for a in f.axes[2:]] == ["score before the soft-max, no unit"] * 2


def test_channels_and_massive_activations_are_where_they_are(figure: Any) -> None:
    x = np.random.default_rng(0).normal(size=(8, 64)) * 0.1
    x[3, 17], x[5, 40], x[6, 2] = 700, -1200, 90
    found = [view(entry("post_ffn_residual", x * 2.0**i, i)) for i in range(3)]
    f = figure(stage_picture("d", found[0], found, NAMES))
    channels, depth, spread = f.axes
    curve, *marks = channels.lines
    np.testing.assert_allclose(curve.get_ydata(), np.abs(x).max(0).astype(np.float32))
    assert [tuple(m.get_xydata()[0]) for m in marks] == [(40, 1200), (17, 700)]
    assert [t.get_text() for t in channels.texts] == ["40: 1200", "17: 700"]
    assert "2 massive values" in channels.get_title() and channels.get_yscale() == depth.get_yscale() == "log"
    assert channels.get_xlabel() == "channel" and channels.get_ylabel() == "largest |x| over 8 positions, no unit"
    most, rms = (line.get_ydata() for line in depth.lines)
    np.testing.assert_allclose(most, [1200, 2400, 4800])
    np.testing.assert_allclose(rms, np.sqrt(np.mean(x**2)) * 2.0 ** np.arange(3), rtol=1e-6)
    assert sum(bar.get_height() for bar in spread.patches) == x.size
    assert (depth.get_xlabel(), depth.get_ylabel()) == ("layer", "magnitude, no unit")
    assert (spread.get_xlabel(), spread.get_ylabel()) == ("value, no unit", "values in the bin")


def test_layers(figure: Any) -> None:
    found = layers()
    f = figure(layers_picture("d", found, NAMES))
    rms = [np.sqrt(np.mean(v.values.astype(np.float64) ** 2)) for v in found]
    np.testing.assert_allclose(f.axes[0].lines[1].get_ydata(), rms)
    assert f.get_suptitle().startswith("ffn_out (prompt)\n")


@pytest.mark.parametrize("fill", [np.nan, 3e38])
def test_values_that_are_not_finite(fill: float, figure: Any) -> None:
    v = view(entry("ffn_out", np.full((8, 64), fill)))
    f = figure(stage_picture("d", v, [v, v], NAMES))
    assert any("no finite value" in t.get_text() for a in f.axes for t in a.texts) == (fill != 3e38)
    e = entry("attn_scores", np.full((1, 8, 8), fill))
    figure(stage_picture("d", view(e), [view(e)], NAMES))


def test_the_lens(figure: Any) -> None:
    """Of one position the likeliest tokens with the rank, of several the likeliest of each; the last ones of many."""
    top = (Ranked(0, 3.0, 0.625), Ranked(3, 2.0, 0.25))
    one = [Guess(0, 3, top, 9), Guess(1, 3, (), None), Guess(2, 3, top[::-1], 1)]
    f = figure(lens_picture("d", [one], layers()[0], NAMES))
    axes, bar = f.axes
    assert texts(axes.get_yticklabels()) == ["0 (9)", "1 (-)", "2 (1)"] and bar.get_ylabel() == "probability"
    said = [t.get_text().replace(r"\$", "$") for t in axes.texts]
    price = drawing.drawable("'\u4ef7'")
    assert said == ["'a$b$c'", price, "not finite", "not finite", price, "'a$b$c'"]
    np.testing.assert_array_equal(
        axes.images[0].get_array().filled(np.nan), [[0.625, 0.25], [np.nan, np.nan], [0.25, 0.625]]
    )
    many = [[Guess(0, p, top, 1), Guess(1, p, top, 1)] for p in range(POSITIONS + 2)]
    f = figure(lens_picture("d", many, layers()[0], NAMES))
    assert len(f.axes[0].texts) == 2 * POSITIONS and f"the last {POSITIONS} positions of" in f.get_suptitle()


def test_a_matplotlibrc_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v = view(softmax(), "0")
    before = stage_picture("d", v, [v], NAMES)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 3, "savefig.dpi": 20}):
        assert stage_picture("d", v, [v], NAMES) == before
        assert matplotlib.rcParams["text.usetex"] is True
