"""Mistakes to plant, one at a time, in a foreign engine (engines.py). Written as the mistake would be made, without
the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import erf

import numpy as np

from qwenref.engine.kernels import reference
from qwenref.quant.tensor import QTensor

from .engines import Run, to_bfloat16, to_float16

f32 = np.float32
A = np.ndarray
OWN = ("reference f32", "cpu f32", "cpu int16", "cpu int8")
HF = ("HF float32", "HF float16", "HF bfloat16")
ALL = (*OWN, *HF, "ggml, 16-bit KV", "ggml, 32-bit KV")
UNMASKED = tuple(e for e in ALL if "cpu" not in e)  # the CPU backend's mix never reads what a mask should hide
WIDE = (*OWN, "HF float32", "ggml, 16-bit KV", "ggml, 32-bit KV")


@dataclass(frozen=True)
class Plant:
    """stage: where. make: the run and the right value -> the wrong one. named: the hypothesis that must be among
    those found.

    engines: those in which the mistake shows above the engine's own rounding. layers: those where it is one (-1: the
    last). step: only a decode step shows it; formats, scaling, windows, model_type: the model it needs.
    """

    id: str
    stage: str
    make: Callable[[Run, A], A]
    named: str
    engines: tuple[str, ...] = ALL
    layers: tuple[int, ...] = (0, 1, 2)
    step: bool = False
    formats: str = "Q4_K"
    scaling: tuple[tuple[str, object], ...] = ()  # of RoPE, as config.json has it
    windows: tuple[int, ...] = ()
    model_type: str = "qwen2"


PLANTS: list[Plant] = []


def plant(
    id: str, *stages: str, named: str = "", **more: object
) -> Callable[[Callable[[Run, A], A]], Callable[[Run, A], A]]:
    def enter(f: Callable[[Run, A], A]) -> Callable[[Run, A], A]:
        for s in stages:
            PLANTS.append(Plant(f"{id}-{s}" if len(stages) > 1 else id, s, f, named or id, **more))  # type: ignore[arg-type]
        return f

    return enter


def layer(run: Run, shift: int = 0):  # type: ignore[no-untyped-def]
    n = run.config.num_hidden_layers
    return run.weights.layers[(run.at + shift) % n]


def split_heads(run: Run, qkv: A) -> tuple[A, A, A]:
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    q, k, v = np.split(qkv, [N * H, (N + K) * H], 1)
    return q.reshape(-1, N, H), k.reshape(-1, K, H), v.reshape(-1, K, H)


def tail(run: Run, value: A) -> A:
    """A value made outside the kernels, as the engine stores it."""
    return run.kernels.mul(np.asarray(value, f32), np.ones(1, f32))


# embedding, norms


@plant("embedding-scaled", "embedding", layers=(0,))
def _(run: Run, x: A) -> A:
    return tail(run, x * f32(np.sqrt(run.config.hidden_size)))


@plant("embedding-shard", "embedding", layers=(0,))
def _(run: Run, x: A) -> A:
    table = reference.embed(np.arange(run.config.vocab_size), run.weights.embed)
    ids = np.array([np.square(table - row).sum(1).argmin() for row in x])
    return np.where(ids[:, None] < run.config.vocab_size / 2, x, f32(0))


@plant("tokens-shifted", "embedding", layers=(0,))
def _(run: Run, x: A) -> A:
    return np.roll(x, 1, 0)


def norm_input(run: Run, x: A) -> tuple[A, A]:
    name = run.entries[-1].stage.name
    if name == "post_attn_residual":
        return run.get("post_attn_residual"), layer(run).ffn_norm_D
    if run.at is None:
        return run.get("post_ffn_residual", run.config.num_hidden_layers - 1), run.weights.final_norm_D
    return run.before(), layer(run).attn_norm_D


NORMS = ("attn_norm", "ffn_norm", "final_norm")


@plant("norm-eps", *NORMS)
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    return run.kernels.rms_norm(x, gain, 1e-3)


@plant("norm-gain-plus-one", *NORMS)
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    return run.kernels.rms_norm(x, 1 + gain, run.config.rms_norm_eps)


@plant("norm-gain-missing", *NORMS)
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    return run.kernels.rms_norm(x, np.ones_like(gain), run.config.rms_norm_eps)


@plant("norm-gain-other", *NORMS)
def _(run: Run, y: A) -> A:
    x, _ = norm_input(run, y)
    gain = run.weights.layers[1].attn_norm_D if run.at is None else layer(run, 1).attn_norm_D
    return run.kernels.rms_norm(x, gain, run.config.rms_norm_eps)


@plant("norm-layernorm", *NORMS)
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    return run.kernels.rms_norm(x - x.mean(-1, keepdims=True), gain, run.config.rms_norm_eps)


@plant("norm-skipped", *NORMS)
def _(run: Run, y: A) -> A:
    return norm_input(run, y)[0]


@plant("norm-shard", "ffn_norm")
def _(run: Run, y: A) -> A:
    """Tensor parallelism of two ranks that do not share their sums of squares."""
    x, gain = norm_input(run, y)
    halves = zip(np.split(x, 2, 1), np.split(gain, 2), strict=True)
    return np.concatenate([run.kernels.rms_norm(h.copy(), g, run.config.rms_norm_eps) for h, g in halves], 1)


@plant("norm-shard-last", "final_norm", named="norm-shard")
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    parts = zip(np.split(x, 8, 1), np.split(gain, 8), strict=True)
    return np.concatenate([run.kernels.rms_norm(h.copy(), g, run.config.rms_norm_eps) for h, g in parts], 1)


@plant("norm-count", *NORMS)
def _(run: Run, y: A) -> A:
    """The sum of squares, not their mean."""
    x, gain = norm_input(run, y)
    scale = f32(1) / np.sqrt(np.square(x).sum(-1, keepdims=True, dtype=f32) + f32(run.config.rms_norm_eps))
    return run.kernels.mul(tail(run, x * scale), np.broadcast_to(tail(run, gain), x.shape).copy())


@plant("norm-short", "attn_norm")
def _(run: Run, y: A) -> A:
    """Every step of it rounded to the engine's own 16 bits, or to half; the mean's sum is in float32."""
    x, gain = norm_input(run, y)
    r = to_bfloat16 if np.array_equal(to_bfloat16(x), x) else to_float16
    mean = r(np.mean(r(np.square(r(x))), -1, keepdims=True, dtype=f32))
    return r(r(r(x) * r(f32(1) / np.sqrt(r(mean + f32(run.config.rms_norm_eps))))) * r(gain))


@plant("norm-scale-short", *NORMS)
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    scale = f32(1) / np.sqrt(np.square(x).mean(-1, keepdims=True, dtype=f32) + f32(run.config.rms_norm_eps))
    return run.kernels.mul(tail(run, x * to_bfloat16(scale)), np.broadcast_to(tail(run, gain), x.shape).copy())


@plant("norm-twice", "ffn_norm")
def _(run: Run, y: A) -> A:
    _, gain = norm_input(run, y)
    return run.kernels.rms_norm(y, gain, run.config.rms_norm_eps)


@plant("norm-wrong-input", "ffn_norm")
def _(run: Run, y: A) -> A:
    return run.kernels.rms_norm(run.before(), layer(run).ffn_norm_D, run.config.rms_norm_eps)


@plant("norm-eps-outside", *NORMS, named="norm-eps", engines=("HF float32",))
def _(run: Run, y: A) -> A:
    x, gain = norm_input(run, y)
    return (x / (np.sqrt(np.square(x).mean(-1, keepdims=True)) + f32(1e-3)) * gain).astype(f32)


@plant("last-layers-skipped", "final_norm", named="norm-wrong-input")
def _(run: Run, y: A) -> A:
    x = run.get("post_ffn_residual", run.config.num_hidden_layers - 3)
    return run.kernels.rms_norm(x, run.weights.final_norm_D, run.config.rms_norm_eps)


# products


@plant("weight-other-layer", "qkv_matmul")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("attn_norm"), layer(run, 1).qkv)


@plant("weight-other-layer-out", "attn_out", named="weight-other-layer")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("attention").reshape(len(y), -1), layer(run, 1).attn_out)


def matrix_of(w: A) -> reference.Matrix:
    from qwenref.quant import f32 as format_f32

    return reference.Matrix((QTensor("F32", w.shape, format_f32.encode(np.ascontiguousarray(w)).reshape(-1)),), f32)


def decoded(m: reference.Matrix) -> A:
    return np.concatenate([slab.astype(f32) for slab in m.slabs()])


def transposed(m: reference.Matrix) -> reference.Matrix:
    """The same numbers in the same order, read as [in, out]."""
    w = decoded(m)
    return matrix_of(w.reshape(w.shape[::-1]).T)


@plant("weight-transposed", "attn_out", engines=(*OWN[:2], *HF))
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("attention").reshape(len(y), -1), transposed(layer(run).attn_out))


@plant("packing", "attn_out", engines=(*OWN[:2], *HF), formats="Q4_0")
def _(run: Run, y: A) -> A:
    """Eight codes of a word are in AWQ's order, and are taken one after the other."""
    w = decoded(layer(run).attn_out)
    order = (np.arange(w.shape[1]).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]).ravel()
    return run.kernels.linear(run.get("attention").reshape(len(y), -1), matrix_of(w[:, order]))


