"""The page is the only forward pass: looking changes nothing, and what is seen does not depend on how it was cut up.

On the CPU backend these are equalities of bits. The reference and CUDA promise rounding, and are held to it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.tap import SILENT, Both
from qwenref.engine.weights import Weights
from qwenref.trace.plan import plan
from qwenref.trace.recorder import Recorder, Summary
from qwenref.trace.sources import open_dump
from qwenref.trace.stages import STAGES, of_pieces, shape_for
from qwenref.trace.store import MANIFEST, DumpWriter, files_of

from ..tiny import Stages, backends, collect, relative, tiny_weights

TOKENS = [38, 174, 220, 17, 10, 17, 30, 258, 0]
QUANTISED = {
    "embed": "Q8_0",
    "q": "Q5_0",
    "k": "Q4_0",
    "v": "Q8_0",
    "attn_out": "Q5_0",
    "ffn_gate": "Q4_0",
    "ffn_up": "Q8_0",
    "ffn_down": "Q5_0",
    "lm_head": "Q8_0",
}
K_QUANTS = {
    "embed": "Q6_K",
    "q": "Q4_K",
    "k": "Q5_K",
    "v": "Q6_K",
    "attn_out": "Q4_K",
    "ffn_gate": "Q5_K",
    "ffn_up": "Q4_K",
}
WIDE = {
    "layers": 1,
    "hidden": 256,
    "head_dim": 64,
    "mlp": 256,
    "formats": K_QUANTS | {"ffn_down": "Q6_K"},
    "tied": True,
}
MODELS = {
    "f32": {},
    "quantised": {"formats": QUANTISED, "seed": 1},
    "k_quants": WIDE,
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "heads": 3, "kv_heads": 1, "formats": QUANTISED, "seed": 2},
    "biases": {"model_type": "llama", "asked": ("attention_bias", "mlp_bias"), "formats": QUANTISED, "seed": 3},
}
IN_A_LAYER = {"qwen2": 17, "qwen3": 18, "llama": 21}

# RMS relative to float64. f32: some hundred roundings of 2^-24 a stage, carried through two layers; int8: steps of
# 1/127 of a block's largest activation, through every product; int16: of 1/32639.
BOUND = {"f32": 2e-6, "f64": 1e-14, "int8": 5e-2, "int16": 5e-2 / 257}


@pytest.fixture(scope="module", params=MODELS)
def weights(request: pytest.FixtureRequest) -> Weights:
    return tiny_weights(**MODELS[request.param])


def assert_same(a: np.ndarray, b: np.ndarray, name: str, precision: str, what: str) -> None:
    if name == "cpu":
        assert a.tobytes() == b.tobytes(), f"{what} is not bit-identical"
    else:
        assert relative(a, b) <= BOUND[precision], what


@pytest.mark.parametrize(("name", "precision"), backends())
def test_traced_and_untraced_logits_are_bit_identical(
    name: str, precision: str, weights: Weights, tmp_path: Path
) -> None:
    k, c = backend(name), weights.config
    w = k.prepare(weights, precision)
    with DumpWriter(tmp_path / "dump", {}, c.sizes) as writer:
        positions = range(len(TOKENS))
        tap = Both(Recorder(plan("all"), k.to_host, writer, positions), Summary(plan("all"), k.to_host, positions))
        logits = [
            np.array(k.to_host(forward(np.array(TOKENS, np.int32), w, k.new_cache(c, 9, precision), k, t)))
            for t in (tap, SILENT)
        ]
    assert logits[0].tobytes() == logits[1].tobytes()
    written = open_dump(tmp_path / "dump").get("lm_head")
    assert written is not None and np.array_equal(written.values(), logits[0].astype(np.float32))


@pytest.mark.parametrize(("name", "precision"), backends())
def test_two_traces_are_byte_identical(name: str, precision: str, weights: Weights, tmp_path: Path) -> None:
    k, c = backend(name), weights.config
    for run in ("a", "b"):
        w = k.prepare(weights, precision)
        with DumpWriter(tmp_path / run, {"tokens": TOKENS}, c.sizes) as writer:
            recorder = Recorder(plan("all"), k.to_host, writer, range(len(TOKENS)))
            forward(np.array(TOKENS, np.int32), w, k.new_cache(c, 9, precision), k, recorder)
    names = files_of(tmp_path / "a")
    assert (
        names == files_of(tmp_path / "b")
        and MANIFEST in names
        and len(names) == 4 + IN_A_LAYER[c.model_type] * c.num_hidden_layers
    )
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


@pytest.mark.parametrize(("name", "precision"), backends())
def test_every_stage_has_its_shape(name: str, precision: str, weights: Weights) -> None:
    c, (first, second) = weights.config, collect(weights, name, precision, TOKENS[:6], TOKENS[6:])
    for found, T, S in ((first, 6, 6), (second, 3, 9)):
        for s in of_pieces(weights.pieces).values():
            layers = {"whole": [None], "first": [0], "layer": list(range(c.num_hidden_layers))}[s.scope]
            for layer in layers:
                assert found[s.name, layer].shape == shape_for(s, c.sizes, T, S), s.name
        assert len(found) == IN_A_LAYER[c.model_type] * c.num_hidden_layers + 3


def rows(stages: Stages, key: tuple[str, int | None], at: int, end: int) -> np.ndarray:
    """Position `at` of a stage, with keys up to `end` only: what a pass of that one position has."""
    letters = next(s.letters for s in STAGES if s.name == key[0])
    x = stages[key]
    if "S" in letters:
        return x[:, at : at + 1, :end]
    return x[at : at + 1] if "T" in letters else x


@pytest.mark.parametrize("cuts", [(1,) * 9, (4, 5), (8, 1)], ids=["one by one", "4+5", "8+1"])
@pytest.mark.parametrize(("name", "precision"), backends())
def test_prompt_at_once_equals_prompt_in_pieces(
    name: str, precision: str, cuts: tuple[int, ...], weights: Weights
) -> None:
    """Every stage of every layer at every position: step n of a decode is position n of the prompt."""
    (whole,) = collect(weights, name, precision, TOKENS)
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    pieces = collect(weights, name, precision, *(TOKENS[a : a + n] for a, n in zip(starts, cuts, strict=True)))
    for start, n, piece in zip(starts, cuts, pieces, strict=True):
        for key in whole:
            if key[0] == "lm_head":
                continue
            for i in range(n):
                a, b = rows(whole, key, start + i, start + i + 1), rows(piece, key, i, start + i + 1)
                assert_same(a, b, name, precision, f"{key} at position {start + i}")
    assert_same(whole["lm_head", None], pieces[-1]["lm_head", None], name, precision, "lm_head")


@pytest.mark.parametrize(("name", "precision"), backends())
def test_every_stage_agrees_with_float64(name: str, precision: str, weights: Weights) -> None:
    (judge,), (found,) = (collect(weights, n, p, TOKENS) for n, p in (("reference", "f64"), (name, precision)))
    assert judge.keys() == found.keys()
    worst = max((relative(judge[k], found[k]), k) for k in judge)
    assert worst[0] <= BOUND[precision], worst


@pytest.mark.parametrize(("name", "precision"), backends())
def test_what_stands_after_the_query_is_zero(name: str, precision: str, weights: Weights) -> None:
    """Scores hold 0.0 there, not -inf and not the product; probabilities hold 0.0 and sum to 1 before it."""
    first, second = collect(weights, name, precision, TOKENS[:4], TOKENS[4:])
    for found, start in ((first, 0), (second, 4)):
        for layer in range(weights.config.num_hidden_layers):
            for stage in ("attn_scores", "attn_softmax"):
                x = found[stage, layer]
                after = np.arange(x.shape[2]) > start + np.arange(x.shape[1])[:, None]
                assert not x[:, after].any() and not np.signbit(x[:, after]).any()
            total = found["attn_softmax", layer].sum(-1, dtype=np.float64)
            assert np.abs(total - 1).max() < 1e-6
