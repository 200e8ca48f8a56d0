"""What plain hooks leave of attention: Q, K and V, and the result. A mistake inside is found there, in the result, and
named as it would be where the engine's dump has every stage; nothing else is accused.

The mistakes are those of tests/plants.py. One that turns Q and K alike is planted in both, as one table turns both.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import UNEXPLAINED, Finding
from qwenref.trace.verify.verify import verify

from ...engines import ENGINES, Mistake, Run, changed, dot, dump_of, f32, to_bfloat16
from ...plants import PLANTS, Plant, everywhere, free_softmax
from ...plants import values as heads_of_values
from ...thinned import always, thinned
from ...tiny import tiny_weights
from .test_hypotheses import TOKENS, weights

A = np.ndarray
ROPE = ("q_post_rope", "k_post_rope")
WITHIN = ("attn_scores", "attn_softmax")
UNSEEN = (*ROPE, *WITHIN, "ffn_silu")

# All positions off by one: attention knows differences alone.
INVISIBLE = ("rope-position-q_post_rope",)
# Other roundings than the plant's: of a product that Linear never stored, of heads normalised twice.
ROUNDED_OTHERWISE = ("rope-before-bias-q_post_rope", "rope-then-bias-q_post_rope", "rope-before-norm-q_post_rope")
# The same result by another name: a step at position 0 is not turned; a permutation of Q and of K; a row of zeros.
SAME = {
    "rope-position-restart": {"rope-missing"},
    "rope-halves-of-permuted": {"rope-adjacent-pairs"},
    "scores-without-rope": {"rope-missing"},
    "cache-stale": {"cache-rows"},
    "scale": {"softmax-temperature"},
    "softmax-temperature": {"scale"},
}


def in_one_piece(p: A, v: A, pos: A) -> A:
    """FlashAttention's product, keys in one block: exp(s - largest) in bfloat16, float32 sums, divided at the end."""
    top = np.abs(p).max(-1, keepdims=True)
    top = np.where(top > 0, top, f32(1))
    y = dot(to_bfloat16(p / top), np.repeat(to_bfloat16(v), len(p) // v.shape[1], 1).transpose(1, 2, 0)) * top
    return np.ascontiguousarray(to_bfloat16(y).swapaxes(0, 1))


WIDE = ENGINES["HF float32"]
FLASH = SimpleNamespace(
    **{
        **vars(ENGINES["HF bfloat16"]),
        "attn_scores": WIDE.attn_scores,
        "softmax": WIDE.softmax,
        "attn_mix": in_one_piece,
    }
)


def in_fast_steps(p: A, v: A, pos: A) -> A:
    """The same with an exponential that is off by up to 2^-14, as PyTorch's on a CPU is, also in the sum."""
    top = np.abs(p).max(-1, keepdims=True)
    e = p / np.where(top > 0, top, f32(1))
    e = (e * (1 + np.sin(1e4 * e) * f32(2.0**-14))).astype(f32)
    y = dot(to_bfloat16(e), np.repeat(to_bfloat16(v), len(p) // v.shape[1], 1).transpose(1, 2, 0))
    return np.ascontiguousarray(to_bfloat16(y / e.sum(-1, keepdims=True)).swapaxes(0, 1))


FAST = SimpleNamespace(**{**vars(FLASH), "attn_mix": in_fast_steps})
KERNELS: dict[str, Any] = {"HF float32": "HF float32", "HF bfloat16, flash": FLASH}


def planted(p: Plant, engine: str) -> Mistake:
    """The mistake, its scores and probabilities in float32 where the engine stores none; of a step in steps alone."""

    def made(run: Run, x: A) -> A:
        if p.step and not run.phase:
            return x
        if KERNELS[engine] is FLASH and p.stage not in ROPE:
            run = replace(run, kernels=SimpleNamespace(**{**vars(run.kernels), "mul": WIDE.mul}))
        return p.make(run, x)

    return made


def unexplained(dump: Dump, w: Weights) -> list[Finding]:
    """Of what hooks leave of the dump."""
    hooked = changed(dump, lambda e: None if e.stage.name in UNSEEN else e)
    return [f for f in verify(hooked, w).findings if f.verdict == UNEXPLAINED]


def turns() -> list[tuple[Plant, str, int]]:
    """Each mistake in each engine, in its layers in turn."""
    found = []
    for i, p in enumerate(PLANTS):
        if p.stage not in ("q_post_rope", *WITHIN, "attention") or p.id in INVISIBLE:
            continue
        for j, engine in enumerate(KERNELS):
            if KERNELS[engine] is not FLASH or p.id not in ROUNDED_OTHERWISE:
                found.append((p, engine, p.layers[(i + j) % len(p.layers)]))
    return found


PLANTED = thinned(turns(), lambda t: f"{t[0].id}-{t[1]}-{t[2]}", 17)


def test_every_engine_and_kind_of_stage_has_turns_that_run_always() -> None:
    had = always(PLANTED)
    assert {e for _, e, _ in had} == KERNELS.keys()
    assert {p.stage for p, _, _ in had} == {"q_post_rope", *WITHIN, "attention"}


@pytest.mark.parametrize(("p", "engine", "layer"), PLANTED)
def test_a_mistake_inside_attention_is_named(p: Plant, engine: str, layer: int, request: pytest.FixtureRequest) -> None:
    w = weights(p.formats, p.scaling, p.windows, p.model_type)
    also = {o.stage: o for o in PLANTS if o.id == p.id.replace(*ROPE) and o is not p}
    mistakes = {(o.stage, layer): planted(o, engine) for o in (p, *also.values())}
    dump = dump_of(w, KERNELS[engine], TOKENS, steps=[5] if p.step else [], mistakes=mistakes)
    found = unexplained(dump, w)
    assert {(f.layer, f.stage) for f in found} == {(layer, "attention")}
    for f in found:
        names = {h.name for h in f.hypotheses}
        assert names & {p.named, *SAME.get(p.named, ())}, (f.phase, names)


@pytest.mark.parametrize("alone", [False, True], ids=["both sums", "the numerator alone"])
def test_blocks_of_keys_that_are_not_made_smaller(alone: bool) -> None:
    """Flash attention in blocks of 16 keys, which forgets exp(old largest - new largest) for what it has summed."""
    tokens = np.random.default_rng(3).integers(0, 259, 24).tolist()

    def forgetful(run: Run, x: A) -> A:
        scores, v = everywhere(run)[0], np.repeat(heads_of_values(run), 4, 1)
        seen = np.arange(24) <= run.pos_T[:, None]
        y, total, top = np.zeros((8, 24, 32)), np.zeros((8, 24, 1)), np.full((8, 24, 1), -np.inf)
        for keys in (slice(0, 16), slice(16, 24)):
            s = np.where(seen[:, keys], scores[:, :, keys], -np.inf)
            new = np.maximum(top, s.max(-1, keepdims=True))
            e = np.exp(s - new)
            again = np.exp(top - new) if alone else 1
            y, total, top = y + e @ v[keys].swapaxes(0, 1), again * total + e.sum(-1, keepdims=True), new
        return np.ascontiguousarray((y / total).astype(f32).swapaxes(0, 1))

    w = weights("Q8_0")
    (found,) = unexplained(dump_of(w, "HF float32", tokens, mistakes={("attention", 1): forgetful}), w)
    assert (found.layer, found.stage) == (1, "attention")
    said = "16 keys is not made smaller" + " in the numerator alone" * alone
    assert f"the sum over earlier blocks of {said}, when a larger score comes" in {h.sentence for h in found.hypotheses}


KEY, POS = np.arange(len(TOKENS)), np.arange(len(TOKENS))[:, None]
MASKS = {
    "documents or chunks that do not see each other begin at positions 0, 3, 6": (KEY <= POS) & (KEY >= POS // 3 * 3),
    "each position sees 2 keys too many: a wrong corner": KEY <= POS + 2,
    "key 4 is hidden from the positions behind": (KEY <= POS) & ((KEY != 4) | (KEY == POS)),
}


@pytest.mark.parametrize("words", MASKS)
def test_any_mask_is_read_off_the_result(words: str) -> None:
    def masked(run: Run, x: A) -> A:
        run = replace(run, kernels=SimpleNamespace(**{**vars(run.kernels), "mul": WIDE.mul}))
        return free_softmax(run, everywhere(run)[0], -1, MASKS[words])

    w = weights("Q8_0")
    dump = dump_of(w, FLASH, TOKENS, mistakes={("attn_softmax", 1): masked})
    (found,) = unexplained(dump, w)
    assert (found.layer, found.stage) == (1, "attention")
    assert words in {h.sentence.removeprefix("the mask is another: ") for h in found.hypotheses}


@pytest.mark.parametrize("shift", [-1, 2])
def test_a_mistake_beside_a_fast_exponential_is_named(shift: int) -> None:
    """The sum that probabilities are divided by is of the same exponentials, and off by as much."""

    def masked(run: Run, x: A) -> A:
        run = replace(run, kernels=SimpleNamespace(**{**vars(run.kernels), "mul": WIDE.mul}))
        return free_softmax(run, everywhere(run)[0], -1, np.maximum(0, POS + shift) >= KEY)

    w = weights("Q8_0")
    (found,) = unexplained(dump_of(w, FAST, TOKENS, mistakes={("attn_softmax", 2): masked}), w)
    assert (found.layer, found.stage) == (2, "attention")
    assert "mask-off" in {h.name for h in found.hypotheses} or shift == 2
    assert {"mask-off", "mask-other"} & {h.name for h in found.hypotheses}


@pytest.mark.parametrize("model", ["llama", pytest.param("qwen3", marks=pytest.mark.matrix)])
def test_flash_attention_without_a_bias_is_the_engine_that_has_a_name(model: str) -> None:
    """Whose bias inside the product says nothing there; no place is explained only by looser arithmetic."""
    w = weights("Q8_0", model_type=model)
    dump = dump_of(w, FAST, TOKENS, steps=[7, 8, 9])
    hooked = changed(dump, lambda e: None if e.stage.name in UNSEEN else e)
    found = verify(hooked, w)
    assert all(f.explained for f in found.findings)
    assert "sdpa" in found.recipe.name and "bias" not in found.recipe.name


def test_a_mistake_in_every_layer_is_named_though_no_attention_shows_the_arithmetic() -> None:
    def masked(run: Run, x: A) -> A:
        run = replace(run, kernels=SimpleNamespace(**{**vars(run.kernels), "mul": WIDE.mul}))
        return free_softmax(run, everywhere(run)[0], -1, np.maximum(0, POS - 1) >= KEY)

    w = tiny_weights(layers=2, hidden=64, head_dim=32, heads=2, mlp=96, formats="F16")
    found = unexplained(dump_of(w, FAST, TOKENS, mistakes={("attn_softmax", n): masked for n in (0, 1)}), w)
    assert {(f.layer, f.stage) for f in found} == {(0, "attention"), (1, "attention")}
    assert all("mask-off" in {h.name for h in f.hypotheses} for f in found)
