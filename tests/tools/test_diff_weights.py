"""engine diff --weights: no false alarm between healthy files of one model, and every difference named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.engine.files import Checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.diff_causes import distance, rows_of
from qwenref.engine.files.diff_weights import compare_tensor, tensor_rows
from qwenref.engine.models.qwen2 import ARCHITECTURE as QWEN2
from qwenref.quant.tensor import QTensor, dequantize, quantize
from qwenref.tools.main import main

from ..models import model

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
    source = model(spell="hf")
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


def test_slabs_add_up() -> None:
    """The figures do not depend on how many rows are compared at a time."""
    rng = np.random.default_rng(0)
    x, y = (quantize(rng.standard_normal((37, 32)).astype(np.float32), f) for f in ("F32", "Q8_0"))
    whole, parts = distance(rows_of(x), y), distance(rows_of(x), y, 64)
    assert (parts.largest, parts.unlike) == (whole.largest, whole.unlike)
    assert parts.relative == pytest.approx(whole.relative, rel=1e-12)


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
    source = model(spell="hf")
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
    tied = model(spell="hf", tied=True)
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
    tied = {n: w for n, w in m.tensors.items() if QWEN2.renamed(n, "hf") != "lm_head.weight"}
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


# -- what a difference is: planted by NumPy, named by the command ----------------------------------------------------

ZERO = "model.layers.0."
K_BIAS, GATE, UP = ZERO + "self_attn.k_proj.bias", ZERO + "mlp.gate_proj.weight", ZERO + "mlp.up_proj.weight"
O, DOWN = ZERO + "self_attn.o_proj.weight", ZERO + "mlp.down_proj.weight"


def llama_permute(x: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py (LlamaModel.permute) reorders Q and K for RoPE of adjacent pairs."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def llama_unpermute(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(2, 1).reshape(x.shape)


def shuffled(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.take(x, np.random.default_rng(3).permutation(x.shape[axis]), axis)


def swapped(x: np.ndarray, a: int, b: int) -> np.ndarray:
    order = np.arange(len(x))
    order[[a, b]] = b, a
    return x[order]


def heads_moved(x: np.ndarray, axis: int) -> np.ndarray:
    """Four heads of 16, rows or columns, in the order 2 0 1 3."""
    return np.take(x, np.arange(64).reshape(4, 16)[[2, 0, 1, 3]].reshape(-1), axis)


CAUSES = {
    "negated": (Q, lambda x: -x, "A's negated, exactly"),
    "twice": (Q, lambda x: 2 * x, "A's times 2, exactly"),
    "a little larger": (DOWN, lambda x: x * np.float32(1.001), "A's times 1.001"),
    "a norm of twice": (NORM, lambda x: x * 2, "A's times 2, exactly"),
    "by row": (UP, lambda x: x * 2.0 ** (np.arange(96) % 3)[:, None], "each row times a factor of its own, 1 to 4, ex"),
    "transposed": (Q, lambda x: x.T, "the transpose of A's, exactly"),
    "transposed shape": (DOWN, lambda x: x.T, "the transpose of A's, exactly"),
    "interleaved": (Q, lambda x: llama_permute(x, 4), "halves of each head interleaved, as Llama's RoPE has them, exa"),
    "interleaved bias": (K_BIAS, lambda x: llama_permute(x, 2), "halves of each head interleaved"),
    "taken apart": (Q, lambda x: llama_unpermute(x, 4), "A is interleaved, as Llama's RoPE has it, exactly"),
    "rows": (UP, shuffled, "its rows in another order ("),
    "two rows": (UP, lambda x: swapped(x, 3, 90), "rows 3 and 90 exchanged, exactly"),
    "two values of a bias": (K_BIAS, lambda x: swapped(x, 0, 1), "rows 0 and 1 exchanged, exactly"),
    "reversed": (GATE, lambda x: x[::-1], "its rows in reverse, exactly"),
    "halves": (GATE, lambda x: np.roll(x, 48, 0), "the two halves of its rows exchanged, exactly"),
    "heads": (Q, lambda x: heads_moved(x, 0), "its heads of 16 rows in the order 2 0 1 3, exactly"),
    "heads of o": (O, lambda x: heads_moved(x, 1), "its heads of 16 columns in the order 2 0 1 3, exactly"),
    "columns": (DOWN, lambda x: shuffled(x, 1), "its columns in another order ("),
}  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_causes(cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In safetensors, written plainly: they may hold what no Qwen2 is."""
    name, make, says = CAUSES[cause]
    a = model(spell="hf")
    for folder in ("a", "b"):
        convert(a, tmp_path / folder)
    held = {n: dequantize(w) for n, w in a.tensors.items()}
    save_file(held | {name: np.ascontiguousarray(make(held[name]), np.float32)}, tmp_path / "b" / "model.safetensors")
    status, found = diff(capsys, tmp_path / "a", tmp_path / "b")
    (row,) = [r for r in found["tensors"] if not r["verdict"].startswith("identical")]
    assert status == 1 and row["name"] == name
    assert row["note"].startswith("B holds ") and says in row["note"], row["note"]
    assert row["note"].endswith(", exactly") or "but for a relative RMS of" in row["note"]


