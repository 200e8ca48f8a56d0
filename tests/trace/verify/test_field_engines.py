"""Engines of the field that no CPU here runs, emulated in NumPy from what their sources do (tests/field.py).

Every stage of a healthy one is explained and its facts are said; a mistake in it is found where it is, and nothing else
is accused. tests/oracle holds the same facts to engines that can be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.verify import verify

from ...engines import Run, f32
from ...field import FIELD, Engine
from ...scored import Score, healthy
from ...thinned import always, thinned
from ...tiny import tiny_weights

A = np.ndarray
LAYERS = 3


@cache
def weights() -> Weights:
    return tiny_weights(layers=LAYERS, hidden=256, head_dim=32, heads=8, mlp=384, formats="Q8_0")


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 259, length).tolist()


HEALTHY = [(engine, length) for engine in FIELD for length in (2, 7, 60)]


@pytest.mark.parametrize(("engine", "length"), thinned(HEALTHY, lambda t: f"{t[0].name}-{t[1]}", 4))
def test_healthy(engine: Engine, length: int, score: Score) -> None:
    v = verify(engine.dump(weights(), prompt(length)), weights())
    healthy(v, "engines of the field", engine.name, score)
    if length > 2:
        assert all(any(words in said for said in v.recipe.name.split("; ")) for words in engine.said), v.recipe.name


@pytest.mark.parametrize("name", ["vLLM, compiled", "SGLang"])
def test_what_no_number_shows_is_not_said(name: str) -> None:
    """A file of bfloat16, whose rows are the same in a 32-bit embedding, and an exponential that every exact one
    explains: neither is said. The head of SGLang, which is float32, is, and not of all products."""
    w = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=384, formats="BF16")
    engine = next(e for e in FIELD if e.name == name)
    said = verify(engine.dump(w, prompt(12)), w).recipe.name.split("; ")
    assert not any("embedding" in words or "fast" in words or "weights" in words for words in said), said
    assert "flash attention with probabilities in bfloat16" in said
    assert [words for words in said if "float32" in words and "RoPE" not in words] == (
        ["output head in float32"] if "lm_head" in engine.instead else []
    )


# Each: where, and what is made of the right value.
Wrong = Callable[[Run, A], A]


def other_bias(run: Run, x: A) -> A:
    """The bias of another layer."""
    own, other = (run.weights.layers[n % LAYERS].qkv_bias_E for n in (run.at or 0, (run.at or 0) + 1))
    return x + (other - own)


def louder_head(run: Run, x: A) -> A:
    y = x.copy()
    y[:, 2] *= f32(1.25)
    return y


def column_lost(run: Run, x: A) -> A:
    y = x.copy()
    y[:, 77] = 0
    return y


def one_row_late(run: Run, x: A) -> A:
    return np.roll(x, 1, 0)


def block_twice(run: Run, x: A) -> A:
    return x + run.get("attn_out")


def gain_of_another(run: Run, x: A) -> A:
    own, other = (run.weights.layers[n % LAYERS].ffn_norm_D for n in (run.at or 0, (run.at or 0) + 1))
    return x / own * other


def token_off(run: Run, x: A) -> A:
    y = x.copy()
    y[3] *= f32(0.5)
    return y


MISTAKES: dict[str, tuple[str, Wrong]] = {
    "the bias of another layer": ("qkv_bias", other_bias),
    "keys one position late": ("k_post_rope", one_row_late),
    "one head is louder": ("attention", louder_head),
    "one column is lost": ("ffn_swigl", column_lost),
    "one row of a matrix is lost": ("ffn_gate", column_lost),
    "one token's output is halved": ("ffn_out", token_off),
    "attention is added twice": ("post_attn_residual", block_twice),
    "the gain of another layer": ("ffn_norm", gain_of_another),
}


TURNS = [(e, m, (i + j) % LAYERS) for i, e in enumerate(FIELD) for j, m in enumerate(MISTAKES)]
PLANTED = thinned(TURNS, lambda t: f"{t[0].name}-{t[1]}-{t[2]}", 7)


def test_every_engine_and_every_mistake_has_turns_that_run_always() -> None:
    had = always(PLANTED)
    assert {e.name for e, _, _ in had} == {e.name for e in FIELD}
    assert {(m, layer) for _, m, layer in had} == {(m, layer) for m in MISTAKES for layer in range(LAYERS)}


@pytest.mark.parametrize(("engine", "mistake", "layer"), PLANTED)
def test_a_mistake_is_found(engine: Engine, mistake: str, layer: int, score: Score) -> None:
    """The layers in turn: the first, the middle and the last."""
    stage, wrong = MISTAKES[mistake]

    def stored(run: Run, x: A) -> A:
        return engine.rounded(wrong(run, x))

    v = verify(engine.dump(weights(), prompt(20), mistakes={(stage, layer): stored}), weights())
    found = {(f.layer, f.stage) for f in v.findings if f.verdict not in (EXACT, REPRODUCED)}
    score(
        "mistakes in engines of the field", engine.name, planted=1, found=int((layer, stage) in found),
        accused_beside=len(found - {(layer, stage)}),
    )  # fmt: skip
    assert found == {(layer, stage)}, v.recipe.name
    assert v.status == 1