@plant(
    "weight-transposed-down",
    "ffn_out",
    named="weight-transposed",
    engines=(*OWN[:2], *HF),
)
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("ffn_swigl"), transposed(layer(run).ffn_down))


@plant(
    "weight-transposed-head",
    "lm_head",
    named="weight-transposed",
    engines=(*OWN[:2], *HF),
)
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("final_norm")[-1:], transposed(run.weights.lm_head))[0]


@plant("weight-transposed-first", "ffn_out", named="weight-transposed", engines=(*OWN[:2], *HF))
def _(run: Run, y: A) -> A:
    """Transposed in memory, and still read as [out, in]."""
    w = decoded(layer(run).ffn_down)
    return run.kernels.linear(run.get("ffn_swigl"), matrix_of(w.T.reshape(w.shape)))


def half_of(run: Run, part: int) -> reference.Matrix:
    return reference.Matrix(layer(run).gate_up.parts[part : part + 1], f32)


@plant("gate-up-swapped", "ffn_gate")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("ffn_norm"), half_of(run, 1))


@plant("gate-up-swapped-up", "ffn_up", named="gate-up-swapped")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("ffn_norm"), half_of(run, 0))


@plant("gate-up-order", "ffn_gate")
def _(run: Run, y: A) -> A:
    """Two halves, read as if gate and up stood one after the other."""
    both = [run.kernels.linear(run.get("ffn_norm"), half_of(run, part)) for part in (0, 1)]
    return np.ascontiguousarray(np.concatenate(both, 1)[:, 0::2])


