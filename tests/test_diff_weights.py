"""engine diff --weights: no false alarm between healthy files of one model, and every difference named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.engine.bind import HF, renamed
from qwenref.engine.files import Checkpoint
from qwenref.quant.tensor import QTensor, dequantize, quantize
from qwenref.tools.convert import convert
from qwenref.tools.diff_weights import compare_tensor
from qwenref.tools.main import main

from .models import model

NORM, Q = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"


def diff(capsys: pytest.CaptureFixture[str], a: Path, b: Path) -> tuple[int, dict[str, Any]]:
    """Status, and the JSON; the text must come to the same status."""
    status = main(["diff", "--weights", str(a), str(b), "--json"])
    found = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert main(["diff", "--weights", str(a), str(b)]) == status
    assert capsys.readouterr().out
    return status, found


def changed(source: Checkpoint, name: str, values: np.ndarray, format: str = "F32") -> Checkpoint:
    w = source.tensors[name]
    return replace(source, tensors=source.tensors | {name: replace(quantize(values, format), name=w.name)})


@pytest.mark.parametrize("tied", [False, True])
def test_healthy_files_of_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool) -> None:
    """All nine pairs of containers: names, shapes and formats differ, the values do not."""
    source = model({"q": "Q8_0", "ffn_up": "F16"}, tied=tied)
    paths = [tmp_path / name for name in ("m.gguf", "m.apr", "m")]
    for path in paths:
        convert(source, path)
    for a in paths:
        for b in paths:
            status, found = diff(capsys, a, b)
            assert (
                status == 0
                and found["counts"].keys() <= {"identical bytes", "identical values"}
                and not found["config"]
            )
            assert a != b or found["counts"] == {"identical bytes": len(found["tensors"])}


def test_how_far_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures against NumPy's own; the rest stays identical."""
    source = model(spell=HF)
    x = dequantize(source.tensors[Q])
    y = x + np.float32(0.25) * (np.arange(x.size).reshape(x.shape) == 7)
    convert(source, tmp_path / "a.gguf")
    convert(changed(source, Q, y), tmp_path / "b.apr")
    status, found = diff(capsys, tmp_path / "a.gguf", tmp_path / "b.apr")
    (row,) = [row for row in found["tensors"] if row["verdict"] == "differ"]
    assert status == 1 and found["counts"] == {"identical bytes": 26, "differ": 1}
    assert (row["name"], row["unlike"]) == (Q, 1)
    gap = (y - x).astype(np.float64)
    assert row["max_abs"] == np.abs(gap).max()
    assert row["relative_rms"] == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(x.astype(np.float64)), rel=1e-12)


