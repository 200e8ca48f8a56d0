"""Every type that gguf-py decodes is run, traced, converted and verified, on every backend that is here.

One small model of each type, whose rows are one block: matrices, embedding, a bias and two norms hold it. CUDA's turn
is in cuda_simulator.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize

from qwenref.engine.bind import bind
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.diff_weights import compare_tensor
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend, reference
from qwenref.engine.weights import Weights
from qwenref.errors import BadInput
from qwenref.quant.tensor import QTensor, dequantize, format_of
from qwenref.tools.convert import QUANTIZE
from qwenref.tools.main import main
from qwenref.trace.verify.finding import BUDGET, EXACT, REPRODUCED, UNEXPLAINED
from qwenref.trace.verify.formulas import PRODUCTS
from qwenref.trace.verify.hypotheses.decoders import wrong_decoders
from qwenref.trace.verify.recipes.matrix import FileMatrix
from qwenref.trace.verify.verify import verify

from ..engines import ENGINES, dump_of
from ..models import leaves, model
from ..thinned import thinned
from ..tiny import TYPES, tiny_weights, write_gguf

ROLES = ("embed", "q", "k", "v", "attn_out", "ffn_gate", "ffn_up", "ffn_down", "lm_head")
VECTORS = ("attn_norm", "final_norm", "q_bias")
PRECISIONS = [("cpu", p) for p in backend("cpu").PRECISIONS] + [("reference", "f32"), ("reference", "f64")]
TOKENS = [3, 200, 17, 9, 41]


@cache
def of_type(name: str) -> Weights:
    """One layer in which every row is one block (of 32 at least); every other type has a tied head."""
    D = max(32, format_of(name).block)
    sizes = {"hidden": D, "mlp": D, "heads": 2, "kv_heads": 1, "head_dim": D // 2, "layers": 1}
    return tiny_weights(
        formats=dict.fromkeys((*ROLES, *VECTORS), name), tied=bool(TYPES.index(name) % 2), seed=7, **sizes
    )


@cache
def written(folder: Path, name: str) -> Path:
    """The model as gguf-py writes it."""
    return write_gguf(folder / f"{name}.gguf", of_type(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("types")


def expected(w: QTensor) -> np.ndarray:
    """The tensor's values by gguf-py."""
    rows = w.data.reshape(*w.shape[:-1], -1) if w.format != "F32" else w.data.view("<f4").reshape(w.shape)
    return gguf_dequantize(rows, GGMLQuantizationType[w.format])


def by_role(m: Checkpoint) -> dict[str, QTensor]:
    return dict(leaves(bind(m.config, m.tensors)))


def judged(path: Path, tmp: Path, capsys: pytest.CaptureFixture[str], rows: np.ndarray) -> None:
    """Prompt and two decode steps through the commands, on every backend: each stage is explained by its own inputs in
    float64, and the embedding is `rows` to the bit.
    """
    layers = open_checkpoint(path).config.num_hidden_layers
    for k, precision in PRECISIONS:
        at = tmp / f"{k}-{precision}"
        how = ["--backend", k, "--precision", precision, "--decode-steps", "2", "--tokens", ",".join(map(str, TOKENS))]
        assert main(["trace", str(path), "--save-tensor", "all", "--save-tensor-dir", str(at), *how]) == 0
        capsys.readouterr()
        assert main(["verify", str(at), "-m", str(path), "--json"]) == 0, f"{k} {precision}"
        verdicts = [f["verdict"] for f in json.loads(capsys.readouterr().out)["stages"]]
        assert set(verdicts) <= {EXACT, REPRODUCED} and len(verdicts) == 3 * (3 + 17 * layers)
        held = np.fromfile(at / "layer-0" / "embedding.bin", "<f4", offset=12).reshape(rows.shape)
        assert held.tobytes() == rows.tobytes()