@plant("gate-up-order-up", "ffn_up", named="gate-up-order")
def _(run: Run, y: A) -> A:
    both = np.stack([run.kernels.linear(run.get("ffn_norm"), half_of(run, part)) for part in (0, 1)], -1)
    return np.ascontiguousarray(both.reshape(len(y), -1)[:, y.shape[1] :])


@plant("inputs-left-out", "ffn_out")
def _(run: Run, y: A) -> A:
    """The last tile of the sum is not read."""
    x = run.get("ffn_swigl").copy()
    x[:, -32:] = 0
    return run.kernels.linear(x, layer(run).ffn_down)


@plant("qkv-order", "qkv_matmul")
def _(run: Run, y: A) -> A:
    q, k, v = layer(run).qkv.parts
    return run.kernels.linear(run.get("attn_norm"), reference.Matrix((q, v, k), f32))


def by_groups(run: Run) -> A:
    """Where each row of Megatron's fused Q, K and V comes from in ours: for each kv head its queries, key and value."""
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    rows = np.arange((N + 2 * K) * H)
    q, k, v = np.split(rows, [N * H, (N + K) * H])
    grouped = [q.reshape(K, -1), k.reshape(K, -1), v.reshape(K, -1)]
    return np.concatenate(grouped, 1).reshape(-1)


@plant("qkv-order-megatron", "qkv_matmul", named="qkv-order")
def _(run: Run, y: A) -> A:
    return y[:, by_groups(run)]


@plant("qkv-order-of-megatron", "qkv_matmul", named="qkv-order")
def _(run: Run, y: A) -> A:
    """Blocks, read as if they stood by groups."""
    return y[:, np.argsort(by_groups(run))]


@plant("product-wrong-input", "qkv_matmul")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.before(), layer(run).qkv)


@plant("product-wrong-input-gate", "ffn_gate", named="product-wrong-input")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("post_attn_residual"), half_of(run, 0))


@plant("product-wrong-input-heads", "attn_out", named="product-wrong-input")
def _(run: Run, y: A) -> A:
    x = run.get("attention").swapaxes(1, 2).reshape(len(y), -1)
    return run.kernels.linear(np.ascontiguousarray(x), layer(run).attn_out)


@plant("head-position", "lm_head")
def _(run: Run, y: A) -> A:
    x = run.get("final_norm")
    return run.kernels.linear(x[-2:-1], run.weights.lm_head)[0] if len(x) > 1 else y


@plant("head-embedding", "lm_head")
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("final_norm")[-1:], run.weights.embed)[0]


@plant("rows-shifted", "ffn_out")
def _(run: Run, y: A) -> A:
    return np.roll(y, 1, -1)


def rewritten(m: reference.Matrix, f: Callable[[A], A], size: int) -> reference.Matrix:
    parts = tuple(replace(q, data=f(q.data.reshape(-1, size).copy()).reshape(-1)) for q in m.parts)
    return reference.Matrix(parts, f32)


def nibbles(b: A) -> A:
    b[:, 16:] = (b[:, 16:] & 15) << 4 | b[:, 16:] >> 4
    return b


def no_minimum(b: A) -> A:
    b[:, 2:4] = 0
    return b


def wrong_minimum(b: A) -> A:
    b[:, 3] ^= 0x80
    return b


def next_block(b: A) -> A:
    return np.roll(b, -1, 0)


def cut_scales(b: A) -> A:
    b[:, 4:12] &= 0x3F
    return b


DECODERS = {
    "nibbles": nibbles,
    "no-minimum": no_minimum,
    "minimum-sign": wrong_minimum,
    "block-offset": next_block,
    "scales": cut_scales,
}
for _id, _f in DECODERS.items():

    @plant(f"decoder-{_id}", "ffn_gate", named="decoder")
    def _(run: Run, y: A, f: Callable[[A], A] = _f) -> A:
        return run.kernels.linear(run.get("ffn_norm"), rewritten(half_of(run, 0), f, 144))

    @plant(f"decoder-{_id}-qkv", "qkv_matmul", named="decoder")
    def _(run: Run, y: A, f: Callable[[A], A] = _f) -> A:
        return run.kernels.linear(run.get("attn_norm"), rewritten(layer(run).qkv, f, 144))


def one_step_more(m: reference.Matrix, step: float = 1) -> reference.Matrix:
    """Zero points one too small, of Q8_0: every weight is one step (or a part of one) too large."""
    steps = [q.data.reshape(-1, 34)[:, :2].copy().view("<f2").astype(f32) for q in m.parts]
    w = decoded(m)
    return matrix_of((w.reshape(-1, 32) + f32(step) * np.concatenate(steps)).reshape(w.shape))


@plant("zero-points", "ffn_gate", named="decoder", formats="Q8_0", engines=(*OWN[:2], *HF))
def _(run: Run, y: A) -> A:
    return run.kernels.linear(run.get("ffn_norm"), one_step_more(half_of(run, 0)))


# bias


