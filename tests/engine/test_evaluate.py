"""engine/evaluate.py: held to one run per prefix and to the formulas, written out; files of logits byte by byte."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.all_logits import all_logits
from qwenref.engine.evaluate import Figures, evaluate, windows
from qwenref.engine.files.convert import convert
from qwenref.engine.files.logits_file import open_logits, write_head, write_rows
from qwenref.engine.generate import prefill
from qwenref.engine.load import Loaded, load, open_weights
from qwenref.errors import BadInput
from qwenref.tools.main import main

from ..models import model

TEXT = "The quick brown fox jumps over the lazy dog, and low and behold: the low lot.\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models, one recoded from the other."""
    folder = tmp_path_factory.mktemp("eval")
    convert(model("F32"), folder / "base.gguf")
    convert(model("F32"), folder / "coarse.gguf", quantize="q4_0")
    (folder / "text").write_text(TEXT)
    return folder


def loaded(path: Path, backend: str = "reference", precision: str = "f64") -> Loaded:
    return load(open_weights(path), backend, precision)


IDS = [int(i) for i in np.random.default_rng(5).integers(0, 256, 600)]


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_every_position_has_the_bits_of_its_own_prefix(files: Path, precision: str) -> None:
    """Beyond a chunk of 512 too, and from any first position."""
    m = loaded(files / "base.gguf", "cpu", precision)
    found = [(at, x.copy()) for at, x in all_logits(IDS, m.weights, m.kernels, precision, first=500)]
    assert [at for at, _ in found] == [500, 512, 576] and sum(len(x) for _, x in found) == 100
    for at, x in found:
        for row in (0, len(x) - 1):
            ids = IDS[: at + row + 1]
            cache = m.kernels.new_cache(m.weights.config, len(ids), precision)
            assert np.array_equal(prefill(ids, m.weights, cache, m.kernels), x[row])


def log_p(m: Loaded, ids: list[int]) -> list[float]:
    """log p of each token after ids, by math alone."""
    cache = m.kernels.new_cache(m.weights.config, len(ids), "f64")
    x = [float(v) for v in prefill(ids, m.weights, cache, m.kernels)]
    total = math.log(math.fsum(math.exp(v - max(x)) for v in x)) + max(x)
    return [v - total for v in x]


def test_figures_are_those_of_the_formulas(files: Path) -> None:
    """Two windows of 8: positions 4 to 6 of each are scored, each by a run of its own."""
    m, base = loaded(files / "coarse.gguf"), loaded(files / "base.gguf")
    ids = IDS[:19]
    cut = windows(ids, 8)
    assert (cut.left, len(cut.ids)) == (3, 2)
    nll, base_nll, kl, change, flips = [], [], [], [], []
    for start in (0, 8):
        for at in (4, 5, 6):
            q, p = (log_p(x, ids[start : start + at + 1]) for x in (m, base))
            token = ids[start + at + 1]
            nll.append(-q[token])
            base_nll.append(-p[token])
            kl.append(math.fsum(math.exp(b) * (b - a) for a, b in zip(q, p, strict=True)))
            change.append(math.exp(q[token]) - math.exp(p[token]))
            if (a := q.index(max(q))) != (b := p.index(max(p))):
                flips.append((start + at, b, a, p[b] - p[a]))
    found = evaluate(m, cut, base)
    for got, want in ((found.nll, nll), (found.base_nll, base_nll), (found.divergence, kl), (found.change, change)):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)
    assert [(f.token, f.base, f.model) for f in found.flips] == [f[:3] for f in flips]
    np.testing.assert_allclose([f.gap for f in found.flips], [f[3] for f in flips], rtol=1e-9)
    s = found.summary()
    assert s["perplexity"] == pytest.approx(math.exp(math.fsum(nll) / 6), rel=1e-12)
    spread = math.sqrt(math.fsum((x - math.fsum(nll) / 6) ** 2 for x in nll) / 6 / 5)
    assert s["perplexity_error"] == pytest.approx(s["perplexity"] * spread, rel=1e-9)
    assert s["kl"] == pytest.approx(math.fsum(kl) / 6, rel=1e-9) and s["kl_max"] == pytest.approx(max(kl), rel=1e-9)
    assert s["top1_agreement"] == 1 - len(flips) / 6


