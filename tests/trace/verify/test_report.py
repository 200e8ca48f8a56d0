"""A verification as text, JSON and HTML: what it says, that it is well formed, and what Chromium makes of it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qwenref.quant.tensor import dequantize
from qwenref.trace.verify.finding import UNEXPLAINED, Verification
from qwenref.trace.verify.report.html import page
from qwenref.trace.verify.report.paragraph import paragraph
from qwenref.trace.verify.report.plain import as_json
from qwenref.trace.verify.report.terminal import text
from qwenref.trace.verify.report.text import engine_words, sentence, statement
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dump_of
from ...plants import PLANTS
from ...tiny import tiny_weights

W = tiny_weights(layers=3, formats="Q8_0")
TOKENS = [17, 3, 99, 200, 4, 17, 250]
VOID = {"meta", "br"}


@cache
def planted(engine: str = "HF float32", mistake: str = "rope-missing-k_post_rope") -> Verification:
    p = next(p for p in PLANTS if p.id == mistake)
    return verify(dump_of(W, engine, TOKENS, steps=[9], mistakes={(p.stage, 1): p.make}), W)


@cache
def everywhere() -> Verification:
    """Scores that count 0.37 times in every layer, and one product."""

    def halved(run: Run, x: np.ndarray) -> np.ndarray:
        return x * np.float32(0.37)

    places = {("attn_scores", layer): halved for layer in range(3)}
    return verify(dump_of(W, "HF float32", TOKENS, mistakes={**places, ("ffn_up", 2): halved}), W)


@cache
def healthy(engine: str) -> Verification:
    return verify(dump_of(W, engine, TOKENS, steps=[9]), W)


# -- words ------------------------------------------------------------------------------------------------------------


def test_a_healthy_dump_in_one_sentence() -> None:
    v = healthy("ggml, 16-bit KV")
    assert sentence(v) == "All 108 stages that were judged are explained."
    assert engine_words(v).startswith("ggml: Q8_0 activations, 16-bit KV, the rest float32")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("HF float32", "float32 throughout"),
        (
            "HF bfloat16",
            "Hugging Face in bfloat16: weights and every result rounded, norm and soft-max inside in float32",
        ),
        ("ggml, 32-bit KV", "ggml: Q8_0 activations, 32-bit KV, the rest float32"),
    ],
)
def test_the_recipe_in_words(engine: str, words: str) -> None:
    assert engine_words(healthy(engine)).startswith(words)


def test_a_planted_mistake_in_one_sentence() -> None:
    v = planted()
    assert sentence(v) == "2 of 108 stages are not explained, all by one mistake: RoPE is not applied."
    assert "2 stages explained by: RoPE is not applied (k_post_rope of layer 1)" in text(v)
    lines = statement(next(f for f in v.findings if f.verdict == UNEXPLAINED))
    assert re.fullmatch(
        r"layer 1 k_post_rope: unexplained \(\d\.\de[-+]\d\d; rounding allows \d\.\de-07; \d+ of 224 values outside\)",
        lines[0],
    )
    assert lines[1] == "reproduced exactly by: RoPE is not applied"
    assert any(line.startswith("where: 6 of 7 positions (1, 2, 3, 4, 5, 6)") for line in lines)


def test_one_of_a_thing_is_not_several() -> None:
    """One stage, one position, one key: in the report of what is right and of what is wrong, as text and as a page."""
    several = re.compile(r"\b1 (stage|position|place|head|kv head|key|channel|token|value|layer|step)s\b")
    make = next(p.make for p in PLANTS if p.id == "rope-theta-k_post_rope")
    for engine, ids, mistakes in (
        ("HF float32", [17], {("ffn_up", 1): lambda run, x: x * np.float32(1.25)}),
        ("HF float32", [17, 3], {("k_post_rope", 1): make}),
        ("HF float16", [17], {}),
    ):
        whole = dump_of(W, engine, ids, mistakes=mistakes)  # type: ignore[arg-type]
        for stages in (None, ("ffn_norm", "ffn_up"), ("qkv_bias", "k_post_rope"), ("final_norm", "lm_head")):
            told = None if stages is None else {(layer, s) for layer in (1, None) for s in stages}
            kept = changed(whole, lambda e, told=told: e if told is None or (e.layer, e.stage.name) in told else None)
            v = verify(kept, W)
            for said in (text(v), page(v, "dump", "model")):
                assert not several.search(said), several.search(said)
    assert text(v).startswith("The only stage that was judged is explained; 1 stage could not be judged.")


def test_the_paragraph_says_what_is_first_what_follows_and_what_to_do() -> None:
    said = paragraph(planted())
    assert said[0] == sentence(planted())
    assert said[1] == "Judged: the prompt and 1 decode step, layers 0 to 2, each stage from the dump's own inputs."
    assert said[2].startswith("The engine computes with: float32 throughout")
    assert said[3] == "The first in order of execution is layer 1 k_post_rope."
    assert re.fullmatch(r"After it \d+ stages are right given their inputs: what differs there is only .*", said[4])
    assert said[5:] == ["Next: correct that in layer 1 k_post_rope, and dump again."]


def test_the_paragraph_of_a_healthy_dump_names_no_mistake() -> None:
    said = paragraph(healthy("ggml, 16-bit KV"))
    assert [s.split(":")[0] for s in said[1:]] == ["Judged", "The engine computes with", "Next"]
    assert said[-1] == "Next: nothing is left to do in what was dumped."


def test_the_paragraph_of_a_dump_that_shows_nothing() -> None:
    v = verify(changed(dump_of(W, "HF float32", TOKENS), lambda e: e if e.key == (0, 2, "attn_scores") else None), W)
    assert v.status == 2
    assert [s.split(":")[0] for s in paragraph(v)] == ["Nothing could be judged", "Next"]


def test_the_paragraph_of_an_overflow() -> None:
    def spoil(run: object, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, np.inf)

    with np.errstate(all="ignore"):
        v = verify(dump_of(W, "HF float32", TOKENS, mistakes={("ffn_up", 1): spoil}), W)
    said = paragraph(v)
    assert any(s.endswith("got NaN or infinite inputs and cannot be judged: a consequence.") for s in said)
    assert said[-1] == "Next: print the largest value that ffn_up of layer 1 is made of, and the format it is kept in."


def test_the_table_has_a_sign_for_every_stage() -> None:
    rows = [line[6:].split(" ") for line in text(planted()).splitlines() if re.match(r" {3}\d  ", line)]
    assert len(rows) == 6  # three layers of the prompt, three of the step
    assert {len(row) for row in rows} == {17}
    assert [row.count("X") for row in rows] == [0, 1, 0, 0, 1, 0]
    assert rows[1][4] == rows[4][4] == "X"


def test_json_is_json_and_complete() -> None:
    told = json.loads(json.dumps(as_json(planted()), allow_nan=False))
    assert told["status"] == 1
    assert told["recipe"] == "float32"
    assert told["tokens"] == [*TOKENS, 9]
    assert len(told["stages"]) == 108
    keys = {"layer", "stage", "verdict", "recipe", "observed", "left", "predicted", "hypotheses", "phase"}
    assert all(keys <= set(s) for s in told["stages"])
    assert {s["layer"] for s in told["stages"]} == {0, 1, 2, None}
    (bad, _) = [s for s in told["stages"] if s["verdict"] == "unexplained"]
    assert bad["hypotheses"][0]["name"] == "rope-missing"
    assert "picture" not in bad["where"]


def test_numbers_that_json_lacks_are_null() -> None:
    def spoil(run: object, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, np.nan)

    with np.errstate(all="ignore"):
        v = verify(dump_of(W, "HF float32", TOKENS, mistakes={("ffn_up", 1): spoil}), W)
    json.dumps(as_json(v), allow_nan=False)
    page(v, "dump", "model")
    text(v)


# -- HTML -------------------------------------------------------------------------------------------------------------


class Strict(HTMLParser):
    """Checks that tags close in order, and keeps what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.classes: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(k, v or "") for k, v in attrs]
        self.classes += [v or "" for k, v in attrs if k == "class"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += [v or "" for k, v in attrs if k == "class"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "title":
            self.titles.append(data)


def parsed(html: str) -> Strict:
    p = Strict()
    p.feed(html)
    p.close()
    assert p.open == []
    return p


def test_the_page_is_well_formed_and_needs_no_network() -> None:
    html = page(planted(), "my <dump>", "model & co.gguf")
    p = parsed(html)
    assert "my &lt;dump&gt;" in html
    assert "model &amp; co.gguf" in html
    assert not re.search(r"https?://|<link|@import|url\(|fetch|XMLHttp", html)
    assert html.count("<script>") == 1
    assert not any(k == "src" or (k == "href" and v[:1] != "#") for k, v in p.attributes)


def test_every_red_cell_leads_to_its_card() -> None:
    for v in (planted(), everywhere()):
        p = parsed(page(v, "dump", "model"))
        links = [x[1:] for k, x in p.attributes if k == "href"]
        ids = [x for k, x in p.attributes if k == "id"]
        assert len(ids) == len(set(ids)) == sum(f.verdict == UNEXPLAINED for f in v.findings)
        assert links and set(links) <= set(ids)


def test_a_page_of_28_layers_that_are_all_wrong_is_bounded_and_hostile_names_are_text() -> None:
    bad = next(f for f in everywhere().findings if f.verdict == UNEXPLAINED)
    names = dict.fromkeys(f.stage for f in everywhere().findings if f.layer == 1)
    all_wrong = tuple(replace(bad, layer=i, stage=s, hypotheses=()) for i in range(28) for s in names)
    html = page(replace(everywhere(), findings=all_wrong), "</title><script>alert(1)</script>", '"><img src=x>')
    p = parsed(html)
    ids = [x for k, x in p.attributes if k == "id"]
    assert len(set(ids)) == len(ids) == len(all_wrong)
    assert {x[1:] for k, x in p.attributes if k == "href"} == set(ids)
    assert "more groups of unexplained stages</summary>" in html
    assert len(html) < 3_000_000
    assert html.count("<script>") == 1
    assert "<img" not in html


def test_the_pictures_of_a_wrong_stage_are_there() -> None:
    html = page(everywhere(), "dump", "model")
    assert all(f'aria-label="{name}"' in html for name in ("found", "expected", "difference"))
    assert "Largest error over what rounding allows (1: the limit), by layer: attn_scores" in html
    assert "Found (up) against expected (right)" in html
    assert "in units of what rounding allows" in html
    for f in everywhere().findings:
        if f.where is not None and f.where.samples is not None:
            assert sum(f.where.samples.counts) == f.where.of
            assert len(f.where.samples.pairs) <= 200


def test_the_page_is_for_phones_and_the_dark() -> None:
    html = page(planted(), "dump", "model")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html


def test_the_heat_map_shows_every_stage_and_what_it_says() -> None:
    v = planted()
    p = parsed(page(v, "dump", "model"))
    # one cell per layer and stage, in the map of the prompt and in that of the step; one in the legend; the picture's.
    cells = [c for c in p.classes if c in ("exact", "reproduced")]
    assert len(cells) == 2 * (1 + 3 * 17 + 2) - 2 + 2
    assert any(t.startswith("layer 1 k_post_rope: unexplained") for t in p.titles)
    assert any("layer 2 ffn_gate: reproduced by float32" in t for t in p.titles)


def test_every_unexplained_stage_has_a_card_with_its_picture() -> None:
    html = page(planted(), "dump", "model")
    cards = re.findall(r"<article id=.*?</article>", html, re.S)
    assert len(cards) == 2
    for card in cards:
        assert "RoPE is not applied" in card
        assert '<svg class="picture"' in card
        assert 'class="unexplained"' in card


def test_a_mistake_of_every_layer_is_told_once() -> None:
    p = next(p for p in PLANTS if p.id == "rope-missing-k_post_rope")
    v = verify(dump_of(W, "HF float32", TOKENS, mistakes={(p.stage, layer): p.make for layer in range(3)}), W)
    assert sentence(v) == "3 of 54 stages are not explained, all by one mistake: RoPE is not applied."
    assert "3 stages explained by: RoPE is not applied (k_post_rope of layers 0 to 2)" in text(v)
    assert "Unexplained, largest first; 1 of 3, for the others see --json or --html:" in text(v)
    html = page(v, "dump", "model")
    assert html.count("<article id=") == 1
    assert "2 more stages of this kind (k_post_rope of layers" in html


def test_the_blocks_of_a_wrong_row_are_drawn() -> None:
    def lost(run: Run, y: np.ndarray) -> np.ndarray:
        """Columns 32 to 63 of row 7 of ffn_down, a block of Q8_0, are lost."""
        x, (q,) = run.get("ffn_swigl"), run.weights.layers[1].ffn_down.parts
        y = y.copy()
        y[:, 7] -= x[:, 32:64] @ dequantize(q, 7, 8)[0, 32:64]
        return y

    v = verify(dump_of(W, "HF float32", TOKENS, mistakes={("ffn_out", 1): lost}), W)
    assert "row 7 of blk.1.ffn_down.weight (Q8_0), block 1 (columns 32 to 63): it is lost" in text(v)
    (drawn,) = re.findall(r'<svg class="strip".*?</svg>', page(v, "dump", "model"))
    assert re.findall(r'<rect class="unexplained" x="(\d+)"[^>]*fill-opacity="1.00"', drawn) == ["1"]


def test_missing_stages_are_drawn_empty() -> None:
    v = verify(
        changed(dump_of(W, "HF float32", TOKENS), lambda e: None if e.layer == 1 and e.stage.name == "ffn_up" else e), W
    )
    assert 'class="none"' in page(v, "dump", "model")


def test_a_long_error_map_is_bounded() -> None:
    """Whatever the tensor's size, its picture is at most 48 x 112 cells."""
    w = tiny_weights(layers=1, hidden=256, heads=8, head_dim=32, mlp=512, formats="Q8_0")

    def noise(run: object, x: np.ndarray) -> np.ndarray:
        return x + np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)

    v = verify(dump_of(w, "HF float32", list(range(90)), mistakes={("ffn_up", 0): noise, ("attn_scores", 0): noise}), w)
    for f in v.findings:
        if f.where is not None:
            cells = f.where.picture.cells
            assert len(cells) <= 48
            assert len(cells[0]) <= 112
    assert len(page(v, "dump", "model")) < 1_500_000


# -- Chromium ---------------------------------------------------------------------------------------------------------

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def pixels(png: bytes) -> np.ndarray:
    """[height, width, channels] of an 8-bit RGB or RGBA file without interlacing, as Chromium writes them."""
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[kind]
    body, at = b"", 8
    while at < len(png):
        (n,) = struct.unpack(">I", png[at : at + 4])
        body += png[at + 8 : at + 8 + n] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += n + 12
    raw = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + width * channels)
    rows = np.zeros((height + 1, width + 1, channels), np.int32)
    for y in range(height):
        line, above = raw[y, 1:].reshape(width, channels).astype(np.int32), rows[y]
        match raw[y, 0]:
            case 0:
                rows[y + 1, 1:] = line
            case 1:
                rows[y + 1, 1:] = np.cumsum(line, 0) & 255
            case 2:
                rows[y + 1, 1:] = (line + above[1:]) & 255
            case filter_type:
                for x in range(width):
                    a, b, c = rows[y + 1, x], above[x + 1], above[x]
                    guess = (a + b) // 2 if filter_type == 3 else _paeth(a, b, c)
                    rows[y + 1, x + 1] = (line[x] + guess) & 255
    return rows[1:, 1:].astype(np.uint8)


def _paeth(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))


@pytest.mark.parametrize(("width", "dark"), [(1100, False), (500, False), (500, True)])
def test_chromium_draws_it(tmp_path: Path, width: int, dark: bool) -> None:
    """At a desktop's width and near a phone's (headless Chromium's least is 500), by day and by night: the paper has
    its colour, the unexplained cell is red, and nothing is cut off at the right."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    html, png = tmp_path / "report.html", tmp_path / "report.png"
    html.write_text(page(planted(), "dump", "model"), "utf-8")
    night = ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [chromium, *FLAGS, *night, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         f"--screenshot={png}", html.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    image = pixels(png.read_bytes())[..., :3].astype(int)
    assert image.shape[1] == width
    paper, bad = ((0x14, 0x18, 0x1B), (0xFF, 0x5C, 0x74)) if dark else ((0xFB, 0xFB, 0xF9), (0xC8, 0x1E, 0x3A))
    assert np.abs(image[2, 2] - paper).max() <= 3
    assert (np.abs(image - bad).max(-1) <= 3).sum() > 30
    assert np.abs(image[:, -3:] - paper).max() <= 3
