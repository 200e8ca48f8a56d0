"""engine show: what is on the screen, in the array and in the JSON is what the dump holds; and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files.convert import convert
from qwenref.engine.load import open_weights
from qwenref.engine.weights import parts
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import IDS
from qwenref.tools.dev.golden_family import MODELS, write_family
from qwenref.tools.main import main
from qwenref.tools.show_text import number
from qwenref.trace import aprt

from ..models import model
from .test_cli import engine

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "family.npz")
TOKENS = "3,200,17,9,5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.gguf and dump/, a prompt of five and one step."""
    at = tmp_path_factory.mktemp("show")
    convert(model("Q8_0"), at / "tiny.gguf")
    words = [
        "--backend",
        "reference",
        "--save-tensor",
        "all",
        "--save-tensor-dir",
        str(at / "dump"),
        "--tokens",
        TOKENS,
    ]
    assert main(["trace", str(at / "tiny.gguf"), *words, "--decode-steps", "1"]) == 0
    return at


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    found = json.loads(shown(capsys, *words, "--json"))
    assert isinstance(found, dict)
    return found


def held(path: str, *shape: int) -> np.ndarray:
    return np.array(aprt.read(Path("dump") / path).values).reshape(shape)


def test_the_screen_has_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    x = held("layer-1/attn_norm.bin", 5, 64)
    lines = shown(capsys, "dump", "attn_norm", "1").splitlines()
    assert lines[0] == "layer-1/attn_norm  5 T x 64 D" and max(map(len, lines)) <= 80
    for t in range(5):
        cells = lines[3 + t].split()
        assert cells[:2] == [str(t), TOKENS.split(",")[t]]
        assert cells[2:] == [number(float(v)) for v in x[t, :3]] + ["..."] + [number(float(v)) for v in x[t, -3:]]
        y = x[t].astype(np.float64)
        figures = (y.mean(), y.std(), np.sqrt(np.mean(y**2)), y.min(), y.max())
        assert lines[10 + t].split()[2:7] == [number(float(v)) for v in figures]
        first = np.argsort(-np.abs(x[t]))[0]
        assert lines[17 + t].split()[2:4] == [f"{first}:", number(float(x[t, first]))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["attn_norm", "1"], lambda: held("layer-1/attn_norm.bin", 5, 64)),
        (["attn_norm", "1", "--rows=-2:", "--columns", "3:9"], lambda: held("layer-1/attn_norm.bin", 5, 64)[-2:, 3:9]),
        (["q_post_rope", "0", "--head", "1"], lambda: held("layer-0/q_post_rope.bin", 5, -1, 16)[:, 1:2]),
        (["attn_softmax", "1", "--head=:2", "--rows=4"], lambda: held("layer-1/attn_softmax.bin", -1, 5, 5)[:2, 4:5]),
        (["lm_head", "--columns", "7"], lambda: held("lm_head.bin", -1)[7:8]),
        (["ffn_out", "0", "--step", "1"], lambda: held("decode-0001/layer-0/ffn_out.bin", 1, 64)),
        (["embedding"], lambda: held("layer-0/embedding.bin", 5, 64)),
    ],
)  # fmt: skip
def test_npy_and_json_hold_the_part(
    words: list[str], expected: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = expected()
    found = as_json(capsys, "dump", *words, "--npy", str(tmp_path / "a.npy"))
    kept = np.load(tmp_path / "a.npy")
    assert kept.dtype == np.float32 and kept.shape == x.shape and kept.tobytes() == x.tobytes()
    chosen = any(w.startswith("--") and not w.startswith("--step") for w in words)
    assert ("values" in found) == chosen
    if chosen:
        np.testing.assert_array_equal(np.array(found["values"], np.float32), x)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def test_without_a_layer_it_is_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.stack([held(f"layer-{i}/ffn_out.bin", 5, 64).astype(np.float64) for i in range(2)])
    rows = as_json(capsys, "dump", "ffn_out")["layers"]
    np.testing.assert_allclose([r["rms"] for r in rows], np.sqrt(np.mean(x**2, axis=(1, 2))), rtol=1e-12)
    for r, values in zip(rows, x, strict=True):
        at = np.unravel_index(np.argmax(np.abs(values)), values.shape)
        assert (r["largest"]["row"], r["largest"]["column"], r["largest"]["value"]) == (*at, values[at])
    lines = shown(capsys, "dump", "ffn_out", "all").splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["0", "1"] and max(map(len, lines)) <= 80
    assert lines == shown(capsys, "dump", "ffn_out", "0..2").splitlines()


def test_a_model_is_traced_first(capsys: pytest.CaptureFixture[str]) -> None:
    """The same figures as of the dump; with a tokenizer the tokens are text."""
    words = ["attn_softmax", "1", "--head", "2", "--columns", ":"]
    of_dump = as_json(capsys, "dump", *words, "-m", "tiny.gguf")
    of_model = as_json(capsys, "tiny.gguf", *words, "--tokens", TOKENS, "--backend", "reference")
    assert of_model["tokens"] == [3, 200, 17, 9, 5] == of_dump["tokens"][:5]
    assert of_model["text"] == of_dump["text"][:5] and len(set(of_model["text"])) == 5
    same = ("rows", "statistics", "histogram", "values", "shape", "part")
    assert [of_model[k] for k in same] == [of_dump[k] for k in same]
    text = shown(capsys, "tiny.gguf", "attn_out", "0", "-p", "low", "--backend", "reference")
    assert "'low'" in text
    steps = ["--tokens", TOKENS, "--backend", "reference", "--step", "1", "--rows", "0"]
    assert as_json(capsys, "tiny.gguf", "ffn_out", "1", *steps)["values"] == as_json(
        capsys, "dump", "ffn_out", "1", "--step", "1", "--rows", "0")["values"]  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "qwen3, tied, windows"])