def test_slabs_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures do not depend on how many rows are compared at a time."""
    rng = np.random.default_rng(0)
    x, y = (quantize(rng.standard_normal((37, 32)).astype(np.float32), f) for f in ("F32", "Q8_0"))
    whole = compare_tensor("w", x, y)
    monkeypatch.setattr("qwenref.tools.diff_weights.SLAB", 64)
    parts = compare_tensor("w", x, y)
    assert (parts.max_abs, parts.unlike) == (whole.max_abs, whole.unlike)
    assert parts.relative_rms == pytest.approx(whole.relative_rms, rel=1e-12)


@pytest.mark.parametrize(("a", "b", "verdict", "unlike"), [
    ([np.nan, 1], [np.nan, 1], "identical bytes", 0),
    ([0.0, 1], [-0.0, 1], "identical values", 0),
    ([np.inf, 1], [np.inf, 1], "identical bytes", 0),
    ([np.inf, 1], [-np.inf, 1], "differ", 1),
    ([np.nan, 1], [0, 1], "differ", 1),
    ([0.0, 0], [0, 0], "identical bytes", 0),
    ([0.0, 0], [0, 2], "differ", 1),
])  # fmt: skip
def test_nan_and_infinity(a: list[float], b: list[float], verdict: str, unlike: int) -> None:
    """D-3, D-4: zeros against zeros are the same; a NaN against a number is a difference that no figure hides."""
    x, y = (QTensor("F32", (2,), np.array(v, "<f4").view(np.uint8)) for v in (a, b))
    row = compare_tensor("w", x, y)
    assert (row.verdict, row.unlike) == (verdict, unlike)
    if not np.isfinite([*a, *b]).all() and verdict == "differ":
        assert row.max_abs is not None and np.isnan(row.max_abs) and "NaN or infinite" in row.note


def test_nan_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = model(spell=HF)
    convert(source, tmp_path / "a")
    x = dequantize(source.tensors[NORM]).copy()
    x[3] = np.nan
    w = source.tensors[NORM]
    broken = replace(source, tensors=source.tensors | {NORM: replace(w, data=x.view(np.uint8))})
    convert(broken, tmp_path / "b")
    status, found = diff(capsys, tmp_path / "a", tmp_path / "b")
    (row,) = [row for row in found["tensors"] if row["verdict"] == "differ"]
    assert status == 1 and row["name"] == NORM and row["max_abs"] is None and "1 NaN" in row["note"]


def test_the_same_memory_under_swapped_labels() -> None:
    """D-2: [in, out] and [out, in] of the same bytes are the same weights."""
    x = quantize(np.arange(12, dtype=np.float32).reshape(3, 4), "F32")
    row = compare_tensor("w", x, replace(x, shape=(4, 3)))
    assert row.verdict == "identical bytes" and "the same memory" in row.note
    assert compare_tensor("w", x, replace(x, shape=(2, 6))).verdict == "shapes differ"


def test_missing_and_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, one = model(layers=2), model(layers=1)
    convert(two, tmp_path / "a.gguf")
    convert(one, tmp_path / "b.gguf")
    status, found = diff(capsys, tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert status == 1 and found["counts"]["only in A"] == 12
    assert "model.layers.1.mlp.up_proj.weight" in [r["name"] for r in found["tensors"] if r["verdict"] == "only in A"]
    assert found["config"] == {"num_hidden_layers": [2, 1]}
    assert diff(capsys, tmp_path / "b.gguf", tmp_path / "a.gguf")[1]["counts"]["only in B"] == 12


def test_a_tied_head_is_the_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file repeats the embedding as its head, the other does not: the same model."""
    tied = model(spell=HF, tied=True)
    head = replace(tied.tensors["model.embed_tokens.weight"], name="lm_head.weight")
    untied = replace(
        tied, tensors=tied.tensors | {head.name: head}, config=replace(tied.config, tie_word_embeddings=False)
    )
    convert(tied, tmp_path / "a.gguf")
    convert(untied, tmp_path / "b.gguf")
    status, found = diff(capsys, tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert status == 0 and found["counts"] == {"identical bytes": 27}


def folder_of(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A folder of safetensors that holds these tensors alone, and says that it is tied."""
    m = model()
    tied = {n: w for n, w in m.tensors.items() if renamed(n, HF) != "lm_head.weight"}
    convert(replace(m, tensors=tied, config=replace(m.config, tie_word_embeddings=True)), path)
    save_file(tensors, path / "model.safetensors")
    return path


def test_nothing_in_common_is_not_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder_of(tmp_path / "a", {"x": np.ones((2, 2), np.float32)})
    two = folder_of(tmp_path / "b", {"y": np.ones((2, 2), np.float32)})
    assert main(["diff", "--weights", str(one), str(two)]) == 2
    assert "no tensor in common" in capsys.readouterr().err


def test_single_values_and_none_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """safetensors hold both; no weight is either, but the same name may stand on both sides."""
    numbers = np.float32(1.5), np.float32(2.5)
    one, two = (
        folder_of(tmp_path / name, {"one": np.array(x), "none": np.empty((3, 0), kind)})
        for name, x, kind in (("a", numbers[0], np.float32), ("b", numbers[1], np.float16))
    )
    status, found = diff(capsys, one, two)
    assert status == 1 and found["counts"] == {"identical values": 1, "differ": 1}
    assert [row["max_abs"] for row in found["tensors"] if row["name"] == "one"] == [1.0]


def test_flags_about_stages_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--tolerance", "1"], ["--top", "3"], ["--csv"]):
        assert main(["diff", "--weights", "a", "b", *flags]) == 2
        assert flags[0] in capsys.readouterr().err


def test_wrong_label_is_suspected() -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 30
    right = quantize(values, "BF16")
    row = compare_tensor("w", right, replace(right, format="F16"))
    assert row.verdict == "differ" and "B looks like BF16 labelled F16" in row.note
