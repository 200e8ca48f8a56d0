"""An engine's arithmetic is composed of facts. Each fact, emulated in NumPy from what the engines that have it do, in
every layer of an engine: nothing is unexplained, and the fact is said. In one layer alone it is a mistake there.

tests/oracle/test_recipes_real.py holds the same facts to the engines themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwenref.engine.kernels import reference
from qwenref.trace.dump import Dump
from qwenref.trace.verify.facts import FirstNotFinite
from qwenref.trace.verify.finding import EXACT, REPRODUCED, UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dot, dump_of, f32, to_bfloat16, to_float16
from ...tiny import tiny_weights

A = np.ndarray
Rounded = Callable[[A], A]
Made = Callable[[Run, Rounded], A]
LAYERS = 3
W = tiny_weights(layers=LAYERS, hidden=128, head_dim=32, heads=4, mlp=192, formats="Q8_0")
TOKENS = np.random.default_rng(7).integers(0, 259, 21).tolist()
FORMATS = {"HF bfloat16": to_bfloat16, "HF float16": to_float16}
FACTS: list[tuple[str, str, str, Made]] = []


def fact(stage: str, words: str) -> Callable[[Made], Made]:
    """stage: where it shows. words: what the judge must say of an engine that computes so."""

    def enter(f: Made) -> Made:
        FACTS.append((f.__name__, stage, words, f))
        return f

    return enter


def layer(run: Run) -> Any:
    return run.weights.layers[run.at or 0]


def linear(x: A, w: reference.Matrix, r: Rounded) -> A:
    """The product in float32, of rounded weights, before it is rounded."""
    return np.concatenate([dot(x.reshape(len(x), -1), r(slab)) for slab in w.slabs()], 1)


def scale_of(x: A) -> A:
    eps = f32(W.config.rms_norm_eps)
    return f32(1) / np.sqrt(np.mean(np.square(x), -1, keepdims=True, dtype=f32) + eps)


@fact("qkv_bias", "bias inside the product")
def one_linear(run: Run, r: Rounded) -> A:
    """cuBLASLt's epilogue, oneDNN's bias: what torch.nn.Linear computes."""
    return r(linear(run.get("attn_norm"), layer(run).qkv, r) + r(layer(run).qkv_bias_E))


@fact("ffn_norm", "norm rounded once")
def norm_once(run: Run, r: Rounded) -> A:
    x = run.get("post_attn_residual")
    return r(x * scale_of(x) * r(layer(run).ffn_norm_D))


@fact("ffn_norm", "norm of the unrounded residual sum")
def norm_of_the_sum(run: Run, r: Rounded) -> A:
    """vLLM's fused_add_rms_norm: the sum is stored rounded, and normalised as it was."""
    x = run.before() + run.get("attn_out")
    return r(r(x * scale_of(x)) * r(layer(run).ffn_norm_D))


@fact("post_attn_residual", "residual inside the product")
def residual_in_the_product(run: Run, r: Rounded) -> A:
    return r(run.before() + linear(run.get("attention"), layer(run).attn_out, r))


@fact("ffn_swigl", "SiLU and product rounded once")
def silu_and_mul(run: Run, r: Rounded) -> A:
    gate = run.get("ffn_gate")
    return r(gate / (f32(1) + np.exp(-gate)) * run.get("ffn_up"))


@fact("ffn_silu", "each step of SiLU rounded")
def silu_of_jax(run: Run, r: Rounded) -> A:
    gate = run.get("ffn_gate")
    return r(gate * r(f32(1) / r(f32(1) + r(np.exp(-gate)))))


def turned(run: Run, r: Rounded, table: Rounded) -> A:
    N, H = run.config.num_attention_heads, run.config.head_dim
    x = run.get("qkv_bias")[:, : N * H].reshape(len(run.pos), N, H)
    angle = run.pos_T.astype(f32)[:, None] * run.weights.inv_freq_h
    cos, sin = table(np.cos(angle))[:, None], table(np.sin(angle))[:, None]
    a, b = np.split(x, 2, -1)
    return r(np.concatenate([a * cos - b * sin, b * cos + a * sin], -1))


