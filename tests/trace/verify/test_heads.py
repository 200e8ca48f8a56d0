"""Logits that are not those of their position, beside the final norm: of another position, of another run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwenref.trace.dump import Dump, Entry
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import changed, dump_of, with_values
from ...tiny import tiny_weights

W = tiny_weights(layers=2, formats="Q8_0")
DRAWN = np.random.default_rng(1).integers(0, 259, 60).tolist()
TOKENS, OTHERS = DRAWN[:9], DRAWN[20:29]
ENGINES = ["HF float32", "HF bfloat16", "ggml, 16-bit KV"]
PAIR = ("final_norm", "lm_head")


def logits(dump: Dump, phase: int = 0) -> np.ndarray:
    e = dump.get("lm_head", None, phase)
    assert e is not None
    return e.values()


def said(dump: Dump, values: np.ndarray, phase: int = 0, stages: tuple[str, ...] = ()) -> list[str]:
    """Of a dump with these logits, of these stages alone: nothing else is wrong; what the mistakes are called."""

    def kept(e: Entry) -> Entry | None:
        if stages and e.stage.name not in stages:
            return None
        return with_values(e, values) if e.key == (phase, None, "lm_head") else e

    (f,) = (f for f in verify(changed(dump, kept), W).findings if f.verdict == UNEXPLAINED)
    assert f.key == (phase, None, "lm_head")
    return [h.sentence for h in f.hypotheses]


FEW = [("HF bfloat16", PAIR), pytest.param("HF bfloat16", (), marks=pytest.mark.matrix)]
MORE = [pytest.param(engine, PAIR, marks=pytest.mark.matrix) for engine in ENGINES if engine != "HF bfloat16"]


@pytest.mark.parametrize(("engine", "stages"), [*FEW, *MORE])
def test_logits_of_another_position(engine: str, stages: tuple[str, ...]) -> None:
    """Rolled by one either way, at the end of the prompt and in a step; and of the first position of a longer one."""
    dump = dump_of(W, engine, TOKENS, steps=[5, 6])
    before = logits(dump_of(W, engine, TOKENS[:-1]))
    assert said(dump, before, 0, stages)[0] == "the logits of position 8 hold those of position 7"
    assert said(dump, logits(dump, 1), 0, stages)[0] == "the logits of position 8 hold those of position 9"
    assert said(dump, logits(dump, 0), 2, stages)[0] == "the logits of position 10 hold those of position 8"


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_of_the_first_position_where_nothing_else_can_be_judged(engine: str) -> None:
    """So that nothing tells what activations become before a product."""
    first = logits(dump_of(W, engine, DRAWN[:1]))
    assert said(dump_of(W, engine, DRAWN), first, 0, PAIR) == ["the logits of position 59 hold those of position 0"]


@pytest.mark.parametrize(("engine", "stages"), [*FEW, *MORE])
def test_logits_of_another_run(engine: str, stages: tuple[str, ...]) -> None:
    others = logits(dump_of(W, engine, OTHERS))
    (sentence,) = said(dump_of(W, engine, TOKENS), others, 0, stages)
    assert sentence == "the logits are of another run: this head made them, of no position of these tokens"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_final_norm_of_the_last_position_alone_tells_no_position(engine: str) -> None:
    def last(e: Entry) -> Entry:
        if e.stage.name != "final_norm":
            return e
        return replace(with_values(e, e.values()[-1:]), positions=(len(TOKENS) - 1,))

    before = logits(dump_of(W, engine, TOKENS[:-1]))
    (sentence,) = said(changed(dump_of(W, engine, TOKENS), last), before, 0, PAIR)
    assert sentence == (
        "the logits are of another position, or of another run: this head made them, of no position that the dump has"
    )


@pytest.mark.parametrize("engine", ["HF float32", *(pytest.param(e, marks=pytest.mark.matrix) for e in ENGINES[1:])])
def test_what_the_head_did_not_make_of_a_normalised_state_is_of_no_run(engine: str) -> None:
    """Another model's logits; logits of another temperature; a state that was not normalised."""
    dump = dump_of(W, engine, TOKENS)
    other = logits(dump_of(tiny_weights(layers=2, formats="Q8_0", seed=4), engine, TOKENS))
    assert "the output head is unset, or another model's: its logits have nothing to do with" in said(dump, other)[0]
    assert not any("run" in sentence for sentence in said(dump, logits(dump) * np.float32(0.5)))
    loud = logits(dump_of(W, engine, OTHERS)) * np.float32(4)
    assert [s for s in said(dump, loud) if "RMS 4" in s and "before its gain, not 1" in s]
    noisy = logits(dump_of(W, engine, OTHERS)) + np.float32(0.02) * np.random.default_rng(2).standard_normal(259)
    assert not any("head made them" in sentence for sentence in said(dump, noisy.astype(np.float32)))
