"""The judge on models with a bias of every product of a layer (Llama's attention_bias and mlp_bias): healthy engines,
those that add it inside the product among them, and each mistake with it, found where it is and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.stages import of_pieces
from qwenref.trace.verify.finding import EXACT, REPRODUCED, UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dot, dump_of, to_bfloat16
from ...thinned import thinned
from ...tiny import tiny_weights

A = np.ndarray
TOKENS = np.random.default_rng(1).integers(0, 259, 9).tolist()
SUMS = ("qkv_bias", "attn_out_bias", "ffn_gate_bias", "ffn_up_bias", "ffn_out_bias")


@cache
def model(model_type: str = "llama") -> Weights:
    """An output projection and a down projection of as many columns as the MLP has; Q, K and V of one width."""
    asked = ("attention_bias", "mlp_bias") if model_type == "llama" else ("attention_bias",)
    return tiny_weights(kv_heads=4, mlp=64, model_type=model_type, asked=asked)


def layer(run: Run) -> Any:
    return run.weights.layers[run.at or 0]


def product(run: Run, stage: str) -> A:
    """What the bias of a stage is added to, before it is rounded: of bfloat16 weights."""
    of = of_pieces(model().pieces)[stage]
    (given,) = of.inputs
    slabs = list(getattr(layer(run), of.weight or "").slabs())
    x, w_OI = run.get(given), np.concatenate(slabs)
    half = len(w_OI) // 2
    rows = {None: slice(None), 0: slice(half), 1: slice(half, None)}[of.part]
    return dot(x.reshape(len(x), -1), to_bfloat16(w_OI[rows]))


def inside(stage: str) -> Callable[[Run, A], A]:
    """The sum as torch.nn.Linear makes it in 16 bits: rounded once."""
    of = of_pieces(model().pieces)[stage]

    def made(run: Run, y: A) -> A:
        return to_bfloat16(product(run, of.inputs[0]) + to_bfloat16(getattr(layer(run), of.weight or "")))

    return made


@pytest.mark.parametrize(("engine", "which"), [("HF float32", "qwen3"), ("HF bfloat16", "llama"), ("cpu f32", "llama")])
def test_healthy(engine: str, which: str) -> None:
    w = model(which)
    d = dump_of(w, engine, TOKENS, steps=[5])
    found = verify(d, w)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED}
    assert {f.stage for f in found.findings} >= {*(s for s in SUMS if s[0] != "f" or which == "llama")}


@pytest.mark.parametrize("everywhere", [True, False])
def test_bias_inside_of_the_product(everywhere: bool) -> None:
    """Of an engine that shows the sums alone; where one product does as no other, that is said."""
    w, odd = model(), ("ffn_out_bias", 1)
    mistakes = {(s, i): inside(s) for s in SUMS for i in (0, 1) if everywhere or (s, i) != odd}
    d = dump_of(w, "HF bfloat16", TOKENS, mistakes=mistakes)
    products = {of_pieces(w.pieces)[s].inputs[0] for s in SUMS}
    d = changed(d, lambda e: None if e.stage.name in products else e)
    found = verify(d, w)
    assert "bias inside the product" in found.recipe.name
    assert [(f.stage, f.layer) for f in found.findings if f.verdict == UNEXPLAINED] == ([] if everywhere else [odd])


def of(stage: str, run: Run, which: int = 0) -> A:
    """The stage's own bias; which 1: the other layer's."""
    weights = run.weights.layers[(run.at or 0) + which * (-1 if run.at else 1)]
    return np.array(getattr(weights, of_pieces(model().pieces)[stage].weight or ""))


def with_bias(stage: str, bias: Callable[[Run], A]) -> tuple[str, Callable[[Run, A], A]]:
    before = of_pieces(model().pieces)[stage].inputs[0]
    return stage, lambda run, y: run.kernels.add(run.get(before), bias(run))


def keys_for_queries(run: Run) -> A:
    _, k, v = np.split(of("qkv_bias", run), 3)
    return np.concatenate([k, k, v])


# What is made of a stage, the hypothesis that must be named, and words of what it says.
MISTAKES: dict[str, tuple[tuple[str, Callable[[Run, A], A]], str, str]] = {
    "output bias left out": (
        with_bias("attn_out_bias", lambda run: 0 * of("attn_out_bias", run)),
        "bias-missing", "the bias of the output projection is not added",
    ),
    "output bias twice": (
        ("attn_out_bias", lambda run, y: run.kernels.add(y, of("attn_out_bias", run))),
        "bias-doubled", "the bias of the output projection is added twice",
    ),
    "output bias of the other layer": (
        with_bias("attn_out_bias", lambda run: of("attn_out_bias", run, 1)),
        "bias-other-layer", "the bias of the output projection is that of layer 0",
    ),
    "K's for Q's": (
        with_bias("qkv_bias", keys_for_queries), "bias-other-piece", "the QKV bias of Q is that of K"
    ),
    "gate's left out": (
        with_bias("ffn_gate_bias", lambda run: 0 * of("ffn_gate_bias", run)),
        "bias-missing", "the bias of gate is not added",
    ),
    "gate's for up's": (
        with_bias("ffn_up_bias", lambda run: of("ffn_gate_bias", run)),
        "bias-other-piece", "the bias of up is the bias of gate",
    ),
    "down's subtracted": (
        with_bias("ffn_out_bias", lambda run: -of("ffn_out_bias", run)),
        "bias-subtracted", "the bias of the down projection is subtracted",
    ),
    "down's of four ranks": (
        with_bias("ffn_out_bias", lambda run: 4 * of("ffn_out_bias", run)),
        "bias-rank", "the bias of the down projection is added by each of 4 ranks",
    ),
    "up's of one rank": (
        with_bias("ffn_up_bias", lambda run: np.tile(np.split(of("ffn_up_bias", run), 2)[0], 2)),
        "bias-rank", "the bias of up is not split by rank: each of 2 ranks adds the part of rank 0",
    ),
    "already in the product": (
        ("attn_out", lambda run, y: run.kernels.add(y, of("attn_out_bias", run))),
        "bias-included", "the stage already holds the bias",
    ),
}  # fmt: skip
SIMULATED = ("HF float32", "HF bfloat16", "cpu f32", "ggml, 32-bit KV")
CASES = [(mistake, engine) for mistake in MISTAKES for engine in SIMULATED]


@pytest.mark.parametrize(("mistake", "engine"), thinned(CASES, ", ".join, 5))
def test_planted(mistake: str, engine: str) -> None:
    (stage, make), named, says = MISTAKES[mistake]
    d = dump_of(model(), engine, TOKENS, mistakes={(stage, 1): make})
    (f,) = (f for f in verify(d, model()).findings if f.verdict == UNEXPLAINED)
    assert (f.layer, f.stage) == (1, stage)
    assert named in {h.name for h in f.hypotheses} and says in {h.sentence for h in f.hypotheses}


def test_a_missing_bias_of_an_engine_that_shows_no_products() -> None:
    """As plain hooks and serving engines leave it: one stage for the product and its bias."""
    stage, make = MISTAKES["gate's left out"][0]
    d = dump_of(model(), "HF float32", TOKENS, mistakes={(stage, 0): make})
    d = changed(d, lambda e: None if e.stage.kind == "product" and e.layer is not None else e)
    (f,) = (f for f in verify(d, model()).findings if f.verdict == UNEXPLAINED)
    assert (f.layer, f.stage) == (0, stage) and "bias-missing" in {h.name for h in f.hypotheses}