@fact("attn_scores", "scores rounded after their scale")
def scores_rounded_once(run: Run, r: Rounded) -> A:
    return r(scores_of(run) / f32(np.sqrt(run.config.head_dim)))


@fact("attn_scores", "scale folded into the queries")
def scale_in_the_queries(run: Run, r: Rounded) -> A:
    return r(scores_of(run, lambda q: r(q / f32(np.sqrt(run.config.head_dim)))))


def scores_of(run: Run, queries: Rounded = lambda q: q) -> A:
    q, k = queries(run.get("q_post_rope")), run.all_so_far("k_post_rope")
    k = np.repeat(k, q.shape[1] // k.shape[1], 1)
    return np.where(seen(run), dot(q.swapaxes(0, 1), k.swapaxes(0, 1)), f32(0))


def seen(run: Run) -> A:
    return np.arange(len(run.all_so_far("k_post_rope"))) <= run.pos_T[:, None]


def weighted(run: Run, p: A) -> A:
    N, K, H = run.config.num_attention_heads, run.config.num_key_value_heads, run.config.head_dim
    v = run.all_so_far("qkv_bias")[:, -K * H :].reshape(-1, K, H).repeat(N // K, 1)
    return np.ascontiguousarray(dot(p, v.transpose(1, 2, 0)).swapaxes(0, 1))


def powers(run: Run) -> A:
    x = np.where(seen(run), scores_of(run) / f32(np.sqrt(run.config.head_dim)), f32(-np.inf))
    return np.exp(x - x.max(-1, keepdims=True))


@fact("attention", "flash attention with probabilities in")
def flash(run: Run, r: Rounded) -> A:
    """FlashAttention-2: exp(s - m) in 16 bits into the product, its unrounded sum below it, one block of keys."""
    e = powers(run)
    return r(weighted(run, r(e)) / e.sum(-1, dtype=f32).T[..., None])


@fact("attention", "attention in one piece, float32 inside")
def attention_in_float32(run: Run, r: Rounded) -> A:
    """PyTorch's math path: queries, keys and values widened, the result rounded."""
    e = powers(run)
    return r(weighted(run, e / e.sum(-1, keepdims=True, dtype=f32)))


def dumped(engine: str, stage: str, made: Made, layers: range) -> Dump:
    r = FORMATS[engine]

    def instead(run: Run, _: A) -> A:
        return made(run, r)

    return dump_of(W, engine, TOKENS, steps=[5], mistakes={(stage, n): instead for n in layers})


@pytest.mark.parametrize("engine", FORMATS)
@pytest.mark.parametrize(("name", "stage", "words", "made"), FACTS, ids=[f[0] for f in FACTS])
def test_a_fact_of_the_whole_engine_is_said(engine: str, name: str, stage: str, words: str, made: Made) -> None:
    dump = dumped(engine, stage, made, range(LAYERS))
    if stage == "ffn_norm":  # a fact of all norms: of the other ones the dump must not say the opposite
        dump = changed(dump, lambda e: None if e.stage.name == "attn_norm" else e)
    v = verify(dump, W)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}, [f for f in v.findings if not f.explained]
    assert words in v.recipe.name
    assert v.status == 0


@pytest.mark.parametrize("engine", FORMATS)
@pytest.mark.parametrize(("name", "stage", "words", "made"), FACTS, ids=[f[0] for f in FACTS])
def test_in_one_layer_alone_it_is_a_mistake(engine: str, name: str, stage: str, words: str, made: Made) -> None:
    """What no other place of its kind does is not an engine's arithmetic."""
    v = verify(dumped(engine, stage, made, range(1, 2)), W)
    wrong = [f for f in v.findings if f.verdict == UNEXPLAINED]
    assert {(f.layer, f.stage) for f in wrong} == {(1, stage)}
    assert all("odd-arithmetic" in {h.name for h in f.hypotheses} for f in wrong)
    assert v.status == 1


@pytest.mark.parametrize("engine", FORMATS)
def test_every_norm_is_of_its_own_unrounded_sum(engine: str) -> None:
    """XLA's jit: the norms of a layer have other neighbours, and one arithmetic all the same."""
    r = FORMATS[engine]

    def attn_norm(run: Run, x: A) -> A:
        return x if not run.at else of_sum(run, run.at - 1, layer(run).attn_norm_D)

    def of_sum(run: Run, n: int, gain: A) -> A:
        x = run.get("post_attn_residual", n) + run.get("ffn_out", n)
        return r(r(x * scale_of(x)) * r(gain))

    mistakes: Any = {("attn_norm", n): attn_norm for n in range(LAYERS)}
    mistakes |= {("ffn_norm", n): lambda run, _: norm_of_the_sum(run, r) for n in range(LAYERS)}
    mistakes[("final_norm", None)] = lambda run, _: of_sum(run, LAYERS - 1, run.weights.final_norm_D)
    v = verify(dump_of(W, engine, TOKENS, mistakes=mistakes), W)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}, [f for f in v.findings if not f.explained]
    assert "norm of the unrounded residual sum" in v.recipe.name.split("; ")


