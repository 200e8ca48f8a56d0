"""The pages of engine trace and engine diff: what they show is what was computed, and they are well formed"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.files.convert import convert
from qwenref.errors import BadInput
from qwenref.tools.beside_answer import check_place
from qwenref.tools.main import main
from qwenref.trace import aprt

from ...models import model
from .test_report import parsed

HOW = ["--backend", "reference", "--tokens", "3,4,5,6"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model; a dump of it; another, in which one product and one head's probabilities were changed."""
    place = tmp_path_factory.mktemp("pages")
    convert(model("Q8_0"), place / "m.gguf")
    for name in ("a", "b"):
        save = ["--save-tensor", "all", "--save-tensor-dir", str(place / name)]
        assert main(["trace", str(place / "m.gguf"), *HOW, *save]) == 0
    manifest = json.loads((place / "b" / "manifest.json").read_text("utf-8"))
    for name, factor in (("layer-1/ffn_up", 1.5), ("layer-1/attn_softmax", 0.5)):
        path = place / "b" / f"{name}.bin"
        changed = np.array(aprt.read(path).values)
        changed.reshape(-1)[:1] *= factor
        head = path.read_bytes()[: path.stat().st_size - 4 * changed.size]
        path.write_bytes(head + changed.astype("<f4").tobytes())
    for file in manifest["files"]:
        file["sha256"] = sha256((place / "b" / file["path"]).read_bytes()).hexdigest()
    (place / "b" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return place


class Tables(HTMLParser):
    """The cells of every row of every table."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th", "code") and bool(self.rows)

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def rows_of(html: str) -> dict[str, list[str]]:
    tables = Tables()
    tables.feed(html)
    return {row[0]: row[1:] for row in tables.rows}


def test_the_page_of_a_trace_has_the_figures_of_its_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = place / "trace.html"
    assert main(["trace", str(place / "m.gguf"), *HOW, "--html", str(page), "--decode-steps", "1"]) == 0
    assert "next after prompt" in capsys.readouterr().out
    html = page.read_text("utf-8")
    parsed(html)
    rows = rows_of(html)
    for name in ("layer-0/attn_norm", "layer-1/ffn_out"):
        values = aprt.read(place / "a" / f"{name}.bin").values.astype(np.float64)
        layer, stage = name.split("/")
        found = [float(x) for x in rows[f"prompt {layer.replace('-', ' ')} {stage}"][:5]]
        expected = [np.sqrt(np.square(values).mean()), values.mean(), values.std(), values.min(), values.max()]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)  # six digits are printed
    assert html.count("<h2>What attention looks at</h2>") == 1 and html.count("RMS of every stage</h2>") == 2
    assert "decode-0001 lm_head" in rows


def test_attention_is_the_mean_of_the_heads(place: Path) -> None:
    """The shade of every cell is the probability, to the two digits that a page has."""
    page = place / "attention.html"
    assert main(["trace", str(place / "m.gguf"), *HOW, "--html", str(page)]) == 0
    heads = re.findall(r'<svg class="head"[^>]*>(.*?)</svg>', page.read_text("utf-8"))
    for layer, svg in enumerate(heads):
        mean = aprt.read(place / "a" / f"layer-{layer}" / "attn_softmax.bin").values.astype(np.float64)
        mean = mean.reshape(-1, 4, 4).mean(0)
        drawn = np.zeros((4, 4))
        for x, y, shade in re.findall(r'x="(\d+)" y="(\d+)"[^>]*fill-opacity="([\d.]+)"', svg):
            drawn[int(y), int(x)] = float(shade)
        np.testing.assert_allclose(drawn, mean, atol=0.0101)  # half a digit; what is under 0.01 is not drawn
    assert len(heads) == 2


def test_tokens_are_text_where_the_model_spells_them(place: Path) -> None:
    page = place / "text.html"
    assert main(["trace", str(place / "m.gguf"), "-p", "low <b>", "--backend", "reference", "--html", str(page)]) == 0
    html = page.read_text("utf-8")
    parsed(html)
    spelled = re.findall(r'<code class="token">([^<]*)</code>', html.partition("<h2>")[0])
    assert "".join(spelled) == "low &lt;b&gt;"


def test_the_page_of_a_diff_shows_what_was_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = place / "diff.html"
    words = ["diff", str(place / "a"), str(place / "b"), "--html", str(page)]
    assert main([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    html = page.read_text("utf-8")
    parsed(html)
    beyond = [f"layer-{s['layer']}/{s['stage']}" for s in told["stages"] if not s["within"]]
    assert beyond == ["layer-1/attn_softmax", "layer-1/ffn_up"]
    assert re.findall(r'<a href="#d-([^"]*)"><g>', html) == [b.replace("/", "-") for b in beyond]
    assert re.findall(r'<article id="d-([^"]*)">', html) == [b.replace("/", "-") for b in beyond]
    rows = rows_of(html)
    for s in told["stages"]:
        label = s["stage"] if s["layer"] is None else f"layer-{s['layer']}/{s['stage']}"
        assert rows[label][3] == f"{s['relative']:.3e}", label
    assert html.count('<svg class="head"') == 3  # A, B, and what is between them
    assert "4 tokens" in html and '<code class="token">3</code>' in html
    assert main([*words, "-m", str(place / "m.gguf")]) == 1
    assert '<code class="token">3</code>' not in page.read_text("utf-8")


def test_equal_dumps_are_a_page_too(place: Path) -> None:
    page = place / "equal.html"
    assert main(["diff", str(place / "a"), str(place / "a"), "--html", str(page)]) == 0
    html = page.read_text("utf-8")
    parsed(html)
    assert "status bad" not in html and 'class="cards"' not in html and '<rect class="exact"' in html


def test_values_that_are_not_finite_are_marked(place: Path) -> None:
    values = model("F32")
    broken = place / "broken.gguf"
    convert(values, broken)
    blob = bytearray(broken.read_bytes())
    blob[-4:] = np.array([np.inf], "<f4").tobytes()  # the last value of the last tensor
    broken.write_bytes(blob)
    page = place / "broken.html"
    assert main(["trace", str(broken), *HOW, "--html", str(page)]) == 0
    html = page.read_text("utf-8")
    parsed(html)
    assert 'class="status bad"' in html and "with what no healthy stage shows" in html


def test_places_where_no_page_can_be(place: Path) -> None:
    for path, said in (("no/page.html", "no such folder"), (".", "a folder"), ("m.gguf", "is a model")):
        with pytest.raises(BadInput, match=said):
            check_place(place / path)


def test_a_verification_spells_its_tokens(place: Path) -> None:
    """Those of the page's head, and the keys of the picture of attention."""
    page, dump = place / "verify.html", place / "spelled"
    save = ["--save-tensor", "all", "--save-tensor-dir", str(dump)]
    assert main(["trace", str(place / "m.gguf"), "-p", "low", "--backend", "reference", *save]) == 0
    path = dump / "layer-0" / "attn_softmax.bin"
    values = np.array(aprt.read(path).values)
    blob = path.read_bytes()
    path.write_bytes(blob[: -4 * values.size] + (values * 0.7).astype("<f4").tobytes())
    manifest = json.loads((dump / "manifest.json").read_text("utf-8"))
    for file in manifest["files"]:
        file["sha256"] = sha256((dump / file["path"]).read_bytes()).hexdigest()
    (dump / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert main(["verify", str(dump), str(place / "m.gguf"), "--html", str(page)]) == 1
    html = page.read_text("utf-8")
    parsed(html)
    head = html.partition("every stage recomputed")[0]
    assert "".join(re.findall(r'<code class="token">([^<]*)</code>', head)) == "low"
    assert re.search(r"Keys: tokens [^0-9<]+\.", html)
