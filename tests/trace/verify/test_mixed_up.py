"""Weights of another layer, values of another prompt of the batch, frequencies in 16 bits beneath attention of which
only the result is there: mistakes that no stage tells by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import UNEXPLAINED, Finding, Verification
from qwenref.trace.verify.report.text import sentence
from qwenref.trace.verify.verify import verify

from ...engines import ENGINES, Mistake, Run, changed, dump_of, to_bfloat16
from ...plants import PLANTS, values
from ...tiny import tiny_weights
from ..sources.test_rows import W as BATCHED
from ..sources.test_rows import opened, padded, written
from .test_hooked import FAST, UNSEEN

W = tiny_weights(layers=4, formats="F16")
TOKENS = [17, 3, 99, 200, 4, 17, 250]
MOSTLY = ("HF bfloat16", pytest.param("HF float32", marks=pytest.mark.matrix))


def unexplained(v: Verification) -> list[Finding]:
    return [f for f in v.findings if f.verdict == UNEXPLAINED]


# -- layers -----------------------------------------------------------------------------------------------------------


def loaded(order: Sequence[int], *fields: str) -> Weights:
    """The model as a loader has it that takes layer n's weights, or these of them, from layer order[n]."""
    taken = (
        replace(own, **{name: getattr(W.layers[n], name) for name in fields}) if fields else W.layers[n]
        for own, n in zip(W.layers, order, strict=True)
    )
    return replace(W, layers=tuple(taken))


@pytest.mark.parametrize("engine", MOSTLY)
def test_a_layer_with_all_weights_of_another(engine: str) -> None:
    v = verify(dump_of(loaded([0, 3, 2, 3]), engine, TOKENS), W)
    assert {f.layer for f in unexplained(v)} == {1}
    assert "all by one mistake: the layer runs with all weights of layer 3" in sentence(v)
    assert all(f.hypotheses[0].name == "layer-weights" for f in unexplained(v))


@pytest.mark.matrix
def test_a_layer_of_which_only_input_and_output_are_there() -> None:
    dump = changed(
        dump_of(loaded([0, 2, 2, 3]), "HF float32", TOKENS),
        lambda e: e if e.stage.name in ("embedding", "post_ffn_residual") else None,
    )
    (f,) = unexplained(verify(dump, W))
    assert f.layer == 1 and f.hypotheses[0].sentence == "the layer runs with all weights of layer 2"


@pytest.mark.parametrize("engine", MOSTLY)
def test_one_matrix_of_the_layer_after_it_in_every_layer(engine: str) -> None:
    v = verify(dump_of(loaded([1, 2, 3, 3], "ffn_down"), engine, TOKENS), W)
    assert {(f.layer, f.stage) for f in unexplained(v)} == {(n, "ffn_out") for n in range(3)}
    assert "all by one mistake: each layer takes these weights of the layer after it" in sentence(v)
    told = [{h.sentence for h in f.hypotheses} for f in unexplained(v)]
    assert all(f"the weights are those of layer {n + 1}" in said for n, said in enumerate(told))


@pytest.mark.matrix
def test_two_layers_that_changed_places_are_said_to_be_each_other() -> None:
    v = verify(dump_of(loaded([0, 2, 1, 3]), "HF float32", TOKENS), W)
    said = {f.layer: f.hypotheses[0].sentence for f in unexplained(v) if f.hypotheses[0].name == "layer-weights"}
    assert said == {1: "the layer runs with all weights of layer 2", 2: "the layer runs with all weights of layer 1"}


@pytest.mark.matrix
def test_one_matrix_of_one_layer_is_no_whole_layer() -> None:
    v = verify(dump_of(loaded([0, 2, 2, 3], "ffn_down"), "HF float32", TOKENS), W)
    (f,) = unexplained(v)
    assert {h.name for h in f.hypotheses} == {"weight-other-layer"}


# -- batches ----------------------------------------------------------------------------------------------------------

PROMPTS = ([3, 200, 17, 9, 4, 81], [50, 51, 7, 8, 90, 17, 2])


def both(engine: str, stage: str, wrong: Any) -> Dump:
    """The first of two prompts; wrong: the other's run -> the mistake in the first's."""
    other = dump_of(W, engine, PROMPTS[1])
    first = dump_of(W, engine, PROMPTS[0], mistakes={(stage, 2): partial(wrong, other)})
    return replace(first, beside={1: lambda: other})


