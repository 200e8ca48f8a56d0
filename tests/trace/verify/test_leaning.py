"""What leaves much open excuses no error that has a side: zero points off by one in engines of halves, and engines that
do keep their sums in halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.recipes.matrix import matrix_of
from qwenref.trace.verify.verify import verify

from ...cases import CASES
from ...engines import Run, dump_of, f32
from ...field import FIELD, Engine, half_sums
from ...plants import half_of, layer, one_step_more
from ...tiny import tiny_weights

A = np.ndarray
LAYERS = 3
HALF = next(e for e in FIELD if e.name == "TensorRT-LLM, half sums")


@cache
def weights() -> Weights:
    return tiny_weights(layers=LAYERS, hidden=256, head_dim=32, heads=8, mlp=384, formats="Q8_0")


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 259, length).tolist()


def gate_of(engine: Engine | None, run: Run, y: A) -> A:
    """The gate by matrices whose zero points are off by one, in the engine's own sums."""
    wrong = one_step_more(half_of(run, 0))
    return (
        run.kernels.linear(run.get("ffn_norm"), wrong)
        if engine is None
        else engine.rounded(engine.product(run.get("ffn_norm"), wrong))
    )


@pytest.mark.parametrize(("length", "layers"), [(2, (0, 1, 2)), (12, (0, 1, 2)), (12, (1,))])
def test_zero_points_are_not_taken_for_sums_in_halves(length: int, layers: tuple[int, ...]) -> None:
    wrong = {("ffn_gate", i): partial(gate_of, None) for i in layers}
    v = verify(dump_of(weights(), "HF float16", prompt(length), mistakes=wrong), weights())
    found = {f.key: f for f in v.findings if f.verdict == UNEXPLAINED}
    assert set(found) == {(0, i, "ffn_gate") for i in layers}
    assert all("zero points (or minima) are off by one" in f.hypotheses[0].sentence for f in found.values())
    assert "sums kept" not in v.recipe.name


def test_zero_points_show_beside_sums_in_halves() -> None:
    """The noise of such sums is as large as the error in one element, and still has no side."""
    layers = (0, 2)
    wrong = {("ffn_gate", i): partial(gate_of, HALF) for i in layers}
    v = verify(HALF.dump(weights(), prompt(12), mistakes=wrong), weights())
    found = {f.key: f for f in v.findings if f.verdict == UNEXPLAINED}
    assert set(found) == {(0, i, "ffn_gate") for i in layers}
    assert all("zero points (or minima) are off by one" in f.hypotheses[0].sentence for f in found.values())
    assert "sums kept in float16" in v.recipe.name


def test_zero_points_of_a_whole_model_are_no_noise() -> None:
    """A third of a step in every product is as large as 8-bit activations make it."""
    inputs: dict[str, tuple[str, Callable[[Run], A]]] = {
        "qkv_matmul": ("attn_norm", lambda run: layer(run).qkv),
        "attn_out": ("attention", lambda run: layer(run).attn_out),
        "ffn_gate": ("ffn_norm", lambda run: half_of(run, 0)),
        "ffn_up": ("ffn_norm", lambda run: half_of(run, 1)),
        "ffn_out": ("ffn_swigl", lambda run: layer(run).ffn_down),
    }

    def wrong(stage: str, run: Run, y: A) -> A:
        name, matrix = inputs[stage]
        return run.kernels.linear(run.get(name).reshape(len(y), -1), one_step_more(matrix(run), 1 / 3))

    spots = {(stage, i) for stage in inputs for i in range(LAYERS)}
    dump = dump_of(weights(), "HF float32", prompt(12), mistakes={(s, i): partial(wrong, s) for s, i in spots})
    v = verify(dump, weights())
    assert {(f.stage, f.layer) for f in v.findings if f.verdict == UNEXPLAINED} == spots


@pytest.mark.parametrize("formats", ["Q8_0", "Q4_0", "F16"])
def test_sums_that_are_kept_in_halves_pass(formats: str) -> None:
    """Each term of a sum rounded to a half, the most that such sums can be off."""
    w = tiny_weights(layers=2, hidden=256, head_dim=32, heads=8, mlp=384, formats=formats)
    engine = Engine("halves", "HF float16", (), dots=partial(half_sums, block=1), instead=HALF.instead)
    v = verify(engine.dump(w, prompt(9)), w)
    assert not [f.key for f in v.findings if not f.explained]
    assert "sums kept in float16" in v.recipe.name


@pytest.mark.parametrize(
    ("formats", "even"), [("Q8_0", True), ("Q4_0", True), ("Q4_K", True), ("F16", False), ("Q6_K", False)]
)
def test_a_step_is_what_a_code_more_decodes_to(formats: str, even: bool) -> None:
    """By rewriting a code of the file: the first of the matrix, in its lowest bits."""
    m = matrix_of(tiny_weights(layers=1, hidden=256, head_dim=32, heads=8, mlp=512, formats=formats).layers[0].ffn_down)
    step = m.steps(0, 2)
    if not even:
        assert step is None
        return

    def coded(last: int, b: A) -> A:
        (field,) = m.facts.codes
        b[field][0, 0, 0] = b[field][0, 0, 0] >> 2 << 2 | last
        return b

    assert step is not None
    high, low = (m.rebuilt(partial(coded, last), 0, 1).rows(0, 1) for last in (2, 1))
    more = high - low
    assert np.isclose(more[0, 0], step[0, 0], rtol=1e-3, atol=0)
    assert not more[0, 1:16].any()
    assert f32(step[0, 0]) != 0


@pytest.mark.parametrize("number", [48])
def test_a_span_as_wide_as_the_values_explains_nothing(number: int) -> None:
    """Wrong rows in the cache of a bfloat16 engine. A rotated IQ4_NL cache, whose scale hangs on which value of a block
    is the largest, would allow 4.7 times the values of attention."""
    case = next(c for c in CASES if c.number == number)
    assert case.make is not None
    v = verify(*case.make())
    wrong = {(1, i, stage) for i in range(LAYERS) for stage in ("attn_scores", "attention")}
    assert {f.key for f in v.findings if f.verdict == UNEXPLAINED} == wrong
    assert "iq4_nl" not in v.recipe.name
