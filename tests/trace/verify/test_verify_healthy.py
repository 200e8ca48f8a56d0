"""No false alarms: healthy engines, every stage of every layer, from 1 to 60 positions and in decode steps, is
explained; by the recipe of that engine, down to rounding, and never by a budget."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.report.text import engine_words
from qwenref.trace.verify.verify import verify

from ...engines import ENGINES, changed, dump_of
from ...scored import Score, healthy
from ...thinned import thinned
from ...tiny import tiny_weights

RECIPE = {
    "cpu f32": "float32",
    "cpu int8": "ggml int8, 32-bit KV",
    "cpu int16": "int16",
    "reference f32": "float32",
    "reference f64": "float32",
    "plain float32": "float32",
    "HF float32": "float32",
    "HF float16": "HF float16",
    "HF bfloat16": "HF bfloat16",
    "ggml, 16-bit KV": "ggml int8, 16-bit KV",
    "ggml, 32-bit KV": "ggml int8, 32-bit KV",
}
FORMATS = ("Q4_K", "Q5_0", "Q4_1", "Q2_K", "Q6_K", "Q8_0", "F32", "Q5_1", "Q3_K")


@cache
def weights(formats: str) -> Weights:
    return tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=512, formats=formats)


LENGTHS = [(engine, length) for engine in RECIPE for length in (1, 2, 7, 19, 33, 60)]


@pytest.mark.parametrize(("engine", "length"), thinned(LENGTHS, lambda t: f"{t[0]}-{t[1]}", 5))
def test_all_reproduced(engine: str, length: int, score: Score) -> None:
    formats = FORMATS[(list(RECIPE).index(engine) + length) % len(FORMATS)]
    tokens = np.random.default_rng(length).integers(0, 259, length).tolist()
    v = verify(dump_of(weights(formats), engine, tokens, steps=[5, 6]), weights(formats))
    healthy(v, "healthy simulated engines", engine, score)
    assert len(v.findings) == 3 * (1 + 17 * 2 + 2)
    unrounded = formats == "F32" and RECIPE[engine] in ("ggml int8, 32-bit KV", "int16")
    expected = "float32" if unrounded else RECIPE[engine]
    # Of ggml's quantisers, which differ in ties only, any may be the one that the data tell.
    assert {f.recipe.split(" (")[0] for f in v.findings if f.recipe} == {expected}
    assert v.status == 0


def test_the_table_of_engines_is_covered() -> None:
    assert set(RECIPE) == set(ENGINES)


def test_the_angle_is_told_apart_at_long_positions() -> None:
    """At 60 positions, ggml's repeated multiplication is further from the float32 product than rounding."""
    tokens = np.random.default_rng(60).integers(0, 259, 60).tolist()
    for engine, angle in (("HF float32", "product"), ("ggml, 32-bit KV", "repeated")):
        v = verify(dump_of(weights("Q5_0"), engine, tokens), weights("Q5_0"))
        assert (v.recipe.angle, v.turned) == (angle, True)


def test_an_engine_that_mixes_recipes_by_weight_format() -> None:
    """aprender multiplies Q4_K by 8-bit activations and other formats by float32: Q and K by one recipe, V by the
    other."""
    from types import SimpleNamespace

    from qwenref.engine.kernels import reference

    roles = {"embed": "Q8_0", "q": "Q4_K", "k": "Q4_K", "v": "Q6_K", "attn_out": "Q4_K", "ffn_gate": "Q4_K",
             "ffn_up": "Q4_K", "ffn_down": "Q6_K", "lm_head": "Q6_K"}  # fmt: skip
    w = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=512, formats=roles)
    ggml, hf = ENGINES["ggml, 32-bit KV"], ENGINES["HF float32"]

    def linear(x: np.ndarray, m: reference.Matrix) -> np.ndarray:
        one = [(ggml if q.format == "Q4_K" else hf).linear(x, reference.Matrix((q,), np.float32)) for q in m.parts]
        return np.concatenate(one, 1)

    mixed = SimpleNamespace(**{**vars(hf), "linear": linear})
    v = verify(dump_of(w, mixed, [1, 2, 3, 4, 5]), w)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}
    by_stage = {f.stage: f.recipe for f in v.findings if f.layer == 1}
    assert by_stage["qkv_matmul"] == "ggml int8, 32-bit KV for Q4_K, float32 for Q6_K"
    assert by_stage["ffn_out"] == "float32"
    assert by_stage["ffn_up"] == "ggml int8, 32-bit KV"


@pytest.mark.parametrize("held", ["16-bit", "32-bit"])
@pytest.mark.parametrize("stages", [("final_norm", "lm_head"), ("ffn_norm", "ffn_gate", "ffn_up"), ("embedding",)])
def test_a_dump_without_attention_says_nothing_of_a_cache(held: str, stages: tuple[str, ...]) -> None:
    """Its products show 8-bit activations, of which ggml has an engine with either cache."""
    w = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=256, formats="Q8_0")
    whole = dump_of(w, f"ggml, {held} KV", [3, 99, 200, 17, 45])
    v = verify(changed(whole, lambda e: e if e.stage.name in stages else None), w)
    assert v.status == 0
    said = engine_words(v)
    assert not any(word in said for word in ("KV", "keys", "flash")), said
    assert ("8 bits" in said) == (len(stages) > 1)
    assert f"{held} KV" in engine_words(verify(whole, w))
