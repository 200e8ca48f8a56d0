"""Engines of the field that no CPU here runs, in NumPy, each written from what its sources do: the page with other
kernels, and with stages that several of its operations make at once. Nothing here knows the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump

from .engines import ENGINES, Mistake, Run, changed, dot, dump_of, f32, to_bfloat16, to_float16

A = np.ndarray
Rounded = Callable[[A], A]
Made = Callable[[Run, "Engine"], A]
BASES: dict[str, Rounded] = {
    "HF bfloat16": to_bfloat16,
    "HF float16": to_float16,
    "HF float32": lambda x: np.asarray(x, f32),
}
FUSED = ("qkv_matmul", "attn_scores", "attn_softmax", "ffn_silu")  # what serving engines never hold


@dataclass(frozen=True)
class Engine:
    """base: of what format and habits. operand: what activations become before a product. matrix: matrices as held.
    dots: how a product is summed, unrounded. cached: keys or values [S, K, H] as the cache holds them. instead: stages
    that are made another way. absent: stages of which a dump has nothing. said: what the judge must say.
    """

    name: str
    base: str
    said: tuple[str, ...]
    operand: Rounded = lambda x: x
    matrix: Rounded | None = None
    dots: Callable[[A, A], A] = dot
    cached: Rounded = lambda x: x
    instead: Mapping[str, Made] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    head: bool = True  # its output head is a product as the others

    @property
    def rounded(self) -> Rounded:
        return BASES[self.base]

    def product(self, x: A, w: Any) -> A:
        """In float32, before it is rounded."""
        held = self.matrix or self.rounded
        return np.concatenate([self.dots(self.operand(x.reshape(len(x), -1)), held(slab)) for slab in w.slabs()], 1)

    def dump(
        self,
        w: Weights,
        tokens: Sequence[int],
        *,
        steps: Sequence[int] = (),
        mistakes: Mapping[Any, Mistake] | None = None,
    ) -> Dump:
        """What it dumps; each mistake has the right value first."""
        base = ENGINES[self.base]
        made: dict[Any, Mistake] = {}
        at: dict[str, Sequence[int | None]] = dict.fromkeys(self.instead, range(w.config.num_hidden_layers))
        at |= {"final_norm": (None,), "lm_head": (None,)}
        instead = {"lm_head": plain_head} if not self.head else {}
        for stage, f in {**instead, **self.instead}.items():
            for layer in at[stage]:
                made[stage, layer] = partial(_instead, f, self)
        for spot, mistake in (mistakes or {}).items():
            made[spot] = partial(_after, made[spot], mistake) if spot in made else mistake
        kernels = SimpleNamespace(**{
            **vars(base),
            "linear": lambda x, m: self.rounded(self.product(x, m)),
            "attn_scores": partial(scores, self), "attn_mix": partial(mixed, self),
        })  # fmt: skip
        whole = dump_of(w, kernels, tokens, steps=steps, mistakes=made)
        return changed(whole, lambda e: None if e.stage.name in self.absent else e)


def _instead(f: Made, engine: Engine, run: Run, _: A) -> A:
    return f(run, engine)


def _after(first: Mistake, then: Mistake, run: Run, x: A) -> A:
    return then(run, first(run, x))


# -- attention --------------------------------------------------------------------------------------------------------


def scores(e: Engine, q: A, k: A, pos: A) -> A:
    k = np.repeat(e.cached(k), q.shape[1] // k.shape[1], 1)
    s = e.rounded(e.dots(q.swapaxes(0, 1), k.swapaxes(0, 1)))
    s = e.rounded(s * f32(1 / np.sqrt(q.shape[-1])))
    return np.where(np.arange(k.shape[0]) > pos[:, None], f32(0), s)


def mixed(e: Engine, p: A, v: A, pos: A) -> A:
    v = np.repeat(e.cached(v), len(p) // v.shape[1], 1)
    return np.ascontiguousarray(e.rounded(e.dots(p, v.transpose(1, 2, 0))).swapaxes(0, 1))


def seen(run: Run) -> A:
    return np.arange(len(run.all_so_far("k_post_rope"))) <= run.pos_T[:, None]


def values(run: Run, e: Engine) -> A:
    """[S, N, H]."""
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    return np.repeat(e.cached(run.all_so_far("qkv_bias")[:, -K * H :].reshape(-1, K, H)), N // K, 1)


def unscaled(run: Run, e: Engine) -> A:
    q, k = run.get("q_post_rope"), e.cached(run.all_so_far("k_post_rope"))
    return e.dots(q.swapaxes(0, 1), np.repeat(k, q.shape[1] // k.shape[1], 1).swapaxes(0, 1))


def flash(run: Run, e: Engine, block: int = 16) -> A:
    """FlashAttention-2's loop over blocks of keys: a running maximum, exp(s - m) in 16 bits into the product, and its
    unrounded sum below it."""
    s = np.where(seen(run), unscaled(run, e) / f32(np.sqrt(run.config.head_dim)), f32(-np.inf))
    v = values(run, e)
    m = np.full(s.shape[:2], -np.inf, f32)
    total, out = np.zeros(s.shape[:2], f32), np.zeros((*s.shape[:2], v.shape[2]), f32)
    for start in range(0, s.shape[2], block):
        part = s[:, :, start : start + block]
        top = np.maximum(m, part.max(-1))
        again, p = np.exp(m - top), np.exp(part - top[..., None])
        total = total * again + p.sum(-1, dtype=f32)
        out = out * again[..., None] + e.dots(e.rounded(p), v[start : start + block].transpose(1, 2, 0))
        m = top
    return e.rounded(np.ascontiguousarray((out / total[..., None]).swapaxes(0, 1)))


def fused_softmax(run: Run, e: Engine) -> A:
    """Megatron's: the scale is the product's alpha, so the scores are rounded once; soft-max in float32."""
    return e.rounded(unscaled(run, e) / f32(np.sqrt(run.config.head_dim))) * seen(run)


# -- the rest ---------------------------------------------------------------------------------------------------------


def layer(run: Run) -> Any:
    return run.weights.layers[run.at or 0]


def one_linear(run: Run, e: Engine) -> A:
    """The bias in the product's epilogue."""
    return e.rounded(e.product(run.get("attn_norm"), layer(run).qkv) + e.rounded(layer(run).qkv_bias_E))


