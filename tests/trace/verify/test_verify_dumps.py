"""Dumps as they come: incomplete, without a manifest, of another model, of other tokens, broken. Always a clear
statement, never a pass by default."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwenref.errors import BadInput
from qwenref.trace.dump import Dump, Entry
from qwenref.trace.verify.finding import BUDGET, EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding, Verification
from qwenref.trace.verify.report.html import page
from qwenref.trace.verify.report.plain import as_json
from qwenref.trace.verify.report.terminal import text
from qwenref.trace.verify.report.text import reason, sentence
from qwenref.trace.verify.report.words import words
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dump_of, with_values
from ...tiny import tiny_weights

W = tiny_weights(layers=3, formats="Q8_0")
TOKENS = [17, 3, 99, 200, 4, 17, 250]


def healthy(engine: str = "HF float32", **more: object) -> Dump:
    return dump_of(W, engine, TOKENS, **more)  # type: ignore[arg-type]


def only(dump: Dump, test: Callable[[Entry], bool]) -> Dump:
    return changed(dump, lambda e: e if test(e) else None)


def notes(f: Finding) -> list[str]:
    return [words(n) for n in f.notes]


def at(v: Verification, stage: str, layer: int | None, phase: int = 0) -> Finding:
    return next(f for f in v.findings if f.key == (phase, layer, stage))


def good(v: Verification) -> bool:
    return {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}


STAGES = [
    "attn_norm", "qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention",
    "attn_out", "post_attn_residual", "ffn_norm", "ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out",
]  # fmt: skip


@pytest.mark.parametrize("engine", ["HF float32", "HF bfloat16", "ggml, 16-bit KV", "ggml, 32-bit KV"])
@pytest.mark.parametrize("missing", STAGES)
def test_a_missing_stage_is_recomputed_and_said(engine: str, missing: str) -> None:
    v = verify(only(healthy(engine, steps=[8]), lambda e: e.stage.name != missing), W)
    assert good(v), [(f.phase, f.layer, f.stage, f.verdict, f.worst) for f in v.findings if f.verdict == UNEXPLAINED]
    assert any(f"missing: {missing}" in n for f in v.findings for n in notes(f))


@pytest.mark.parametrize("engine", ["HF float32", "ggml, 16-bit KV"])
def test_only_the_residual_of_every_layer(engine: str) -> None:
    """A whole layer is recomputed from one file; the error bound grows with it, but a wrong layer would still show."""
    kept = ("embedding", "post_ffn_residual", "final_norm", "lm_head")
    dump = only(healthy(engine), lambda e: e.stage.name in kept)
    v = verify(dump, W)
    assert good(v)
    found = at(v, "post_ffn_residual", 1)
    assert found.predicted is not None
    assert found.predicted < 0.2
    assert "recomputed from post_ffn_residual of layer 0" in notes(found)[0]

    def wrong(e: Entry) -> Entry:
        return with_values(e, e.values() * 1.5) if e.key == (0, 1, "post_ffn_residual") else e

    worse = verify(changed(dump, wrong), W)
    assert at(worse, "post_ffn_residual", 1).verdict == UNEXPLAINED


def test_a_layer_is_missing() -> None:
    """The next layer's input has to be recomputed through the whole missing layer."""
    v = verify(only(healthy(), lambda e: e.layer != 1), W)
    assert good(v)
    assert "post_ffn_residual of layer 1" in notes(at(v, "attn_norm", 2))[0]


def test_two_layers_are_missing() -> None:
    w = tiny_weights(layers=4, formats="Q8_0")
    v = verify(only(dump_of(w, "HF float32", TOKENS), lambda e: e.layer not in (1, 2)), w)
    lost = at(v, "attn_norm", 3)
    assert lost.verdict == UNJUDGED
    assert "too much is missing" in reason(lost)
    assert at(v, "ffn_norm", 3).verdict in (EXACT, REPRODUCED)
    assert v.status == 0


def test_only_the_logits() -> None:
    w = tiny_weights(layers=6, formats="Q8_0")
    v = verify(only(dump_of(w, "HF float32", TOKENS), lambda e: e.stage.name == "lm_head"), w)
    (f,) = v.findings
    assert f.verdict == UNJUDGED
    assert "too much is missing" in reason(f)
    assert v.status == 2
    assert sentence(v).startswith("Nothing could be judged: lm_head: too much is missing")


def test_without_a_manifest_the_tokens_are_recovered() -> None:
    v = verify(healthy(manifest=False, steps=[8, 9]), W)
    assert good(v)
    assert v.tokens == (*TOKENS, 8, 9)
    assert "embedding rows" in words(v.remarks[0])