@pytest.mark.parametrize("layers", [range(LAYERS), range(1)], ids=["every layer", "one layer"])
@pytest.mark.parametrize("rounded", [to_float16, to_bfloat16])
def test_a_residual_that_is_kept_in_16_bits_in_a_float32_engine(rounded: Rounded, layers: range) -> None:
    mistakes: Any = {("post_attn_residual", n): lambda run, x: rounded(x) for n in layers}
    v = verify(dump_of(W, "HF float32", TOKENS, mistakes=mistakes), W)
    wrong = {(f.layer, f.stage) for f in v.findings if f.verdict == UNEXPLAINED}
    assert wrong == {(n, "post_attn_residual") for n in layers}
    assert v.status == 1


def test_rope_in_float32_with_the_tables_of_either_kind() -> None:
    for table, words in ((to_bfloat16, "RoPE in float32 with 16-bit cosines"), (lambda x: x, "RoPE in float32")):

        def q(run: Run, _: A, table: Rounded = table) -> A:
            return turned(run, to_bfloat16, table)

        dump = dump_of(W, "HF bfloat16", TOKENS, mistakes={("q_post_rope", n): q for n in range(LAYERS)})
        v = verify(changed(dump, lambda e: None if e.stage.name == "k_post_rope" else e), W)
        bad = {f.stage for f in v.findings if f.verdict == UNEXPLAINED}
        assert not bad, bad
        assert words in v.recipe.name.split("; ")


def test_a_value_that_left_its_format_is_said_with_its_true_size() -> None:
    """Qwen2's key bias: scores beyond 65,504 in float16, which a float16 recipe reproduces, as infinity."""
    from dataclasses import replace

    from qwenref.quant.tensor import QTensor

    first = W.layers[0]
    bias = np.concatenate([np.asarray(b.data.view(f32)) for b in first.qkv_bias_E])
    N, K, H = W.config.num_attention_heads, W.config.num_key_value_heads, W.config.head_dim
    bias = bias.copy()
    bias[: (N + K) * H] = 120.0
    parts, at = [], 0
    for b in first.qkv_bias_E:
        parts.append(QTensor(b.format, b.shape, bias[at : at + b.shape[0]].view(np.uint8)))
        at += b.shape[0]
    loud = replace(W, layers=[replace(first, qkv_bias_E=tuple(parts)), *W.layers[1:]])
    dump = dump_of(loud, "HF float16", TOKENS)
    e = dump.get("attn_scores", 0)
    assert e is not None
    assert np.isinf(e.values()).any()
    v = verify(dump, loud)
    (f,) = [f for f in v.findings if f.verdict == UNEXPLAINED]
    assert (f.layer, f.stage, v.status) == (0, "attn_scores", 1)
    said = f.hypotheses[0].sentence
    assert "where float16 ends at 65,504" in said
    assert v.first == (FirstNotFinite((0, 0, "attn_scores")),)  # where it left the format, not where that was used
    q, k = (dump.get(name, 0).values().astype(float) for name in ("q_post_rope", "k_post_rope"))  # type: ignore[union-attr]
    largest = np.abs(np.where(np.tri(len(q), dtype=bool), np.einsum("tnh,snh->nts", q, k.repeat(N // K, 1)), 0)).max()
    assert f"{largest:,.0f}" in said