def scale_of(run: Run, x: A) -> A:
    return f32(1) / np.sqrt(np.mean(np.square(x), -1, keepdims=True, dtype=f32) + f32(run.config.rms_norm_eps))


def norm_once(x: Callable[[Run], A], gain: Callable[[Run], A], run: Run, e: Engine) -> A:
    wide = x(run)
    return e.rounded(wide * scale_of(run, wide) * e.rounded(gain(run)))


def norm_twice(x: Callable[[Run], A], gain: Callable[[Run], A], run: Run, e: Engine) -> A:
    wide = x(run)
    return e.rounded(e.rounded(wide * scale_of(run, wide)) * e.rounded(gain(run)))


def entering(run: Run) -> A:
    """The sum that enters a layer, or the last norm, as it was before it was rounded."""
    if run.at == 0:
        return run.get("embedding", 0)
    last = run.config.num_hidden_layers - 1 if run.at is None else run.at - 1
    return run.get("post_attn_residual", last) + run.get("ffn_out", last)


def norms(kind: Callable[..., A], whole_sum: bool) -> dict[str, Made]:
    """All three norms, of the residual as it was stored or of its unrounded sum."""
    before = (
        entering
        if whole_sum
        else lambda run: (
            run.get("post_ffn_residual", run.config.num_hidden_layers - 1) if run.at is None else run.before()
        )
    )
    between = (
        (lambda run: run.before() + run.get("attn_out")) if whole_sum else (lambda run: run.get("post_attn_residual"))
    )
    return {
        "attn_norm": partial(kind, before, lambda run: layer(run).attn_norm_D),
        "ffn_norm": partial(kind, between, lambda run: layer(run).ffn_norm_D),
        "final_norm": partial(kind, before, lambda run: run.weights.final_norm_D),
    }


def rope(cut: int, run: Run, e: Engine, table: Rounded = lambda x: x, together: bool = False) -> A:
    """Queries (cut 0) or keys (cut 1) turned in float32; together: in 16 bits, one of the two products fused with the
    sum, as a compiler contracts a * c - b * s."""
    c = run.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    start, heads = ((0, N), (N, K))[cut]
    x = run.get("qkv_bias")[:, start * H : (start + heads) * H].reshape(-1, heads, H)
    angle = run.pos_T.astype(f32)[:, None] * run.weights.inv_freq_h
    cos, sin = table(np.cos(angle))[:, None], table(np.sin(angle))[:, None]
    a, b = np.split(x, 2, -1)
    inner = e.rounded if together else lambda v: v
    return e.rounded(np.concatenate([a * cos - inner(b * sin), b * cos + inner(a * sin)], -1))


FLOAT_ROPE: dict[str, Made] = {"q_post_rope": partial(rope, 0), "k_post_rope": partial(rope, 1)}
FUSED_ROPE: dict[str, Made] = {
    "q_post_rope": lambda run, e: rope(0, run, e, e.rounded, together=True),
    "k_post_rope": lambda run, e: rope(1, run, e, e.rounded, together=True),
}