def test_bfloat16_rows_are_recognised_too() -> None:
    assert verify(healthy("HF bfloat16", manifest=False), W).tokens == tuple(TOKENS)


def test_without_manifest_and_embedding_the_rest_is_judged() -> None:
    v = verify(only(healthy(manifest=False), lambda e: e.stage.name != "embedding"), W)
    assert v.tokens is None
    assert "no token ids" in words(v.remarks[0])
    assert at(v, "attn_norm", 0).verdict == UNJUDGED
    assert "no token ids are known" in reason(at(v, "attn_norm", 0))
    assert at(v, "attn_norm", 1).verdict in (EXACT, REPRODUCED)


def test_another_model_of_the_same_shape() -> None:
    other = tiny_weights(layers=3, formats="Q8_0", seed=5)
    v = verify(healthy(), other)
    assert v.status == 1
    assert sentence(v).startswith("The embedding already differs: this dump is of another model, or of other tokens.")
    assert at(v, "qkv_matmul", 1).verdict == UNEXPLAINED
    assert at(v, "post_attn_residual", 1).verdict == EXACT  # what knows no weights is right


def test_other_tokens_than_the_manifest_says() -> None:
    dump = replace(healthy(), run={"tokens": [1, 2, 3, 4, 5, 6, 7]})
    v = verify(dump, W)
    said = (
        "The embedding already differs, the products do not: other tokens were run (17 3 99 200 4 17 250). One stage "
    )
    assert sentence(v).startswith(said)
    assert [f.stage for f in v.findings if f.verdict == UNEXPLAINED] == ["embedding"]