@plant("bias-missing", "qkv_bias")
def _(run: Run, y: A) -> A:
    return run.get("qkv_matmul")


@plant("bias-doubled", "qkv_bias")
def _(run: Run, y: A) -> A:
    return run.kernels.add(y, layer(run).qkv_bias_E)


@plant("bias-subtracted", "qkv_bias")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.get("qkv_matmul"), -layer(run).qkv_bias_E)


@plant("bias-other-layer", "qkv_bias")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.get("qkv_matmul"), layer(run, 1).qkv_bias_E)


@plant("bias-order", "qkv_bias")
def _(run: Run, y: A) -> A:
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    q, k, v = np.split(layer(run).qkv_bias_E, [N * H, (N + K) * H])
    return run.kernels.add(run.get("qkv_matmul"), np.concatenate([q, v, k]))


@plant("bias-other-piece", "qkv_bias")
def _(run: Run, y: A) -> A:
    """K's for Q's, whose heads it serves."""
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    bias = np.array(layer(run).qkv_bias_E)
    bias[: N * H] = bias[N * H : (N + K) * H].reshape(K, H).repeat(N // K, 0).reshape(-1)
    return run.kernels.add(run.get("qkv_matmul"), bias)


@plant("bias-of-queries", "qkv_bias", named="bias-other-piece")
def _(run: Run, y: A) -> A:
    own, H = layer(run).qkv_bias_E.copy(), run.config.head_dim
    start, size = run.config.num_attention_heads * H, run.config.num_key_value_heads * H
    own[start : start + size] = own[:size]
    return run.kernels.add(run.get("qkv_matmul"), own)


@plant("bias-order-megatron", "qkv_bias", named="bias-order")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.get("qkv_matmul"), layer(run).qkv_bias_E[by_groups(run)])


# RoPE

ROPE = ("q_post_rope", "k_post_rope")


def unrotated(run: Run, y: A) -> A:
    q, k, _ = split_heads(run, run.get("qkv_bias"))
    return q if y.shape[1] == q.shape[1] else k


HEADS = ("q_norm", "k_norm")


def heads_of_product(run: Run, y: A) -> A:
    q, k, _ = split_heads(run, run.get("qkv_matmul"))
    return q if y.shape[1] == q.shape[1] else k


@plant("rope-before-norm", *ROPE, model_type="qwen3")
def _(run: Run, y: A) -> A:
    return run.kernels.rope(heads_of_product(run, y), run.pos_T, run.weights.inv_freq_h)


@plant("norm-of-all-heads", *HEADS, model_type="qwen3")
def _(run: Run, y: A) -> A:
    x, own = heads_of_product(run, y), layer(run)
    gain = own.q_norm_H if y.shape[1] == run.config.num_attention_heads else own.k_norm_H
    whole = run.kernels.rms_norm(x.reshape(len(x), -1).copy(), np.tile(gain, x.shape[1]), run.config.rms_norm_eps)
    return whole.reshape(x.shape)


@plant("norm-gain-other-head", "q_norm", named="norm-gain-other", model_type="qwen3")
def _(run: Run, y: A) -> A:
    return run.kernels.rms_norm(heads_of_product(run, y).copy(), layer(run).k_norm_H, run.config.rms_norm_eps)


@plant("rope-missing", *ROPE)
def _(run: Run, y: A) -> A:
    return unrotated(run, y)


@plant("rope-adjacent-pairs", *ROPE)
def _(run: Run, y: A) -> A:
    x = unrotated(run, y)
    pairs = x.reshape(*x.shape[:2], -1, 2)
    turned = run.kernels.rope(np.concatenate([pairs[..., 0], pairs[..., 1]], -1), run.pos_T, run.weights.inv_freq_h)
    return np.stack(np.split(turned, 2, -1), -1).reshape(x.shape)


@plant("rope-theta", *ROPE)
def _(run: Run, y: A) -> A:
    h = run.config.head_dim // 2
    inv_freq = (1 / (10000.0 ** (np.arange(h) / h)).astype(f32)).astype(f32)
    return run.kernels.rope(unrotated(run, y), run.pos_T, inv_freq)


@plant("rope-position", *ROPE)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T + np.int32(1), run.weights.inv_freq_h)


@plant("rope-position-restart", *ROPE, step=True)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T * 0, run.weights.inv_freq_h)


@plant("rope-position-doubled", *ROPE, step=True)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T + run.pos_T[0], run.weights.inv_freq_h)


@plant("rope-sign", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, -run.weights.inv_freq_h)


@plant("rope-twice", *ROPE)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(y, run.pos_T, run.weights.inv_freq_h)