def test_a_model_is_no_distance_from_itself(files: Path) -> None:
    m = loaded(files / "base.gguf")
    s = evaluate(m, windows(IDS[:64], 16), m).summary()
    assert (s["kl"], s["kl_max"], s["flips"], s["log_ratio"], s["delta_p_rms"]) == (0, 0, 0, 0, 0)


def test_flips_are_told_with_gap_and_noise() -> None:
    """By hand: the base prefers token 0 by 0.5, the model token 1; they differ by (-1, 0, 1) about their mean."""
    base = np.log(np.exp([[2.0, 1.5, 0.0]]) / np.exp([2.0, 1.5, 0.0]).sum())
    figures = Figures()
    figures.add(7, np.array([[1.0, 1.5, 1.0]]), np.array([2]), base)
    (flip,) = figures.flips
    assert (flip.token, flip.base, flip.model) == (7, 0, 1)
    assert flip.gap == pytest.approx(0.5)
    off = np.array([-1.0, 0.0])  # the least likely token may be clipped in a file, and is left out
    assert flip.noise == pytest.approx(math.sqrt(2) * np.std(off))


# -- the file of llama-perplexity


def test_a_file_of_logits_byte_by_byte(tmp_path: Path) -> None:
    """As tools/perplexity/perplexity.cpp of llama.cpp writes a row, in its own words of float32."""
    logits = np.array([[3.0, -20.0, 1.0], [5.0, 5.0, 5.0]], np.float32)
    path = tmp_path / "x.dat"
    with path.open("wb") as file:
        write_head(file, 6, 3, [0, 1, 2, 0, 1, 2])
        write_rows(file, logits)
    data = path.read_bytes()
    assert data[:20] == b"_logits_" + struct.pack("<iii", 6, 3, 1) and data[20:44] == struct.pack(
        "<6i", 0, 1, 2, 0, 1, 2
    )
    f = np.float32
    total = f(math.log(math.exp(0) + math.exp(-23) + math.exp(-2)))
    least, scale = f(f(f(3 - 16) - f(3)) - total), f(f(16) / f(65535))
    assert data[44:52] == struct.pack("<ff", scale, least)
    assert data[52:58] == struct.pack("<3H", 65535, 0, round(14 / 16 * 65535)) and data[58:60] == bytes(2)
    assert data[60:68] == struct.pack("<ff", 0, f(-f(math.log(3)))) and data[68:] == bytes(8)
    read = open_logits(path)
    assert (read.context, read.vocabulary, read.ids) == (6, 3, (0, 1, 2, 0, 1, 2))
    p = read.log_probabilities(0, 0, 2)
    np.testing.assert_allclose(p[0, [0, 2]], [-total, -2 - total], atol=16 / 65535)
    np.testing.assert_allclose(p[1], [-math.log(3)] * 3, rtol=1e-6)