def test_another_shape_is_refused() -> None:
    with pytest.raises(BadInput, match="a dump of another model: D 64 for 32"):
        verify(healthy(), tiny_weights(layers=3, hidden=32, formats="Q8_0"))
    with pytest.raises(BadInput, match="has layer 2; the model has layers 0 to 1"):
        verify(healthy(), tiny_weights(layers=2, formats="Q8_0"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    """One NaN spreads; the stage it came from is unexplained, those it spread to are not judged, the others are."""

    def spoil(run: object, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[3, 5] = value
        return x

    with np.errstate(all="ignore"):
        v = verify(healthy(mistakes={("ffn_up", 1): spoil}), W)
    bad = [f for f in v.findings if f.verdict == UNEXPLAINED]
    assert [(f.layer, f.stage) for f in bad] == [(1, "ffn_up")]
    assert bad[0].where.worst == {"position": 3, "channel": 5}
    assert sentence(v).startswith("Values that are NaN or infinite first appear in ffn_up of layer 1.")
    assert at(v, "ffn_swigl", 1).verdict == UNJUDGED
    assert "as its inputs are" in reason(at(v, "ffn_swigl", 1))
    assert at(v, "ffn_gate", 1).verdict in (EXACT, REPRODUCED)
    assert v.status == 1


def test_a_capture_point_that_the_manifest_declares_elsewhere() -> None:
    def relabel(e: Entry) -> Entry:
        return replace(e, capture={**e.stage.capture, "bias": "after"}) if e.key == (0, 1, "qkv_matmul") else e

    v = verify(changed(healthy(), relabel), W)
    assert at(v, "qkv_matmul", 1).verdict == UNJUDGED
    assert "bias: after" in reason(at(v, "qkv_matmul", 1))
    assert at(v, "qkv_bias", 1).verdict in (EXACT, REPRODUCED)


def test_a_step_without_its_prompt() -> None:
    """Keys and values of earlier positions are not in the dump: attention cannot be judged, all else is."""
    v = verify(only(healthy(steps=[8]), lambda e: e.phase == 1), W)
    assert {f.stage for f in v.findings if f.verdict == UNJUDGED} == {"attn_scores", "attention"}
    assert "the keys of positions 0 to 6 are not in the dump" in reason(at(v, "attn_scores", 1, 1))
    assert v.status == 0


def test_only_some_positions() -> None:
    def last_three(e: Entry) -> Entry:
        if "T" not in e.stage.letters:
            return e
        axis = e.stage.letters.index("T")
        return replace(with_values(e, np.take(e.values(), [4, 5, 6], axis)), positions=(4, 5, 6))

    v = verify(changed(healthy(), last_three), W)
    assert {f.stage for f in v.findings if f.verdict == UNJUDGED} == {"attn_scores", "attention"}
    assert v.status == 0


def test_a_last_layer_that_computes_only_the_output_row() -> None:
    """llama.cpp's habit, unless all logits are asked for; here without a manifest's positions."""
    late = [*STAGES[STAGES.index("attn_out") :], "post_ffn_residual"]

    def cut(e: Entry) -> Entry:
        last = (e.layer == 2 and e.stage.name in late) or e.stage.name == "final_norm"
        return with_values(e, e.values()[-1:]) if last else e

    v = verify(changed(healthy(manifest=False), cut), W)
    assert good(v)
    assert v.tokens == tuple(TOKENS)


@pytest.mark.parametrize("above", ["raw product", np.nan, -np.inf, -65504.0, -1e4, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("engine", ["HF float32", "HF bfloat16", "ggml, 16-bit KV"])
def test_what_stands_above_the_diagonal_of_scores_is_the_sources_own(engine: str, above: str | float) -> None:
    """Before the mask, as a hook sees them, or after it, with whatever the engine masks with; a manifest may say so."""

    def shown(run: Run, x: np.ndarray) -> np.ndarray:
        everything = np.full(len(run.pos), x.shape[2] - 1, np.int32)
        scores = run.kernels.attn_scores(run.get("q_post_rope"), run.all_so_far("k_post_rope"), everything)
        masked = scores if above == "raw product" else np.float32(above)
        return np.where(np.arange(x.shape[2]) > run.pos_T[:, None], masked, x)

    def said(e: Entry) -> Entry:
        capture = {**e.stage.capture, "mask": "after", "above_diagonal": str(above)}
        return replace(e, capture=capture) if e.stage.name == "attn_scores" else e

    everywhere: Any = {("attn_scores", layer): shown for layer in range(3)}
    dump = changed(healthy(engine, steps=[8], mistakes=everywhere), said)
    assert not np.array_equal(stored(dump), stored(healthy(engine)))
    assert good(verify(dump, W))

    def spoilt(e: Entry) -> Entry:
        if e.key != (0, 1, "attn_scores"):
            return e
        values = e.values().copy()
        values[1, 3, 3] += 1
        return with_values(e, values)

    v = verify(changed(dump, spoilt), W)
    assert [f.key for f in v.findings if f.verdict == UNEXPLAINED] == [(0, 1, "attn_scores")]


def stored(dump: Dump) -> np.ndarray:
    e = dump.get("attn_scores", 1)
    assert e is not None
    return e.values()


def test_the_flip_of_a_token_is_measured_in_noise() -> None:
    v = verify(healthy("ggml, 16-bit KV"), W)
    (note,) = notes(at(v, "lm_head", None))
    assert "as float64 has it from the same input" in note
    assert "times the logits' noise" in note


def test_a_second_model_explains() -> None:
    """The engine ran other weights than the user thinks: every product is explained by them, and said to be."""
    other = tiny_weights(layers=3, formats="Q4_0")
    v = verify(dump_of(other, "HF float32", TOKENS), W, against=other)
    assert {f.verdict for f in v.findings} == {EXACT, REPRODUCED, BUDGET}
    assert {f.budget.source for f in v.findings if f.verdict == BUDGET} == {"the weights of the second model, exactly"}
    assert v.status == 0
    assert "only within a noise budget" in sentence(v)


def test_a_quantiser_that_no_recipe_has() -> None:
    """Activations in 8 bits, a float32 step of a 126th for each 32: a budget explains all products, or none. (With a
    127th they are CUDA's tiles.)"""
    from types import SimpleNamespace

    from ...engines import ENGINES, dot

    def linear(x: np.ndarray, m: object) -> np.ndarray:
        blocks = x.reshape(-1, 32)
        d = np.abs(blocks).max(1, keepdims=True) / np.float32(126)
        x8 = (np.rint(blocks / d) * d).reshape(x.shape)
        return np.concatenate([dot(x8, w) for w in m.slabs()], 1)  # type: ignore[attr-defined]

    w = tiny_weights(layers=3, hidden=128, mlp=192, formats="Q8_0")
    coarse = SimpleNamespace(**{**vars(ENGINES["HF float32"]), "linear": linear})
    v = verify(dump_of(w, coarse, list(range(20))), w)
    weak = [f for f in v.findings if f.verdict == BUDGET]
    assert {f.stage for f in weak} == {"qkv_matmul", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "lm_head"}
    assert all(f.budget.source == "8-bit activations, blocks of 32" for f in weak)
    assert all(0.8 < f.budget.ratio < 1.25 for f in weak)
    assert v.status == 0

    def one(run: object, x: np.ndarray) -> np.ndarray:
        h = run.get("ffn_norm")  # type: ignore[attr-defined]
        return linear(h, run.weights.layers[1].gate_up)[:, : x.shape[1]]  # type: ignore[attr-defined]

    alone = verify(dump_of(w, "HF float32", list(range(20)), mistakes={("ffn_gate", 1): one}), w)
    assert [(f.layer, f.stage) for f in alone.findings if f.verdict == UNEXPLAINED] == [(1, "ffn_gate")]


# -- every subset of a dump ------------------------------------------------------------------------------------------

FOREIGN = ("HF float32", "ggml, 16-bit KV")
CORRUPTED: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "scaled": lambda x, rng: x * np.float32(1.25),
    "negated": lambda x, rng: -x,
    "zeros": lambda x, rng: 0 * x,
    "noisy": lambda x, rng: x + np.float32(0.1) * rng.standard_normal(x.shape).astype(np.float32),
    "random": lambda x, rng: rng.standard_normal(x.shape).astype(np.float32),
    "rolled": lambda x, rng: np.roll(x, 1),
    "a NaN": lambda x, rng: np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, np.float32(np.nan), x),
    "infinite": lambda x, rng: np.full_like(x, np.inf),
    "huge": lambda x, rng: np.clip(x, -1, 1) * np.float32(3e38),
}


def subset(dump: Dump, rng: np.random.Generator) -> Dump:
    """Some stages of some layers, or files by chance."""
    if rng.random() < 0.5:
        names = set(rng.choice(sorted({e.stage.name for e in dump.entries}), rng.integers(1, 5), replace=False))
        layers = {None if n == 3 else n for n in rng.choice(4, rng.integers(1, 5), replace=False)}
        return only(dump, lambda e: e.stage.name in names and e.layer in layers)
    part = rng.choice([0.03, 0.1, 0.3, 0.7, 0.95])
    return only(dump, lambda e: rng.random() < part)


def judged(dump: Dump) -> Verification:
    """A verdict or a reason for every file, and every report can be written."""
    v = verify(dump, W)
    assert len(v.findings) == len(dump.entries)
    assert all(f.reason for f in v.findings if f.verdict == UNJUDGED)
    json.dumps(as_json(v), allow_nan=False)
    assert text(v) and page(v, "dump", "model")
    return v


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("engine", FOREIGN)
def test_each_stage_alone_and_any_subset_of_a_healthy_dump(engine: str, manifest: bool) -> None:
    dump = healthy(engine, steps=[5, 7], manifest=manifest)
    names = sorted({e.stage.name for e in dump.entries})
    rng = np.random.default_rng(FOREIGN.index(engine))
    groups = [{name} for name in names] + [set(rng.choice(names, 2)) for _ in range(4)]
    cases = [only(dump, lambda e, names=group: e.stage.name in names) for group in groups]  # type: ignore[misc]
    cases += [subset(dump, rng) for _ in range(4)]
    for case in cases:
        wrong = [f.key for f in judged(case).findings if f.verdict == UNEXPLAINED]
        assert not wrong, (wrong, [e.key for e in case.entries])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("kind", CORRUPTED)
def test_one_wrong_file_in_any_subset(kind: str, manifest: bool) -> None:
    """Whatever is there and whatever is wrong with it: findings, no traceback, no warning of NumPy's."""
    dump = healthy(steps=[5, 7], manifest=manifest)
    rng = np.random.default_rng(list(CORRUPTED).index(kind))
    while not (case := subset(dump, rng)).entries:
        pass
    bad = case.entries[rng.integers(len(case.entries))].key
    judged(changed(case, lambda e: with_values(e, CORRUPTED[kind](e.values(), rng)) if e.key == bad else e))


def test_probabilities_of_more_keys_than_the_last_position_has() -> None:
    """The residual before, the soft-max, and logits that are wrong: one position of the soft-max is looked at, too."""
    kept = {(0, 1, "post_ffn_residual"), (0, 2, "attn_softmax"), (0, None, "lm_head")}
    for manifest in (True, False):
        dump = only(healthy(manifest=manifest), lambda e: e.key in kept)
        v = judged(changed(dump, lambda e: with_values(e, -e.values()) if e.stage.name == "lm_head" else e))
        assert at(v, "lm_head", None).verdict == UNEXPLAINED
        assert "factor" in {h.name for h in at(v, "lm_head", None).hypotheses}
        assert at(v, "attn_softmax", 2).verdict in (EXACT, REPRODUCED)