def silu_and_mul(run: Run, e: Engine) -> A:
    gate = run.get("ffn_gate")
    return e.rounded(gate / (f32(1) + np.exp(-gate)) * run.get("ffn_up"))


def plain_head(run: Run, e: Engine) -> A:
    """An output head that is left as it was, where the layers' products are of 8 bits."""
    return e.rounded(wide_logits(run, e))


def wide_logits(run: Run, e: Engine) -> A:
    """SGLang's fp32 head: the product of 16-bit numbers, not rounded."""
    return np.concatenate(
        [dot(run.get("final_norm")[-1:], e.rounded(slab)) for slab in run.weights.lm_head.slabs()], 1
    )[0]


# -- numbers of 8 bits ------------------------------------------------------------------------------------------------


def eight_bit_floats(mantissa: int, exponent: int) -> A:
    """Every finite value of a format of 8 bits, from its definition (Micikevicius et al. 2022)."""
    bias = 2 ** (exponent - 1) - 1
    found = [0.0]
    for code in range(1, 128):
        e, m = code >> mantissa, code & (2**mantissa - 1)
        found.append((1 + m / 2**mantissa) * 2.0 ** (e - bias) if e else m / 2**mantissa * 2.0 ** (1 - bias))
    last = -1 if exponent == 4 else -(2**mantissa)  # e4m3 has one NaN, e5m2 infinities and NaNs at its end
    return np.array(found[:last])


LEVELS = {"e4m3": eight_bit_floats(3, 4), "e5m2": eight_bit_floats(2, 5)}


