"""Pages of engine show: well formed, every cell and mark what the values say, and nothing obeyed that a token says."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qwenref.trace.dump import Entry
from qwenref.trace.show.attention import HEADS, KEYS
from qwenref.trace.show.guess import Guess, Ranked
from qwenref.trace.show.names import Names
from qwenref.trace.show.page import layers_page, lens_page, stage_page
from qwenref.trace.show.view import View, view
from qwenref.trace.stages import by_name

from ..verify.test_report import FLAGS, pixels

VOID = {"meta", "br"}
TEXTS = ["<b>", "</svg><script>alert(1)</script>", '"', "&amp;", "\u202e", "'", "\x1b[2J", "7"]


class Spelled:
    vocab_size = len(TEXTS)

    def text_of(self, id: int) -> str:
        return TEXTS[id]


NAMES = Names(list(range(len(TEXTS))), Spelled())  # type: ignore[arg-type]


class Balanced(HTMLParser):
    """Raises unless every element is closed where it must be; counts them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def entry(name: str, values: np.ndarray, layer: int | None = 0) -> Entry:
    return Entry(Path("d") / name, by_name(name), layer, 0, values.shape, array=values.astype(np.float32))


def softmax(N: int = 2, T: int = 8, seed: int = 0) -> Entry:
    scores = np.random.default_rng(seed).normal(size=(N, T, T)) * 3
    p = np.exp(np.where(np.arange(T) > np.arange(T)[:, None], -np.inf, scores))
    return entry("attn_softmax", p / p.sum(-1, keepdims=True))


def test_an_attention_map_is_the_probabilities() -> None:
    e = softmax()
    html = stage_page("d<i>", view(e), [view(e)], NAMES)
    assert Balanced(html).seen.count("script") == 1 and "<b>" not in html and "d<i>" not in html
    maps = re.findall(r'<svg class="tokens".*?</svg>', html)
    assert len(maps) == 2
    for h, drawn in enumerate(maps):
        cells = re.findall(r'<rect class="within"[^>]*fill-opacity="([\d.]+)"><title>(.*?)</title>', drawn)
        said = [re.fullmatch(r"(\d) .* -> (\d) .*: (\S+)", unescape(tip)) for _, tip in cells]
        assert len(cells) == 8 * 9 // 2  # up to the query's own key
        for (shade, _), m in zip(cells, said, strict=True):
            assert m is not None
            value = e.values()[h, int(m[1]), int(m[2])]
            assert abs(float(shade) - value) <= 0.005 and m[3] == f"{value:.4g}"
        texts = [unescape(t) for t in re.findall(r"<text [^>]*>(.*?)</text>", drawn)]
        assert texts.count("'<b>'") == 2 == texts.count("'7'")  # as a query and as a key


def test_a_map_is_bounded_and_says_so() -> None:
    e = softmax(HEADS + 1, KEYS + 3)
    html = stage_page("d", view(e), [view(e)], Names([], None))
    assert (
        html.count('<svg class="tokens"') == HEADS
        and html.count('<rect class="within"') == HEADS * KEYS * (KEYS + 1) // 2
    )
    assert f"The last {KEYS} queries and {KEYS} keys" in html and f"The first {HEADS} heads of {HEADS + 1}" in html
    assert len(html) < 5_000_000
    part = stage_page("d", view(e, "16", "40:", "40:"), [view(e)], Names([], None))
    assert "head 16<" in part and "The last" not in part


def test_attention_spread_over_a_long_prompt_is_seen() -> None:
    """The largest probability shown has the full colour, the others theirs beside it, and the page says which it is."""
    T = 3 * KEYS
    scores = np.random.default_rng(0).normal(size=(2, T, T))
    p = np.exp(np.where(np.arange(T) > np.arange(T)[:, None], -np.inf, scores))
    e = entry("attn_softmax", p / p.sum(-1, keepdims=True))
    html = stage_page("d", view(e), [view(e)], Names([], None))
    shown = e.values()[:, -KEYS:, -KEYS:]
    assert f"The full colour is {shown.max():.2g}." in html and shown.max() < 0.25
    cells = re.findall(r'<rect class="within"[^>]*fill-opacity="([\d.]+)"><title>(?:.*?): (\S+)</title>', html)
    assert max(float(shade) for shade, _ in cells) == 1
    assert all(abs(float(shade) - float(value) / shown.max()) <= 0.006 for shade, value in cells)
    assert "full colour" not in stage_page("d", view(softmax()), [view(softmax())], NAMES)