@pytest.mark.parametrize("name", thinned(TYPES, str, 8))
def test_trace_and_verify(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(written(folder, name), tmp_path, capsys, expected(of_type(name).embed)[TOKENS])


@pytest.mark.parametrize("name", TYPES)
def test_convert_inspect_and_diff(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GGUF keeps the bytes; APR and safetensors keep the values, bytes too where they have the format, and give them
    back to GGUF.
    """
    source = open_checkpoint(written(folder, name))
    want = {n: expected(w) for n, w in by_role(source).items()}
    for kind in ("m.gguf", "m.apr", "m"):
        there, back = tmp_path / kind, tmp_path / f"back-from-{kind}.gguf"
        convert(source, there)
        convert(open_checkpoint(there), back)
        for path in (there, back):
            got = by_role(open_checkpoint(path))
            assert got.keys() == want.keys()
            for n, w in got.items():
                assert dequantize(w).tobytes() == want[n].tobytes(), f"{path.name}: {n}"
    assert {w.format for w in open_checkpoint(tmp_path / "m.gguf").tensors.values()} == {"F32", name}
    capsys.readouterr()
    assert main(["inspect", str(source.path), "--check", "--json"]) == 0
    held = {f["format"]: f["tensors"] for f in json.loads(capsys.readouterr().out)["formats"]}
    assert held[name] == len(want) if name == "F32" else held[name] == len(want) - 3
    assert main(["diff", "--weights", str(source.path), str(tmp_path / "back-from-m.gguf"), "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["counts"].values()) == len(want) + source.config.tie_word_embeddings


@pytest.mark.parametrize("name", QUANTIZE)
def test_run_what_convert_quantises(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """engine run continues as the reference does in float64, in each of the CPU's precisions: here the choice is clear
    enough for int8's noise.
    """
    path = tmp_path / "m.gguf"
    convert(model("F32", hidden=256, mlp=256, heads=2, kv_heads=1, head_dim=128, layers=1), path, name)
    m = open_checkpoint(path)
    assert name.upper() in {w.format for w in m.tensors.values()}
    w, k = bind(m.config, m.tensors), backend("reference")
    capsys.readouterr()
    for precision in backend("cpu").PRECISIONS:
        assert main(["run", "-m", str(path), "-p", "the low", "-n", "2", "--json", "--precision", precision]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["ids"] == list(generate(answer["prompt_ids"], k.prepare(w, "f64"), k, "f64", 2)), precision


@pytest.mark.parametrize("kind", ["I32", "F64"])
def test_what_is_no_weight_is_named(kind: str) -> None:
    m = model("F32", layers=1)
    w = m.tensors["blk.0.ffn_up.weight"]
    odd = replace(w, format=kind, data=np.zeros(w.data.size * (1 + (kind == "F64")), np.uint8))
    says = rf"tensor blk.0.ffn_up.weight: no decoder for weight format {kind}; weights are floats"
    with pytest.raises(BadInput, match=says):
        bind(m.config, m.tensors | {odd.name: odd})
    with pytest.raises(BadInput, match=says):
        compare_tensor("w", w, odd)


# ---- rows that are no whole number of blocks, which APR pads


@pytest.fixture(scope="module", params=["q4_k", "q6_k"])
def padded(request: pytest.FixtureRequest, folder: Path) -> Path:
    """Rows of 72 and 104 values in blocks of 256: groups of 32 are cut too."""
    path = folder / f"{request.param}.apr"
    convert(model("F32", hidden=72, mlp=104, heads=3, kv_heads=1, head_dim=24), path, request.param)
    return path


def test_padded_rows_are_traced_and_verified(padded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = open_checkpoint(padded).tensors["model.embed_tokens.weight"]
    whole = replace(w, shape=(w.shape[0], 256))  # as aprender's writer fills rows up
    judged(padded, tmp_path, capsys, expected(whole)[TOKENS, :72])


def test_mistakes_in_padded_rows_are_located(padded: Path) -> None:
    """Every hypothesis is tried on them, and the wrong row found."""
    m = open_checkpoint(padded)
    w = bind(m.config, m.tensors)

    def wrong(run: Any, y: np.ndarray) -> np.ndarray:
        y = y.copy()
        y[:, 5] *= 0.5
        return y

    v = verify(dump_of(w, "cpu f32", TOKENS, mistakes={("ffn_out", 1): wrong}), w)
    (f,) = (f for f in v.findings if f.verdict == UNEXPLAINED)
    assert (f.layer, f.stage, [r.row for r in f.where.rows]) == (1, "ffn_out", [5])


def test_noise_in_products_of_padded_rows_has_its_budget(padded: Path) -> None:
    """Activations with one step of 8 bits for each position, off zero: no recipe has that."""
    m = open_checkpoint(padded)
    w = bind(m.config, m.tensors)

    def linear(x: np.ndarray, parts: Any) -> np.ndarray:
        step, off = np.abs(x).max(1, keepdims=True) / np.float32(127), np.float32(0.25)
        return ENGINES["HF float32"].linear((np.rint(x / step - off) + off) * step, parts)

    v = verify(dump_of(w, SimpleNamespace(**{**vars(ENGINES["HF float32"]), "linear": linear}), [*TOKENS] * 4), w)
    products = [f for f in v.findings if f.stage in PRODUCTS]
    assert {f.verdict for f in products} == {BUDGET}
    assert {f.budget.source for f in products} == {"8-bit activations, one step per position"}


# ---- mistakes, by type


def test_a_mistake_in_a_type_that_the_engine_does_not_round_for_is_named() -> None:
    """Our int8 meets Q2_K with float32; the rest of the dump is ggml's int8."""
    formats = dict.fromkeys(ROLES, "Q4_K") | {"ffn_gate": "Q2_K", "ffn_up": "Q2_K"}
    w = tiny_weights(hidden=256, mlp=256, heads=2, kv_heads=1, head_dim=128, formats=formats)

    def other_layer(run: Any, y: np.ndarray) -> np.ndarray:
        return run.kernels.linear(run.get("ffn_norm"), reference.Matrix(run.weights.layers[0].gate_up.parts[:1], "f4"))

    v = verify(dump_of(w, "cpu int8", TOKENS, mistakes={("ffn_gate", 1): other_layer}), w)
    (f,) = (f for f in v.findings if f.verdict == UNEXPLAINED)
    assert (v.recipe.name, f.layer, f.stage) == ("ggml int8, 32-bit KV", 1, "ffn_gate")
    assert [h.name for h in f.hypotheses] == ["weight-other-layer"]


@pytest.mark.parametrize("name", [name for name in TYPES if format_of(name).nibbles])
def test_wrong_nibbles(name: str) -> None:
    """Which value a nibble moves: by gguf-py, and under the two mistakes that are made with it."""
    f = format_of(name)
    field, run = f.nibbles
    first = f.struct.fields[field][1]
    block = of_type(name).layers[0].attn_out.data[: f.bytes]

    def moved(byte: int, flip: int, values: Callable[[QTensor], np.ndarray]) -> list[int]:
        other = block.copy()
        other[first + byte] ^= flip
        both = [values(QTensor(name, (1, f.block), data)) for data in (block, other)]
        return np.flatnonzero(both[0] != both[1]).tolist()

    def wrongly(what: str) -> Callable[[QTensor], np.ndarray]:
        return lambda w: next(made for name, made, _ in wrong_decoders(FileMatrix(w)) if name == what)().rows(0, 1)

    low, high = 0x05, 0x50  # no code and the one with these bits flipped are the same value
    assert (moved(1, low, expected), moved(1, high, expected)) == ([1], [run // 2 + 1])
    swapped, neighbours = (wrongly(f"the {x}") for x in (
        "nibbles of a byte are swapped", "two nibbles of a byte are taken for neighbours"))  # fmt: skip
    assert (moved(1, low, swapped), moved(1, high, swapped)) == ([run // 2 + 1], [1])
    assert (moved(1, low, neighbours), moved(1, high, neighbours)) == ([2], [3])