def test_the_last_layer_of_the_lens_says_what_transformers_says(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Position by position the token that Transformers goes on with (tests/golden/family.npz)."""
    write_family(tmp_path, MODELS[name])
    answer = GOLDEN[f"{name}/ids"].tolist()
    ids = ",".join(map(str, [*IDS, *answer[:-1]]))
    words = ["--lens", "--tokens", ids, "--backend", "reference", "--rows", f"{len(IDS) - 1}:"]
    found = as_json(capsys, str(tmp_path), *words, "--top", "2")["lens"]
    assert [p["layers"][-1]["top"][0]["id"] for p in found] == answer
    assert all(p["layers"][-1]["rank"] == 1 and [g["layer"] for g in p["layers"]] == [0, 1] for p in found)
    assert any(p["layers"][0]["rank"] > 1 for p in found)


def test_the_lens_of_a_dump(capsys: pytest.CaptureFixture[str]) -> None:
    """The last position unless rows are chosen; of what is not finite nothing is said."""
    logits = held("lm_head.bin", -1)
    best = int(np.argmax(logits))
    (last,) = as_json(capsys, "dump", "--lens", "-m", "tiny.gguf")["lens"]
    assert last["position"] == 4 and last["layers"][-1]["top"][0]["id"] == best
    # Of the same float32 residual the dump's norm was rounded twice (root and product are float64's), its sum once.
    (head,) = parts(open_weights("tiny.gguf").weights.lm_head)
    size = np.abs(dequantize(head)[best].astype(np.float64)) @ np.abs(held("final_norm.bin", 5, 64)[-1])
    assert abs(last["layers"][-1]["top"][0]["logit"] - logits[best]) <= 4 * 2.0**-24 * size
    lines = shown(capsys, "dump", "--lens", "-m", "tiny.gguf", "--rows", "3:5").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("position")] == ["3", "4"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        (["dump", "attn_softmax", "1", "-m", "tiny.gguf"], ["attn_softmax, layer 1 (prompt)", "head 3"]),
        (["dump", "ffn_out", "1"], ["ffn_out, layer 1 (prompt)", "<title>RMS</title>", "tokens: 3 200 17 9 5"]),
        (["dump", "ffn_out"], ["ffn_out (prompt)", "<title>RMS</title>"]),
        (["dump", "lm_head"], ["lm_head (prompt)"]),
        (["dump", "--lens", "-m", "tiny.gguf", "--rows", ":"], ["Logit lens", "post_ffn_residual (prompt)"]),
        (["tiny.gguf", "ffn_out", "1", "--tokens", "3,4", "--backend", "reference"], ["<title>RMS</title>"]),
    ],
)
def test_pages(words: list[str], holds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A page beside the text, which is the same with it."""
    alone = shown(capsys, *words)
    assert shown(capsys, *words, "--html", str(tmp_path / "page.html")) == alone
    html = (tmp_path / "page.html").read_text("utf-8")
    assert all(text in html for text in holds) and html.rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "words",
    [
        ["dump", "ffn_out"],
        ["dump", "--lens", "-m", "tiny.gguf"],
        ["tiny.gguf", "attn_softmax", "1", "--tokens", "3,4", "--backend", "reference"],
    ],
)
def test_pictures(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture beside the text, which is the same with it; also beside a page."""
    pytest.importorskip("matplotlib", reason="the extra [png] is not installed")
    alone = shown(capsys, *words)
    assert shown(capsys, *words, "--png", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html")) == alone
    from matplotlib.image import imread

    image = imread(tmp_path / "a.png")
    assert min(image.shape[:2]) > 300 and len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a.html"}


def test_a_picture_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is read or run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["show", "dump", "ffn_out", "--png", str(tmp_path / "a.png")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "pip install 'qwenref[png]'" in told.err and told.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    x[1, 2], x[2, 3] = np.nan, -np.inf
    np.savez(tmp_path / "d.npz", **{"layer-0/post_ffn_residual": x, "layer-1/post_ffn_residual": x})
    words = [str(tmp_path / "d.npz"), "-m", "tiny.gguf", "--tokens", TOKENS]
    rows = as_json(capsys, *words[:1], "post_ffn_residual", "0", *words[1:])["rows"]
    assert [(r["nan"], r["inf"]) for r in rows] == [(0, 0), (1, 0), (0, 1), (0, 0), (0, 0)]
    text = shown(capsys, *words, "--lens", "--rows", "1:4")
    assert text.count("not finite") == 4  # two layers of two positions
    table = shown(capsys, *words[:1], "post_ffn_residual", *words[1:]).splitlines()[3:]
    assert [line.split()[-1] for line in table] == ["2", "2"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dump", "ffn_nrom", "1"], "did you mean ffn_norm?"),
        (["dump"], "which stage? dump has embedding, attn_norm"),
        (["tiny.gguf"], "which stage? tiny.gguf has embedding, attn_norm"),
        (["attn_norm", "dump"], "engine show DUMP attn_norm"),
        (["dump", "attn_norm", "2"], "has no attn_norm of layer 2 (prompt); it has that of layers 0..2"),
        (["dump", "attn_norm", "x"], "neither a number nor START..END"),
        (["dump", "final_norm", "1"], "final_norm is of the whole model"),
        (["dump", "embedding", "1"], "embedding is of layer 0 alone"),
        (["dump", "q_norm"], "has no q_norm (prompt); it has embedding"),
        (["dump", "attn_norm", "--step", "2"], "has no decode-0002; it has prompt, decode-0001"),
        (["dump", "attn_norm", "--step", "-1"], "0 is the prompt"),
        (["dump", "attn_norm", "1", "--head", "0"], "attn_norm has no heads"),
        (["dump", "attn_softmax", "1", "--head", "9"], "there are 0 to 3"),
        (["dump", "attn_norm", "1", "--rows", "5:7"], "there are 0 to 4"),
        (["dump", "attn_norm", "--npy", "a.npy"], "name the layer"),
        (["dump", "attn_norm", "1", "--npy", "no/such/a.npy"], "no/such: no such folder"),
        (["dump", "attn_norm", "1", "--npy", "dump"], "dump: a folder; give a file's name"),
        (["dump", "attn_norm", "1", "--html", "tiny.gguf"], "tiny.gguf"),
        (["dump", "attn_norm", "1", "-p", "x"], "--prompt is for a model"),
        (["dump", "attn_norm", "1", "--chat"], "--chat is for a model"),
        (["dump", "attn_norm", "1", "--tokens", "1,2"], "--tokens"),
        (["dump", "attn_norm", "1", "--precision", "int8"], "nothing is run"),
        (["dump", "attn_norm", "1", "--lora", "x"], "name it with -m"),
        (["dump", "attn_norm", "1", "-m", "tiny.gguf", "--lora", "nowhere"], "nowhere"),
        (["dump", "--lens"], "give it with -m"),
        (["dump", "ffn_out", "--lens", "-m", "tiny.gguf"], "--lens reads the residual"),
        (["dump", "--lens", "-m", "tiny.gguf", "--columns", "1"], "--columns is for values"),
        (["dump", "attn_norm", "--top", "3"], "--top 3"),
        (["tiny.gguf", "attn_norm", "-m", "tiny.gguf"], "-m is for a dump"),
        (["tiny.gguf", "attn_norm", "--row", "1"], "--row is for another engine's dump"),
        (["tiny.gguf", "attn_norm", "9", "--tokens", "1"], "layer 9 is past the last"),
        (["nowhere", "attn_norm"], "neither a dump nor a model"),
        (["nowhere.npz", "attn_norm"], "neither a dump nor a model"),
    ],
)
def test_what_it_refuses(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *words]) == 2
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert told.out == "" and says in line and len(line) < 600
    assert not Path("a.npy").exists()


def test_bars_where_no_block_is_to_be_had() -> None:
    done = engine("show", "dump", "attn_norm", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.isascii() and b"####" in done.stdout