@plant("rope-partial", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    inv_freq = run.weights.inv_freq_h.copy()
    inv_freq[len(inv_freq) // 2 :] = 0
    return run.kernels.rope(unrotated(run, y), run.pos_T, inv_freq)


@plant("rope-frequencies", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, run.weights.inv_freq_h[::-1])


@plant("rope-frequencies-cast", *ROPE, named="rope-frequencies", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, to_bfloat16(run.weights.inv_freq_h))


def table(run: Run) -> A:
    return (run.pos_T.astype(f32)[:, None] * run.weights.inv_freq_h).astype(f32)


def by_tables(run: Run, x: A, angle: A, other: A, functions: Sequence[np.ufunc] = (np.cos, np.sin)) -> A:
    """x cos + other sin, each angle of a channel of its own [T, H], by the engine's own operations."""
    cos, sin = (np.broadcast_to(tail(run, f(angle))[:, None], x.shape).copy() for f in functions)
    return run.kernels.add(run.kernels.mul(x, cos), run.kernels.mul(other, sin))


def other_half(x: A) -> A:
    a, b = np.split(x, 2, -1)
    return np.concatenate([-b, a], -1)


@plant("rope-tables", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """c0 c0 c1 c1 ..., where heads are turned by halves."""
    x = unrotated(run, y)
    return by_tables(run, x, np.repeat(table(run), 2, 1), other_half(x))


@plant("rope-tables-of-halves", *ROPE, named="rope-tables", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """c0 c1 ... c0 c1 ..., where adjacent pairs are turned."""
    x = unrotated(run, y)
    pairs = x.reshape(*x.shape[:2], -1, 2)
    neighbour = np.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(x.shape)
    return by_tables(run, x, np.concatenate([table(run)] * 2, 1), neighbour)


@plant("rope-partial-channels", *ROPE, named="rope-partial", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """Half of the channels, as heads of half the size: partial_rotary_factor 0.5."""
    x, n = unrotated(run, y), run.config.head_dim // 2
    inv_freq = (1 / (1e6 ** (np.arange(n // 2) / (n // 2))).astype(f32)).astype(f32)
    first = run.kernels.rope(np.ascontiguousarray(x[..., :n]), run.pos_T, inv_freq)
    return np.concatenate([first, x[..., n:]], -1)


@plant("rope-formula", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """float2's .x and .y taken for each other."""
    x = unrotated(run, y)
    return by_tables(run, x, np.concatenate([table(run)] * 2, 1), other_half(x), (np.sin, np.cos))


@plant("rope-formula-sign", *ROPE, named="rope-formula", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """rotate_half without its minus."""
    x = unrotated(run, y)
    return by_tables(run, x, np.concatenate([table(run)] * 2, 1), np.concatenate(np.split(x, 2, -1)[::-1], -1))


@plant("rope-formula-in-place", *ROPE, named="rope-formula", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """The first of a pair is overwritten before the second is computed."""
    x, h = unrotated(run, y), run.config.head_dim // 2
    half = by_tables(run, x, np.concatenate([table(run)] * 2, 1), other_half(x))[..., :h]
    x = np.concatenate([half, x[..., h:]], -1)
    return np.concatenate([half, by_tables(run, x, np.concatenate([table(run)] * 2, 1), other_half(x))[..., h:]], -1)


@plant("rope-angles", *ROPE, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """Autocast: positions times frequencies is a product, and products are of 16 bits."""
    x = unrotated(run, y)
    return by_tables(run, x, np.concatenate([to_bfloat16(table(run))] * 2, 1), other_half(x))


@plant("rope-then-bias", *ROPE, named="rope-before-bias")
def _(run: Run, y: A) -> A:
    q, k, _ = split_heads(run, run.get("qkv_matmul"))
    own = next(part for part in split_heads(run, layer(run).qkv_bias_E[None]) if part.shape[1] == y.shape[1])
    turned = run.kernels.rope(q if y.shape[1] == q.shape[1] else k, run.pos_T, run.weights.inv_freq_h)
    return run.kernels.add(turned, np.broadcast_to(own, turned.shape).copy())


@plant("rope-before-bias", *ROPE)
def _(run: Run, y: A) -> A:
    q, k, _ = split_heads(run, run.get("qkv_matmul"))
    return run.kernels.rope(q if y.shape[1] == q.shape[1] else k, run.pos_T, run.weights.inv_freq_h)


@plant("rope-halves-of-permuted", *ROPE)
def _(run: Run, y: A) -> A:
    x = unrotated(run, y)
    x = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
    return run.kernels.rope(x, run.pos_T, run.weights.inv_freq_h)


YARN = (("rope_type", "yarn"), ("factor", 4.0), ("original_max_position_embeddings", 8192))
LLAMA3 = (
    ("rope_type", "llama3"), ("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
    ("original_max_position_embeddings", 32),
)  # fmt: skip
UNSCALING = (*OWN, *HF)  # the engine with ggml's angles is written for RoPE without scaling


def plainly(run: Run) -> A:
    h = run.config.head_dim // 2
    return (1 / (1e6 ** (np.arange(h) / h)).astype(f32)).astype(f32)


@plant("rope-scaling-missing", *ROPE, engines=UNSCALING, scaling=YARN)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, plainly(run))


@plant("rope-scaling-missing-but-magnitude", *ROPE, named="rope-scaling-missing", engines=UNSCALING, scaling=YARN)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, plainly(run), run.weights.magnitude)


@plant("rope-scaling-missing-llama3", *ROPE, named="rope-scaling-missing", engines=UNSCALING, scaling=LLAMA3)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, plainly(run))


@plant("rope-scaling-of-none", *ROPE, engines=UNSCALING)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, plainly(run) / f32(4))


@plant("rope-scaling-other", *ROPE, engines=UNSCALING, scaling=YARN)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, plainly(run) / f32(4))


@plant("rope-magnitude", *ROPE, engines=UNSCALING, scaling=YARN)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, run.weights.inv_freq_h)


@plant("rope-magnitude-twice", *ROPE, named="rope-magnitude", engines=UNSCALING, scaling=YARN)
def _(run: Run, y: A) -> A:
    return run.kernels.rope(unrotated(run, y), run.pos_T, run.weights.inv_freq_h, run.weights.magnitude**2)


@plant("scores-magnitude", "attn_scores", engines=(*OWN, "HF float32"), scaling=YARN)
def _(run: Run, y: A) -> A:
    q = run.get("q_post_rope") * f32(run.weights.magnitude**2)
    return run.kernels.attn_scores(q, keys(run), run.pos_T)


# attention


def keys(run: Run) -> A:
    return run.all_so_far("k_post_rope")


def values(run: Run) -> A:
    return split_heads(run, run.all_so_far("qkv_bias"))[2]


@plant("scale", "attn_scores")
def _(run: Run, y: A) -> A:
    return tail(run, y * f32(np.sqrt(run.config.head_dim)))


@plant("scale-twice", "attn_scores", named="scale", engines=WIDE)
def _(run: Run, y: A) -> A:
    return y / f32(np.sqrt(run.config.head_dim))


@plant("head-grouping", "attn_scores")
def _(run: Run, y: A) -> A:
    N, K = run.config.num_attention_heads, run.config.num_key_value_heads
    return run.kernels.attn_scores(run.get("q_post_rope"), keys(run)[:, np.arange(N) % K], run.pos_T)


@plant("head-grouping-values", "attention", named="head-grouping")
def _(run: Run, y: A) -> A:
    N, K = run.config.num_attention_heads, run.config.num_key_value_heads
    return run.kernels.attn_mix(run.get("attn_softmax"), values(run)[:, np.arange(N) % K], run.pos_T)


@plant("value-head", "attention", named="head-grouping")
def _(run: Run, y: A) -> A:
    return run.kernels.attn_mix(run.get("attn_softmax"), np.roll(values(run), 1, 1), run.pos_T)


@plant("scores-without-rope", "attn_scores")
def _(run: Run, y: A) -> A:
    q, _, _ = split_heads(run, run.get("qkv_bias"))
    return run.kernels.attn_scores(q, keys(run), run.pos_T)


@plant("keys-are", "attn_scores")
def _(run: Run, y: A) -> A:
    return run.kernels.attn_scores(run.get("q_post_rope"), values(run), run.pos_T)


@plant("cache-stale", "attn_scores", step=True)
def _(run: Run, y: A) -> A:
    k = keys(run)
    k[-1] = 0
    return run.kernels.attn_scores(run.get("q_post_rope"), k, run.pos_T)


@plant("rope-cached", "attn_scores", step=True, engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    k, old = keys(run), run.pos[0]
    k[:old] = run.kernels.rope(k[:old], np.arange(old, dtype=np.int32), run.weights.inv_freq_h)
    return run.kernels.attn_scores(run.get("q_post_rope"), k, run.pos_T)


@plant("cache-shifted", "attn_scores", named="cache-stale", step=True)
def _(run: Run, y: A) -> A:
    return run.kernels.attn_scores(run.get("q_post_rope"), np.roll(keys(run), 1, 0), run.pos_T)


@plant("cache-stale-values", "attention", named="cache-stale", step=True)
def _(run: Run, y: A) -> A:
    v = values(run)
    v[-1] = v[-2]
    return run.kernels.attn_mix(run.get("attn_softmax"), v, run.pos_T)


def everywhere(run: Run) -> tuple[A, A]:
    """Scores without a mask, and the position that each row may see."""
    k = keys(run)
    last = np.full(len(run.pos), len(k) - 1, np.int32)
    return run.kernels.attn_scores(run.get("q_post_rope"), k, last), last


@plant("mask-missing", "attn_softmax", engines=UNMASKED)
def _(run: Run, y: A) -> A:
    return run.kernels.softmax(*everywhere(run))


@plant("mask-off", "attn_softmax", engines=UNMASKED)
def _(run: Run, y: A) -> A:
    scores, last = everywhere(run)
    return run.kernels.softmax(scores, np.minimum(run.pos_T + np.int32(1), last))


@plant("mask-inverted", "attn_softmax", engines=UNMASKED)
def _(run: Run, y: A) -> A:
    scores, _ = everywhere(run)
    return free_softmax(run, scores, -1, np.arange(y.shape[2]) >= run.pos_T[:, None])


@plant("window", "attn_softmax", windows=(4, 4, 4))
def _(run: Run, y: A) -> A:
    return run.kernels.softmax(run.get("attn_scores"), run.pos_T)


@plant("window-wide", "attn_softmax", named="window", windows=(4, 4, 4))
def _(run: Run, y: A) -> A:
    return run.kernels.softmax(run.get("attn_scores"), run.pos_T, 5)


@plant("window-of-others", "attn_softmax", named="window", windows=(0, 4, 0), layers=(0, 2))
def _(run: Run, y: A) -> A:
    return run.kernels.softmax(run.get("attn_scores"), run.pos_T, 4)


def free_softmax(run: Run, scores: A, axis: int, seen: A | None = None) -> A:
    x = scores if seen is None else np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(axis, keepdims=True))
        return tail(run, np.nan_to_num(e / e.sum(axis, keepdims=True)).astype(f32))


def seen(run: Run, y: A) -> A:
    return np.arange(y.shape[2]) <= run.pos_T[:, None]


@plant("mask-strict", "attn_softmax", named="mask-off")
def _(run: Run, y: A) -> A:
    strict = np.arange(y.shape[2]) < run.pos_T[:, None]
    return free_softmax(run, run.get("attn_scores"), -1, strict)


@plant("softmax-padded", "attention", engines=(*OWN, *HF))
def _(run: Run, y: A) -> A:
    """Places up to the next multiple of 16 hold zeros, and have scores of 0 then."""
    scores = run.get("attn_scores")
    fill = np.zeros((*scores.shape[:2], -scores.shape[2] % 16), f32)
    visible = np.concatenate([np.broadcast_to(seen(run, scores), scores.shape), fill == 0], -1)
    p = free_softmax(run, np.concatenate([scores, fill], -1), -1, visible)
    return run.kernels.attn_mix(p, np.pad(values(run), ((0, fill.shape[2]), (0, 0), (0, 0))), run.pos_T)


def merged(run: Run, weigh: Callable[[A, A], A], cut: int = 4) -> A:
    """Attention over the keys before a cut and those from it on, merged by weights of the two parts' sums [N, T]."""
    p, v = run.get("attn_softmax"), values(run)
    parts = [np.where((np.arange(p.shape[2]) < cut) == first, p, f32(0)) for first in (True, False)]
    sums = [part.sum(-1) for part in parts]
    zero = np.zeros_like(sums[0])
    factors = [np.divide(w, old, out=zero.copy(), where=old > 0) for w, old in zip(weigh(*sums), sums, strict=True)]
    each = [run.kernels.attn_mix(part, v, run.pos_T) for part in parts]
    return tail(run, run.kernels.add(*(y * w.T[..., None] for y, w in zip(each, factors, strict=True))))


@plant("softmax-merged", "attention")
def _(run: Run, y: A) -> A:
    """Logarithms to base 2 of the sums are taken for natural ones."""

    def weigh(a: A, b: A) -> A:
        with np.errstate(divide="ignore"):
            e = np.exp(np.log2(np.stack([a, b])))
        return e / e.sum(0)

    return merged(run, weigh)


@plant("softmax-merged-heads", "attention", named="softmax-merged")
def _(run: Run, y: A) -> A:
    """The logarithms lie [groups, kv heads], and are read as [kv heads, groups]."""
    c = run.config
    shape = c.num_attention_heads // c.num_key_value_heads, c.num_key_value_heads

    def weigh(a: A, b: A) -> A:
        e = np.stack([x.reshape(*shape[::-1], -1).swapaxes(0, 1).reshape(x.shape) for x in (a, b)])
        e = e * (np.stack([a, b]) > 0)
        return e / e.sum(0)

    return merged(run, weigh)


@plant("pages-in-turn", "attention", engines=(*OWN[:2], *HF))
def _(run: Run, y: A) -> A:
    """Blocks of 4 keys and 4 values lie in turn; the stride is that of one block."""
    k, v = keys(run), values(run)
    S, size = len(k), 4
    pages = -(-S // size)
    k_full, v_full = (np.concatenate([x, np.zeros((pages * size - S, *x.shape[1:]), f32)]) for x in (k, v))
    memory = np.concatenate([x[n * size : (n + 1) * size] for n in range(pages) for x in (k_full, v_full)])
    scores = run.kernels.attn_scores(run.get("q_post_rope"), np.ascontiguousarray(memory[:S]), run.pos_T)
    p = run.kernels.softmax(scores, run.pos_T)
    return run.kernels.attn_mix(p, np.ascontiguousarray(memory[size : size + S]), run.pos_T)


@plant("strides", "attn_scores")
def _(run: Run, y: A) -> A:
    q = run.get("q_post_rope")
    T, N, H = q.shape
    return run.kernels.attn_scores(q.reshape(N, T, H).swapaxes(0, 1), keys(run), run.pos_T) if T > 1 else y


@plant("strides-values", "attention", named="strides")
def _(run: Run, y: A) -> A:
    v = values(run)
    S, K, H = v.shape
    return run.kernels.attn_mix(run.get("attn_softmax"), v.reshape(K, S, H).swapaxes(0, 1), run.pos_T)


@plant("softmax-not-normalised", "attn_softmax")
def _(run: Run, y: A) -> A:
    x = np.where(seen(run, y), run.get("attn_scores"), -np.inf)
    return tail(run, np.exp(x - x.max(-1, keepdims=True)))


@plant("softmax-wrong-axis", "attn_softmax")
def _(run: Run, y: A) -> A:
    return free_softmax(run, run.get("attn_scores"), 1, seen(run, y))


@plant("softmax-wrong-axis-heads", "attn_softmax", named="softmax-wrong-axis")
def _(run: Run, y: A) -> A:
    return free_softmax(run, run.get("attn_scores"), 0, seen(run, y))


@plant("softmax-temperature", "attn_softmax")
def _(run: Run, y: A) -> A:
    return free_softmax(run, run.get("attn_scores") / f32(np.sqrt(run.config.head_dim)), -1, seen(run, y))


@plant("softmax-short", "attn_softmax")
def _(run: Run, y: A) -> A:
    """Every step rounded to the engine's own 16 bits, or to half; the sum is in float32."""
    scores = run.get("attn_scores")
    r = to_bfloat16 if np.array_equal(to_bfloat16(scores), scores) else to_float16
    x = r(np.where(seen(run, y), scores, -np.inf))
    e = r(np.exp(r(x - x.max(-1, keepdims=True))))
    return r(e / r(e.sum(-1, keepdims=True, dtype=f32)))


@plant("values-before-bias", "attention")
def _(run: Run, y: A) -> A:
    v = values(run) if len(run.pos) == 1 else split_heads(run, run.get("qkv_matmul"))[2]
    return run.kernels.attn_mix(run.get("attn_softmax"), v, run.pos_T)


@plant("values-are", "attention")
def _(run: Run, y: A) -> A:
    return run.kernels.attn_mix(run.get("attn_softmax"), keys(run), run.pos_T)


@plant("values-rotated", "attention")
def _(run: Run, y: A) -> A:
    v = run.kernels.rope(values(run), np.arange(len(keys(run)), dtype=np.int32), run.weights.inv_freq_h)
    return run.kernels.attn_mix(run.get("attn_softmax"), v, run.pos_T) if len(run.pos) > 1 else y


@plant("scores-for-probabilities", "attention")
def _(run: Run, y: A) -> A:
    return run.kernels.attn_mix(run.get("attn_scores"), values(run), run.pos_T)


@plant("heads-interleaved", "attention")
def _(run: Run, y: A) -> A:
    return np.ascontiguousarray(y.swapaxes(1, 2)).reshape(y.shape)


# activation, residuals


def _gelu(x: A) -> A:
    return (x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2).astype(f32)


@plant("activation", "ffn_silu")
def _(run: Run, y: A) -> A:
    return tail(run, _gelu(run.get("ffn_gate")))


@plant("activation-relu", "ffn_silu", named="activation")
def _(run: Run, y: A) -> A:
    return np.maximum(run.get("ffn_gate"), 0)


@plant("activation-quick", "ffn_silu", named="activation")
def _(run: Run, y: A) -> A:
    x = run.get("ffn_gate")
    return run.kernels.mul(x, tail(run, 1 / (1 + np.exp(-tail(run, f32(1.702) * x)))))


@plant("activation-of-up", "ffn_silu")
def _(run: Run, y: A) -> A:
    return run.kernels.silu(run.get("ffn_up"))


@plant("glu-add", "ffn_swigl")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.get("ffn_silu"), run.get("ffn_up"))


@plant("glu-swapped", "ffn_swigl")
def _(run: Run, y: A) -> A:
    return run.kernels.mul(run.kernels.silu(run.get("ffn_up")), run.get("ffn_gate"))


@plant("glu-half", "ffn_swigl")
def _(run: Run, y: A) -> A:
    return run.kernels.mul(run.get("ffn_gate"), run.get("ffn_up"))


RESIDUALS = ("post_attn_residual", "post_ffn_residual")


def block(run: Run) -> A:
    return run.entries[-1].array


def carried(run: Run) -> A:
    return run.before() if run.entries[-1].stage.name == "attn_out" else run.get("post_attn_residual")


@plant("residual-missing", *RESIDUALS)
def _(run: Run, y: A) -> A:
    return block(run)


@plant("residual-alone", *RESIDUALS)
def _(run: Run, y: A) -> A:
    return carried(run)


@plant("residual-twice", *RESIDUALS)
def _(run: Run, y: A) -> A:
    return run.kernels.add(y, carried(run))


@plant("residual-twice-attention", "post_ffn_residual", named="residual-twice")
def _(run: Run, y: A) -> A:
    """A sum in place, into the buffer that stands for the residual: attention's output is in it twice."""
    both = run.kernels.add(run.get("post_attn_residual"), run.get("attn_out"))
    return run.kernels.add(both, run.get("ffn_out"))


@plant("residual-sign", *RESIDUALS)
def _(run: Run, y: A) -> A:
    return run.kernels.add(carried(run), -block(run))


@plant("residual-multiplied", *RESIDUALS)
def _(run: Run, y: A) -> A:
    return run.kernels.mul(carried(run), block(run))


@plant("residual-wrong-place", "post_attn_residual")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.get("attn_norm"), block(run))


@plant("residual-wrong-place-ffn", "post_ffn_residual", named="residual-wrong-place")
def _(run: Run, y: A) -> A:
    return run.kernels.add(run.before(), block(run))


# any stage


@plant("zeros", "attn_out", "ffn_silu", "k_post_rope")
def _(run: Run, y: A) -> A:
    return np.zeros_like(y)


@plant("factor", "attn_out", "ffn_up")
def _(run: Run, y: A) -> A:
    return tail(run, y * f32(1.25))


@plant("positions-shifted", "attn_norm", "attention")
def _(run: Run, y: A) -> A:
    return np.roll(y, 1, 0)


@plant("result-rounded", "ffn_out", engines=(*OWN, "HF float32", "ggml, 16-bit KV"))
def _(run: Run, y: A) -> A:
    return y.astype(np.float16).astype(f32)


@plant("operands-rounded", "ffn_gate", engines=(*OWN[:2], "HF float32"))
def _(run: Run, y: A) -> A:
    return np.concatenate(
        [
            run.get("ffn_norm").astype(np.float16).astype(f32) @ w.astype(np.float16).astype(f32).T
            for w in half_of(run, 0).slabs()
        ],
        1,
    )