def to_float8(x: A, kind: str) -> A:
    """The nearest value, of two as near the one with an even code; beyond the largest, the largest."""
    levels = LEVELS[kind]
    size = np.minimum(np.abs(np.asarray(x, np.float64)), levels[-1])
    above = np.minimum(np.searchsorted(levels, size), len(levels) - 1)
    below = np.maximum(above - 1, 0)
    up, down = levels[above] - size, size - levels[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.copysign(levels[code], x).astype(f32)


def scaled(x: A, axis: Any, top: float, nearest: Rounded) -> A:
    s = np.abs(x).max(axis, keepdims=True).astype(f32) / f32(top)
    s = np.where(s > 0, s, f32(1))
    return (nearest(x * (f32(1) / s)) * s).astype(f32)


def asymmetric(x: A, axis: Any, top: float) -> A:
    low, high = np.minimum(x.min(axis, keepdims=True), 0), np.maximum(x.max(axis, keepdims=True), 0)
    s = ((high - low) / f32(top)).astype(f32)
    s = np.where(s > 0, s, f32(1))
    zero = np.rint(-low / s)
    return ((np.clip(np.rint(x / s) + zero, 0, top) - zero) * s).astype(f32)


def in_blocks(x: A, size: int, f: Rounded) -> A:
    """f on each block of a row."""
    return np.concatenate([f(x[:, i : i + size]) for i in range(0, x.shape[1], size)], 1)


e4m3 = partial(to_float8, kind="e4m3")


def tf32(x: A) -> A:
    """The ten upper bits of the mantissa, ties away from 0."""
    bits = np.asarray(x, f32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(f32)


def tf32_cut(x: A) -> A:
    return (np.ascontiguousarray(x, f32).view(np.uint32) & np.uint32(0xFFFFE000)).view(f32)


def of_tf32(x: A, w: A, cut: Rounded = tf32) -> A:
    return dot(cut(x), cut(w))


def three_tf32(x: A, w: A) -> A:
    """Big and small parts; small times small is left out."""
    x0, w0 = tf32(x), tf32(w)
    x1, w1 = tf32(x - x0), tf32(w - w0)
    return dot(x1, w0) + dot(x0, w1) + dot(x0, w0)


def half_sums(x: A, w: A, block: int = 16) -> A:
    """A tensor core's step of 16 terms, added to a half."""
    y = np.zeros((*x.shape[:-1], w.shape[-2]), f32)
    for i in range(0, x.shape[-1], block):
        y = to_float16(y + dot(x[..., i : i + block], w[..., i : i + block]))
    return y


# -- the engines ------------------------------------------------------------------------------------------------------

BIAS: dict[str, Made] = {"qkv_bias": one_linear}
SERVING: dict[str, Made] = {**BIAS, "attention": flash}
SWIGLU: dict[str, Made] = {"ffn_swigl": silu_and_mul}
TABLES: dict[str, Made] = {
    "q_post_rope": lambda run, e: rope(0, run, e, e.rounded),
    "k_post_rope": lambda run, e: rope(1, run, e, e.rounded),
}
TENSORRT: dict[str, Made] = {**SERVING, **norms(norm_once, False), **FLOAT_ROPE, **SWIGLU}
HALVES = ("HF bfloat16", "HF float16")

# Keys and values in 8 bits: how, and what the judge must say of them.
KV: dict[str, tuple[Rounded, str]] = {
    "e4m3": (e4m3, "FP8 (e4m3)"),
    "e5m2": (partial(to_float8, kind="e5m2"), "FP8 (e5m2)"),
    "e4m3 and a scale": (lambda x: scaled(x, None, 448, e4m3), "FP8 (e4m3), one scale each"),
    "int8 by token": (lambda x: scaled(x, -1, 127, np.rint), "int8, a scale for each head and position"),
    "int8 by channel": (lambda x: scaled(x, 0, 127, np.rint), "int8, a scale for each channel"),
    "uint8 by token": (lambda x: asymmetric(x, -1, 255), "uint8, a scale and zero point for each head and position"),
}

# Activations in 8 bits, by matrices that the file holds in 8 bits.
W8A8: dict[str, tuple[Rounded, str]] = {
    "FP8 W8A8, tensor": (lambda x: scaled(x, None, 448, e4m3), "FP8 activations (e4m3), one scale"),
    "FP8 W8A8, token": (lambda x: scaled(x, -1, 448, e4m3), "FP8 activations (e4m3), a scale for each token"),
    "FP8 W8A8, 1 x 128": (
        lambda x: in_blocks(x, 128, lambda b: scaled(b, -1, 448, e4m3)),
        "FP8 activations (e4m3), a scale for each 128 columns",
    ),
    "int8 W8A8, tensor": (lambda x: scaled(x, None, 127, np.rint), "int8 activations, one scale"),
    "int8 W8A8, token": (lambda x: scaled(x, -1, 127, np.rint), "int8 activations, a scale for each token"),
}


def engine(name: str, base: str, *said: str, **more: Any) -> Engine:
    return Engine(name, base, said, **more)


FIELD = (
    engine(
        "vLLM, its own kernels", "HF bfloat16",
        "bias inside the product", "flash attention with probabilities in bfloat16",
        instead={**SERVING, **FUSED_ROPE}, absent=FUSED,
    ),
    engine(
        "vLLM, compiled", "HF bfloat16",
        "norm of the unrounded residual sum", "SiLU and product rounded once", "RoPE in float32 with 16-bit cosines",
        instead={**SERVING, **norms(norm_twice, True), **SWIGLU, **TABLES}, absent=FUSED,
    ),
    engine(
        "SGLang", "HF bfloat16",
        "norm rounded once", "norm of the unrounded residual sum", "RoPE in float32", "SiLU and product rounded once",
        instead={**SERVING, **norms(norm_once, True), **FLOAT_ROPE, **SWIGLU, "lm_head": wide_logits}, absent=FUSED,
    ),
    engine(
        "TensorRT-LLM", "HF float16",
        "norm rounded once", "RoPE in float32", "SiLU and product rounded once",
        "flash attention with probabilities in float16",
        instead=TENSORRT, absent=FUSED,
    ),
    engine(
        "TensorRT-LLM, half sums", "HF float16", "sums kept in float16", instead=TENSORRT, absent=FUSED, dots=half_sums
    ),
    engine(
        "Megatron", "HF bfloat16",
        "norm rounded once", "scores rounded after their scale", "SiLU and product rounded once", "RoPE in float32",
        instead={**BIAS, **norms(norm_once, False), **FLOAT_ROPE, **SWIGLU, "attn_scores": fused_softmax},
        absent=("qkv_matmul", "ffn_silu"),
    ),
    engine("TF32", "HF float32", "products of TF32 inputs", "attention's products of TF32 inputs", dots=of_tf32),
    engine(
        "TF32 by truncation", "HF float32", "products of TF32 by truncation inputs", dots=partial(of_tf32, cut=tf32_cut)
    ),
    engine("3xTF32", "HF float32", "float32", dots=three_tf32),
    *(
        engine(
            f"{name}, {base[3:]}", base, words,
            operand=f, matrix=lambda w: w, instead=SERVING, absent=FUSED, head=False,
        )
        for name, (f, words) in W8A8.items() for base in HALVES
    ),
    *(
        engine(
            f"KV in {name}, {base[3:]}", base, f"keys and values in {words}", cached=f, instead=SERVING, absent=FUSED
        )
        for name, (f, words) in KV.items() for base in HALVES
    ),
    engine(
        "ONNX Runtime, dynamic uint8", "HF float32", "uint8 activations, one scale and zero point",
        operand=lambda x: asymmetric(x, None, 255), matrix=lambda w: w, head=False,
    ),
)  # fmt: skip
