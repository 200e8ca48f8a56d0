"""ggml's flash attention and quantised caches, emulated from what ggml's sources do, one number after the other; a
mistake in them is found. tests/oracle/test_ggml_attention.py holds the same to llama.cpp itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import EXACT, REPRODUCED
from qwenref.trace.verify.report.text import engine_words
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dump_of, f32, to_float16
from ...scored import Score, healthy
from ...tiny import tiny_weights

A = np.ndarray
H, LAYERS, TILE = 64, 2, 64
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@cache
def weights() -> Weights:
    return tiny_weights(layers=LAYERS, hidden=128, head_dim=H, heads=2, kv_heads=1, mlp=128, formats="Q8_0")


def tokens(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 259, length).tolist()


# -- what ggml does ---------------------------------------------------------------------------------------------------


def hadamard(x: A) -> A:
    """Scaled first, then butterflies of growing width, each sum a float32."""
    y, width = (x * f32(0.125)).astype(f32), 1
    while width < H:
        for i in range(0, H, 2 * width):
            for j in range(i, i + width):
                a, b = y[..., j].copy(), y[..., j + width].copy()
                y[..., j], y[..., j + width] = a + b, a - b
        width *= 2
    return y


def q8_0(v: A) -> A:
    top = np.abs(v).max()
    codes = np.rint(v * (f32(127) / top)) if top else v
    return codes * f32(np.float16(top / f32(127)))


def offset(bits: int, v: A) -> A:
    """q4_0, q5_0: the largest becomes the lowest code."""
    half = f32(1 << (bits - 1))
    d = v[np.abs(v).argmax()] / -half
    codes = np.minimum(np.trunc(v * (f32(1) / d) + half + f32(0.5)), 2 * half - 1)
    return (codes - half) * f32(np.float16(d))


def minimum(bits: int, v: A) -> A:
    """q4_1, q5_1."""
    d = (v.max() - v.min()) / f32((1 << bits) - 1)
    codes = np.minimum(np.trunc((v - v.min()) * (f32(1) / d) + f32(0.5)), (1 << bits) - 1)
    return codes * f32(np.float16(d)) + f32(np.float16(v.min()))


def iq4_nl(v: A) -> A:
    levels = np.array(LEVELS, f32)
    factor = levels[0] / v[np.abs(v).argmax()]
    q = levels[np.abs(v[:, None] * factor - levels).argmin(1)]
    return f32(np.float16((v * v * q * v).sum() / (v * v * q * q).sum())) * q


STORED: dict[str, Callable[[A], A]] = {
    "q8_0": q8_0,
    "q4_0": partial(offset, 4),
    "q5_0": partial(offset, 5),
    "q4_1": partial(minimum, 4),
    "q5_1": partial(minimum, 5),
    "iq4_nl": iq4_nl,
}


def blocks(f: Callable[[A], A], x: A) -> A:
    return np.concatenate([f(b) for b in x.reshape(-1, 32)]).reshape(x.shape).astype(f32)


def met(kind: str, q: A, k: A) -> A:
    """A query's product with a key of a quantised cache, block by block; a minimum of the key meets the sum
    of the query's codes times their scale, kept as a half."""
    y = f32(0)
    for a, b in zip(q.reshape(-1, 32), k.reshape(-1, 32), strict=True):
        a8, stored = q8_0(a), STORED[kind](b)
        y = y + a8 @ stored
        if kind.endswith("_1"):
            top = np.abs(a).max()
            codes = np.rint(a * (f32(127) / top))
            y = y + f32(np.float16(b.min())) * (f32(np.float16(top / f32(127) * codes.sum())) - a8.sum())
    return f32(y)


def attention(kind: str, turns: bool, run: Run, _: A) -> A:
    c, turn = run.config, hadamard if turns else np.asarray
    q, k = run.get("q_post_rope"), run.all_so_far("k_post_rope")
    first = (c.num_attention_heads + c.num_key_value_heads) * H
    v = run.all_so_far("qkv_bias")[:, first:].reshape(len(k), -1, H)
    halves, tiled = kind == "f16", kind == "f16" and len(q) >= TILE
    if halves:
        k, v, q = to_float16(k), to_float16(v), q if tiled else to_float16(q)
    else:
        k, q, v = turn(k), turn(q), blocks(STORED[kind], turn(v))
    y = np.zeros_like(q)
    group = c.num_attention_heads // c.num_key_value_heads
    for t, head in np.ndindex(*q.shape[:2]):
        total, top, summed = f32(0), f32(-np.inf), np.zeros(H, f32)
        for s in range(run.pos[t] + 1):
            key, value = k[s, head // group], v[s, head // group]
            score = (q[t, head] @ key if halves else met(kind, q[t, head], key)) * f32(H**-0.5)
            new = max(top, score)
            shrink, weight = np.exp(top - new), np.exp(score - new)
            step = to_float16 if halves and not tiled else np.asarray
            summed = step(step(summed * shrink) + value * weight)
            total, top = total * shrink + weight, new
        y[t, head] = summed / total
    return y if halves else turn(y)


def dumped(kind: str, turns: bool, length: int, **mistakes: Any) -> Dump:
    made = {("attention", layer): partial(attention, kind, turns) for layer in range(LAYERS)}
    for (stage, layer), wrong in mistakes.get("wrong", {}).items():
        right = made.get((stage, layer), lambda run, x: x)
        made[stage, layer] = lambda run, x, right=right, wrong=wrong: wrong(right(run, x))
    whole = dump_of(weights(), "ggml, 32-bit KV", tokens(length), steps=[7], mistakes=made)
    return changed(whole, lambda e: None if e.stage.name in ("attn_scores", "attn_softmax") else e)


CASES = [("f16", False, 9), ("f16", False, TILE), *((kind, True, 9) for kind in STORED), ("q8_0", False, 9)]


@pytest.mark.parametrize(("kind", "turns", "length"), CASES)
def test_healthy(kind: str, turns: bool, length: int, score: Score) -> None:
    v = verify(dumped(kind, turns, length), weights())
    healthy(v, "ggml's flash attention", f"{kind}{', rotated' * turns}, {length} tokens", score)
    said = "flash attention" if kind == "f16" else f"keys and values held in {kind}" + " (rotated)" * turns
    assert said in engine_words(v)
    assert turns or "rotated" not in engine_words(v)


def louder(x: A) -> A:
    y = x.copy()
    y[:, 1] *= f32(1.03)
    return y


def late(x: A) -> A:
    return np.roll(x, 1, 0)


WRONG = {"a head louder by 3 %": ("attention", louder), "rows one late": ("attention", late)}


@pytest.mark.parametrize(("kind", "turns"), [("f16", False), ("q4_0", True)])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_found(kind: str, turns: bool, mistake: str, score: Score) -> None:
    stage, wrong = WRONG[mistake]
    v = verify(dumped(kind, turns, 9, wrong={(stage, 1): wrong}), weights())
    found = {(f.layer, f.stage, f.phase) for f in v.findings if f.verdict not in (EXACT, REPRODUCED)}
    score("mistakes in ggml's flash attention", kind, planted=1, found=int((1, stage, 0) in found))
    assert (1, stage, 0) in found and {at[:2] for at in found} == {(1, stage)}