def test_massive_activations_are_marked_where_they_are() -> None:
    x = np.random.default_rng(0).normal(size=(8, 64)) * 0.1
    x[3, 17], x[5, 40], x[6, 2] = 700, -1200, 90
    e = entry("post_ffn_residual", x)
    html = stage_page("d", view(e), [view(e)], NAMES)
    Balanced(html)
    marks = re.findall(r'<circle class="dot"[^>]*><title>(.*?)</title>', html)
    assert marks == ["channel 40: 1200", "channel 17: 700"]
    assert "2 values, in 40, 17." in html
    part = stage_page("d", view(e, columns="10:20"), [view(e)], NAMES)
    assert re.findall(r'<circle class="dot"[^>]*><title>(.*?)</title>', part) == ["channel 17: 700"]


def layers(count: int = 4) -> list[View]:
    values = np.random.default_rng(1).normal(size=(count, 8, 64)) * 10.0 ** np.arange(count)[:, None, None]
    return [view(entry("ffn_out", x, layer)) for layer, x in enumerate(values)]


def test_norms_over_layers_are_drawn_by_their_logarithms() -> None:
    """Ten times as large is one step up, as long as every other."""
    found = layers()
    for html in (layers_page("d", found, NAMES), stage_page("d", found[1], found, NAMES)):
        Balanced(html)
        (path,) = re.findall(r'd="M([^"]*)"><title>RMS</title>', html)
        y = [float(spot.split()[1]) for spot in path.split("L")]
        steps = -np.diff(y)
        rms = [np.log10(np.sqrt(np.mean(v.values.astype(np.float64) ** 2))) for v in found]
        np.testing.assert_allclose(steps / steps.sum(), np.diff(rms) / np.sum(np.diff(rms)), atol=0.2 / steps.sum())
    assert "<title>RMS</title>" not in stage_page("d", found[0], found[:1], NAMES)


def test_values_that_are_not_finite_are_drawn_and_counted() -> None:
    e = softmax()
    assert e.array is not None
    e.array[0, 4, 2], e.array[1, 5, 1] = np.nan, np.inf
    Balanced(stage_page("d", view(e), [view(e)], NAMES))
    for fill in (np.nan, np.inf, 0.0, 3e38):
        v = view(entry("ffn_out", np.full((8, 64), fill)))
        html = layers_page("d", [v, v], NAMES) + stage_page("d", v, [v, v], NAMES)
        assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S).replace("NaN", "")
    assert '<td class="n">512</td>' in layers_page("d", [view(entry("ffn_out", np.full((8, 64), np.nan)))] * 2, NAMES)


@pytest.mark.parametrize("last", [True, False])
def test_the_lens_as_a_table(last: bool) -> None:
    top = (Ranked(0, 3.0, 0.625), Ranked(1, 2.0, 0.25))
    guess = Guess(0, 3, top, 1)
    none = replace(guess, layer=1, top=() if last else top, rank=None if last else 1)
    html = lens_page("d", [[guess, none], [guess, guess]], layers()[0], NAMES)
    assert Balanced(html).seen.count("td") == 2 * 3
    cells = re.findall(r'<td class="guess" style="--p:([\d.]+)" title="(.*?)">(.*?)</td>', html, re.S)
    assert len(cells) == (3 if last else 4) and html.count("not finite") == int(last)
    assert {(float(p), unescape(text)) for p, _, text in cells} == {(0.625, "'<b>'")}
    assert all("62.5% 0" in tip and "25.0% 1" in tip for _, tip, _ in cells)


def test_chromium_draws_it(tmp_path: Path) -> None:
    """Near a phone's width, by night: the paper is dark, a probability of 1 has the full colour and as many pixels as a
    cell has, nothing is cut off at the right."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    html, png = tmp_path / "page.html", tmp_path / "page.png"
    v = view(softmax(), "0")
    html.write_text(stage_page("d", v, [v], Names([], None)), "utf-8")
    words = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", f"--screenshot={png}", html.as_uri()]
    night = "--blink-settings=preferredColorScheme=0"
    subprocess.run([chromium, *FLAGS, night, *words], check=True, capture_output=True, timeout=120)
    image = pixels(png.read_bytes())[..., :3].astype(int)
    assert np.abs(image[2, 2] - (0x14, 0x18, 0x1B)).max() <= 3
    assert np.abs(image[:, -3:] - (0x14, 0x18, 0x1B)).max() <= 3
    full = np.abs(image - (0x2F, 0xB5, 0xA6)).max(-1) <= 3  # the first query's only key
    ys, xs = np.nonzero(full & (np.arange(500) > 20))
    assert len(ys) > 300 and np.ptp(ys) >= 17 <= np.ptp(xs)