def whole(windows_: int = 1, context: int = 6, vocabulary: int = 3) -> bytes:
    file = io.BytesIO()
    write_head(file, context, vocabulary, [0] * context * windows_)
    write_rows(file, np.ones((windows_ * (context - 1 - context // 2), vocabulary), np.float32))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no file of logits"), (b"GGUF" + bytes(40), "no file of logits"), (whole()[:15], "ends in its header"),
        (whole()[:40], "holds 40 bytes"), (whole()[:-1], "where 1 windows take"), (whole() + b"x", "windows take"),
        (b"_logits_" + struct.pack("<iii", 6, 3, 1 << 30), "claims"),
        (b"_logits_" + struct.pack("<iii", -6, 3, -1), "claims"),
        (b"_logits_" + struct.pack("<iii", 6, 0, 1), "claims"), (b"_logits_" + struct.pack("<iii", 2, 3, 1), "claims"),
        (whole()[:20] + struct.pack("<i", 3) + whole()[24:], "token id 3 is outside"),
        (whole()[:20] + struct.pack("<i", -1) + whole()[24:], "token id -1 is outside"),
    ],
)  # fmt: skip
def test_hostile_files_of_logits(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "x.dat").write_bytes(data)
    with pytest.raises(BadInput, match=says) as error:
        open_logits(tmp_path / "x.dat")
    assert "\n" not in str(error.value)


# -- the command


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    status = main(["eval", *map(str, words), "--backend", "reference"])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A base kept in a file says what the base itself says, but for the file's 16 bits."""
    base, coarse, text, kept = files / "base.gguf", files / "coarse.gguf", files / "text", tmp_path / "base.dat"
    status, out, err = run(capsys, base, "-f", text, "-c", 16, "--save-logits", kept)
    assert status == 0 and "windows of 16 ids" in out and "ids at the text's end make no window" in err
    status, out, err = run(capsys, coarse, "--logits", kept, "--json")
    by_file = json.loads(out)
    assert (status, err) == (0, "") and by_file["base"] == str(kept)
    status, out, _ = run(capsys, coarse, "--against", base, "-f", text, "-c", 16, "--json")
    by_model = json.loads(out)
    for key in ("nll", "kl", "base_perplexity", "top1_agreement", "delta_p_rms"):
        assert by_file["summary"][key] == pytest.approx(by_model["summary"][key], rel=2e-3), key
    assert [f["token"] for f in by_file["flips"]] == [f["token"] for f in by_model["flips"]]
    status, out, _ = run(capsys, coarse, "--against", base, "-f", text, "-c", 16)
    assert status == 0 and "KL divergence" in out and "same top token" in out
    assert [p.name for p in tmp_path.iterdir()] == ["base.dat"]


def test_what_cannot_be_evaluated(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, text = files / "base.gguf", files / "text"
    convert(model("F32", vocab=310), tmp_path / "wide.gguf")
    (tmp_path / "other.dat").write_bytes(whole())
    convert(replace(model("F32"), vocabulary=lambda: None), tmp_path / "mute.gguf")
    for words, says in (
        ([base], "give a text with -f"),
        ([base, "-f", text, "--logits", tmp_path / "other.dat"], "give a text with -f"),
        ([base, "--logits", tmp_path / "other.dat", "-c", "8"], "the windows are those of --logits"),
        ([base, "-f", text, "-c", "3"], "give at least 4"),
        ([base, "-f", text, "-c", "4000"], " of 4000; give more text, or a smaller --context"),
        ([base, "-f", text, "--windows", "0"], "--windows 0"),
        ([base, "-f", tmp_path / "none", "-c", "8"], "No such file"),
        ([base, "--logits", tmp_path / "none"], "No such file"),
        ([base, "--logits", tmp_path / "other.dat"], "the base has a vocabulary of 3"),
        ([base, "-f", text, "-c", "8", "--against", tmp_path / "wide.gguf"], "the base has a vocabulary of 310"),
        ([tmp_path / "mute.gguf", "-f", text, "-c", "8"], "has no tokenizer"),
        ([base, "-f", text, "-c", "8", "--save-logits", tmp_path / "no" / "x"], "no such folder; make it first"),
    ):
        status, out, err = run(capsys, *words)
        assert (status, out) == (2, "") and says in err and err.count("\n") == 1, (words, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mute.gguf", "other.dat", "wide.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_disk_that_takes_no_more_is_named_by_the_file(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing of it is left."""
    import resource

    place, text = tmp_path / "logits", files / "text"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, hard))
    try:
        words = ["-c", 16, "--save-logits", place]
        told = run(capsys, files / "base.gguf", "-f", text, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told == (2, "", f"engine eval: {place}: cannot write the logits: File too large\n")
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_no_perplexity(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    m = model("F32")
    m.tensors["output_norm.weight"].data.view(np.float32)[0] = np.nan
    convert(m, tmp_path / "nan.gguf")
    status, out, err = run(capsys, tmp_path / "nan.gguf", "-f", files / "text", "-c", 8)
    assert (status, out) == (2, "") and "not finite" in err