def with_tensors(a: Checkpoint, of: dict[str, str], format: str = "F32") -> Checkpoint:
    """Each named tensor holds the values of the other."""
    held = {
        n: quantize(dequantize(a.tensors[other]), format if len(a.tensors[n].shape) > 1 else "F32", n)
        for n, other in of.items()
    }
    return replace(a, tensors=a.tensors | held)


@pytest.mark.parametrize(("format", "left"), [("F32", ", exactly"), ("Q8_0", ", but for a relative RMS of")])
def test_gate_and_up_exchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, left: str) -> None:
    """Also where B is a quantised file of the same values."""
    a = model(spell="hf")
    convert(a, tmp_path / "a.gguf")
    convert(with_tensors(a, {GATE: UP, UP: GATE}, format), tmp_path / "b.gguf")
    found = diff(capsys, tmp_path / "a.gguf", tmp_path / "b.gguf")[1]
    notes = {r["name"]: r["note"] for r in found["tensors"] if r["verdict"] == "differ"}
    assert notes.keys() == {GATE, UP}
    assert notes[GATE].startswith(f"B holds A's {UP}{left}") and notes[GATE].endswith(": the two are exchanged")
    assert notes[UP].startswith(f"B holds A's {GATE}{left}")


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
@pytest.mark.parametrize("moved", [{0: 1, 1: 2}, {0: 2, 2: 0}], ids=["shifted", "exchanged"])
def test_layers_that_stand_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], moved: dict[int, int], format: str
) -> None:
    a = model(spell="hf", layers=3)
    inside = [n.removeprefix(ZERO) for n in a.tensors if n.startswith(ZERO)]
    of = {f"model.layers.{i}.{n}": f"model.layers.{j}.{n}" for i, j in moved.items() for n in inside}
    convert(a, tmp_path / "a.gguf")
    convert(with_tensors(a, of, format), tmp_path / "b.gguf")
    found = diff(capsys, tmp_path / "a.gguf", tmp_path / "b.gguf")[1]
    assert found["layers_of_a"] == {str(i): j for i, j in moved.items()}
    assert main(["diff", "--weights", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]) == 1
    first, *_ = capsys.readouterr().out.splitlines()
    said = ", ".join(f"{i} is A's {j}" for i, j in moved.items())
    assert first == f"layers of B that are other layers of A: {said}"


@pytest.mark.parametrize("seed", range(7, 10))  # 0 made the weights: its noise would be their own
@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_no_cause_is_claimed_of_noise_or_of_other_weights(format: str, seed: int) -> None:
    """A quantised file is no scaled one, a fine-tuned tensor no permuted one, another model's no other tensor."""
    a = model(spell="hf")
    rng = np.random.default_rng(seed)

    def rounded(w: QTensor) -> QTensor:
        return replace(quantize(dequantize(w), format if len(w.shape) > 1 else "F32"), name=w.name)

    def tuned(w: QTensor) -> QTensor:
        x = dequantize(w)
        return quantize(x + np.float32(0.02) * rng.standard_normal(x.shape).astype(np.float32), "F32", w.name)

    def random(w: QTensor) -> QTensor:
        return quantize(rng.standard_normal(w.shape).astype(np.float32), "F32", w.name)

    for change in (rounded, tuned, random):
        b = replace(a, tensors={n: change(w) for n, w in a.tensors.items()})
        assert [r.note for r, _ in tensor_rows(a, b) if r.note] == []


def test_the_same_memory_is_only_said_of_the_same_values() -> None:
    x = quantize(np.arange(12, dtype=np.float32).reshape(3, 4), "F32")
    row = compare_tensor("w", x, quantize(dequantize(x).T.copy(), "F32"))
    assert row.verdict == "shapes differ" and row.note == "B holds the transpose of A's, exactly"
    other = compare_tensor("w", x, quantize(np.random.default_rng(0).standard_normal((4, 3)).astype("f4"), "F32"))
    assert (other.verdict, other.note) == ("shapes differ", "")