def swapped(stage: str, other: Dump, run: Run, x: np.ndarray) -> np.ndarray:
    return np.asarray(other[stage, 2])[-len(x) :]


def keys_of(other: Dump, run: Run, x: np.ndarray) -> np.ndarray:
    return run.kernels.attn_scores(run.get("q_post_rope"), np.asarray(other["k_post_rope", 2])[: len(x[0])], run.pos_T)


def values_of(other: Dump, run: Run, x: np.ndarray) -> np.ndarray:
    there = SimpleNamespace(config=W.config, all_so_far=lambda name: np.asarray(other[name, 2])[: len(x)])
    return run.kernels.attn_mix(run.get("attn_softmax"), values(there), run.pos_T)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", MOSTLY)
@pytest.mark.parametrize(
    ("stage", "wrong", "said"),
    [
        ("attn_out", partial(swapped, "attn_out"), "the values are those of row 1 of the batch"),
        ("attn_scores", keys_of, "the keys of row 1 of the batch stand in the cache"),
        ("attention", values_of, "the values of row 1 of the batch stand in the cache"),
    ],
)
def test_another_prompt_of_the_batch(engine: str, stage: str, wrong: Any, said: str) -> None:
    (f,) = unexplained(verify(both(engine, stage, wrong), W))
    assert (f.layer, f.stage) == (2, stage)
    assert said in {h.sentence for h in f.hypotheses}


def test_a_source_of_a_batch_has_the_others_beside(tmp_path: Path) -> None:
    arrays = padded(left=True)
    arrays["layer-1/ffn_gate"] = arrays["layer-1/ffn_gate"][[1, 0, 2]]
    (f,) = unexplained(verify(opened(written(tmp_path, arrays), row=1), BATCHED))
    assert (f.layer, f.stage) == (1, "ffn_gate")
    assert f.hypotheses[0].sentence == "the values are those of row 0 of the batch"


# -- frequencies ------------------------------------------------------------------------------------------------------

LONG = np.random.default_rng(5).integers(0, 259, 24).tolist()
ROPE = ("q_post_rope", "k_post_rope")
BIG = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=256, formats="F16")


def everywhere(id: str, layers: int = 2) -> dict[Any, Mistake]:
    return {(p.stage, n): p.make for p in PLANTS if p.id in {f"{id}-{s}" for s in ROPE} for n in range(layers)}


def hooked(dump: Dump) -> Dump:
    return changed(dump, lambda e: None if e.stage.name in UNSEEN else e)


@pytest.mark.parametrize("length", [24])
@pytest.mark.parametrize("engine", ["HF bfloat16"])
def test_frequencies_in_16_bits_are_no_contraction(engine: Any, length: int) -> None:
    """A model cast with its buffers: every layer turns by them, and no other arithmetic is to be blamed."""
    dump = dump_of(BIG, engine, LONG[:length], mistakes=everywhere("rope-frequencies-cast"))
    v = verify(hooked(dump), BIG)
    assert {(f.layer, f.stage) for f in unexplained(v)} == {(0, "attention"), (1, "attention")}
    assert "all by one mistake: RoPE's inverse frequencies are rounded to bfloat16, as the weights are" in sentence(v)
    assert "contracted" not in v.recipe.name


def contracted(x: np.ndarray, pos: np.ndarray, inv_freq: np.ndarray, magnitude: float = 1.0) -> np.ndarray:
    """Cosines and one product of each number in 16 bits, the other product fused with the sum."""
    angle = pos.astype(np.float32)[:, None] * inv_freq
    cos, sin = (to_bfloat16(f(angle))[:, None] for f in (np.cos, np.sin))
    a, b = np.split(x, 2, -1)
    return to_bfloat16(np.concatenate([a * cos - to_bfloat16(b * sin), b * cos + to_bfloat16(a * sin)], -1))


@pytest.mark.parametrize("length", [7, *(pytest.param(n, marks=pytest.mark.matrix) for n in (2, 24))])
@pytest.mark.parametrize("engine", ["eager", pytest.param("sdpa", marks=pytest.mark.matrix)])
def test_contracted_products_are_not_accused(engine: str, length: int) -> None:
    base = {"eager": ENGINES["HF bfloat16"], "sdpa": FAST}[engine]
    kernels = SimpleNamespace(**{**vars(base), "rope": contracted})
    assert not unexplained(verify(hooked(dump_of(BIG, kernels, LONG[:length])), BIG))
