"""Mistakes in what is done element by element or row by row: embedding, norms, bias, activation, residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import erf

import numpy as np

from ...stages import of_kind
from ..formulas import input_of, inputs_of, norm, weight_of
from ..recipes import operations
from ..site import Site
from ..span import Array, Span
from .hypothesis import Hypothesis, Several, Variants, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


NORMS, RESIDUALS = of_kind("norm"), of_kind("residual")
HEADS = ("q_norm", "k_norm")


def near(s: Site, value: Array, u: float = 8) -> Span:
    """A formula that no recipe has: float32 inside, to `u` roundings; then stored."""
    return operations.rounded(s.recipe, Span.around(value, u * operations.U * np.abs(value) + operations.FLOAT32.least))


def point(s: Site, values: Array) -> Span:
    return Span.point(operations.weight(s.recipe, values))


# -- embedding --------------------------------------------------------------------------------------------------------


@hypothesis("embedding-scaled", "the embedding is multiplied by sqrt(hidden size)", "embedding")
def embedding_scaled(s: Site) -> Variants:
    return near(s, s.compute().mid * np.sqrt(s.config.hidden_size))


@hypothesis("tokens-shifted", "the tokens are shifted by {}", "embedding")
def tokens_shifted(s: Site) -> Several:
    x = s.compute().mid
    for n in range(-2, 3):
        if n and abs(n) < len(x) - 1:
            yield f"{n:+d} position{'s' * (abs(n) > 1)}", Span.point(np.roll(x, n, 0))


# -- norms ------------------------------------------------------------------------------------------------------------


def normed(s: Site) -> tuple[Span, Array]:
    """The input and the gain of a norm stage."""
    return input_of(s), weight_of(s)


@hypothesis("norm-eps", "the norm's eps is {}", *NORMS)
def norm_eps(s: Site) -> Several:
    x, gain = normed(s)
    for eps in (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if abs(eps - s.config.rms_norm_eps) > 1e-3 * s.config.rms_norm_eps:
            yield f"{eps:g}, not {s.config.rms_norm_eps:g}", norm(s, x, gain, eps)


@hypothesis("norm-gain-plus-one", "the norm's gain is taken as 1 + w, w {}", *NORMS)
def norm_gain_plus_one(s: Site) -> Several:
    """An engine of 16 bits may add the one at run time, or when it loads the weights."""
    x, gain = normed(s)
    yield "as the engine rounds it", norm(s, x, 1 + operations.weight(s.recipe, gain))
    yield "as the file has it", norm(s, x, 1 + gain)


@hypothesis("norm-gain-missing", "the norm's gain is not applied", *NORMS)
def norm_gain_missing(s: Site) -> Variants:
    x, gain = normed(s)
    return norm(s, x, np.ones_like(gain))


@hypothesis("norm-gain-other", "the norm uses the gain of {}", *NORMS)
def norm_gain_other(s: Site) -> Several:
    x, _ = normed(s)
    own = s.evidence.stage(s.stage)
    width = own.letters[-1]
    for other in s.evidence.stages.values():
        if other.kind == "norm" and other.letters[-1] == width:
            for layer in range(s.config.num_hidden_layers) if other.scope == "layer" else (None,):
                if (layer, other.name) != (s.layer, s.stage):
                    where = other.name if layer is None else f"{other.name}, layer {layer}"
                    yield where, norm(s, x, s.evidence.gain(layer, other.weight or ""))


@hypothesis("norm-layernorm", "a LayerNorm (mean subtracted) stands for the RMS norm", *NORMS)
def norm_layernorm(s: Site) -> Variants:
    x, gain = normed(s)
    centred = x.mid - x.mid.mean(-1, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + s.config.rms_norm_eps)
    size = np.abs(x.mid).max(-1, keepdims=True) / np.sqrt(np.square(centred).mean(-1, keepdims=True))
    spread = norm(s, x, gain).radius.max() + 8 * operations.U * size * np.abs(gain)
    return operations.rounded(s.recipe, Span.around(y * gain, spread + np.abs(y * gain) * (4 * s.recipe.result.u)))


@hypothesis("norm-skipped", "the norm is skipped: {}", *NORMS)
def norm_skipped(s: Site) -> Several:
    x, gain = normed(s)
    yield "the stage holds its input", operations.rounded(s.recipe, x)
    yield "the input is only multiplied by the gain", operations.mul(s.recipe, x, point(s, gain))


@hypothesis("norm-wrong-input", "the norm is taken of {}", *NORMS)
def norm_wrong_input(s: Site) -> Several:
    _, gain = normed(s)
    if s.stage in HEADS:
        return
    others = {"ffn_norm": ("before", "attn_out"), "final_norm": (), "attn_norm": ()}[s.stage]
    for name in others:
        yield (
            ("the layer's input" if name == "before" else name),
            norm(s, s.before() if name == "before" else s.input(name), gain),
        )
    if s.stage != "ffn_norm" and s.layer != 0:
        last = s.config.num_hidden_layers - 1 if s.layer is None else s.layer - 1
        yield "the residual before the last layer's MLP", norm(s, s.at("post_attn_residual", layer=last).value(), gain)


@hypothesis("norm-of-all-heads", "the norm is of all heads together, not of each", *HEADS)
def norm_of_all_heads(s: Site) -> Variants:
    x, gain = normed(s)
    shape = x.mid.shape
    every = x.shaped(lambda v: v.reshape(len(v), -1))
    return norm(replace(s, how=replace(s.recipe, norm="twice"), judged=s.stage), every, np.tile(gain, shape[1])).shaped(
        lambda v: v.reshape(shape)
    )


# -- bias -------------------------------------------------------------------------------------------------------------


def biased(s: Site, bias: Array) -> Span:
    return operations.add(s.recipe, s.input("qkv_matmul"), point(s, bias[None]))


@hypothesis("bias-missing", "the QKV bias is not added{}", "qkv_bias")
def bias_missing(s: Site) -> Several:
    yield "", operations.rounded(s.recipe, s.input("qkv_matmul"))
    for name, columns in parts(s):
        bias = s.gain("qkv_bias_E")
        bias[columns] = 0
        yield f" to {name}", biased(s, bias)


@hypothesis("bias-doubled", "the QKV bias is added twice", "qkv_bias")
def bias_doubled(s: Site) -> Variants:
    once = biased(s, s.gain("qkv_bias_E"))
    return operations.add(s.recipe, once, point(s, s.gain("qkv_bias_E")[None]))


@hypothesis("bias-subtracted", "the QKV bias is subtracted", "qkv_bias")
def bias_subtracted(s: Site) -> Variants:
    return biased(s, -s.gain("qkv_bias_E"))


@hypothesis("bias-other-layer", "the QKV bias is that of layer {}", "qkv_bias")
def bias_other_layer(s: Site) -> Several:
    for layer in range(s.config.num_hidden_layers):
        if layer != s.layer:
            yield str(layer), biased(s, s.evidence.gain(layer, "qkv_bias_E"))


@hypothesis("bias-order", "the parts of the QKV bias stand in another order ({})", "qkv_bias")
def bias_order(s: Site) -> Several:
    q, k, v = (s.gain("qkv_bias_E")[columns] for _, columns in parts(s))
    yield "Q V K", biased(s, np.concatenate([q, v, k]))
    yield "K V Q", biased(s, np.concatenate([k, v, q]))


def parts(s: Site) -> list[tuple[str, slice]]:
    """The columns of Q, K and V."""
    N, K, H = s.config.num_attention_heads, s.config.num_key_value_heads, s.config.head_dim
    return [("Q", slice(0, N * H)), ("K", slice(N * H, (N + K) * H)), ("V", slice((N + K) * H, (N + 2 * K) * H))]


# -- activation -------------------------------------------------------------------------------------------------------


def _erf(x: Array) -> Array:
    return np.vectorize(erf, otypes=[np.float64])(x)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "GELU (erf)": lambda x: x * (1 + _erf(x / np.sqrt(2))) / 2,
    "GELU (tanh)": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "GELU (quick, sigmoid 1.702 x)": lambda x: x * _sigmoid(1.702 * x),
    "ReLU": lambda x: np.maximum(x, 0),
    "squared ReLU": lambda x: np.square(np.maximum(x, 0)),
    "hard-swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard-swish (sigmoid clip(0.2 x + 0.5))": lambda x: x * np.clip(0.2 * x + 0.5, 0, 1),
    "leaky ReLU (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "SiLU of a gate clamped to 7": lambda x: np.minimum(x, 7) * _sigmoid(np.minimum(x, 7)),
    "the sigmoid alone": _sigmoid,
    "tanh": np.tanh,
    "nothing": lambda x: x,
}


@hypothesis("activation", "{} stands for SiLU", "ffn_silu")
def activation(s: Site) -> Several:
    x = s.input("ffn_gate")
    for name, f in ACTIVATIONS.items():
        y = f(x.mid)
        # 1 + erf and 1 + tanh cancel where x is very negative: an absolute error of u |x| there.
        slack = 8 * operations.U * (np.abs(y) + np.where("GELU" in name, np.abs(x.mid), 0)) + operations.FLOAT32.least
        yield name, operations.rounded(s.recipe, Span.around(y, slack))


@hypothesis("activation-of-up", "SiLU is applied to up, not to gate", "ffn_silu")
def activation_of_up(s: Site) -> Variants:
    return operations.silu(s.recipe, s.input("ffn_up"))


@hypothesis("glu-add", "silu(gate) and up are added, not multiplied", "ffn_swigl")
def glu_add(s: Site) -> Variants:
    return operations.add(s.recipe, s.input("ffn_silu"), s.input("ffn_up"))


@hypothesis("glu-swapped", "gate and up are swapped: silu(up) times gate", "ffn_swigl")
def glu_swapped(s: Site) -> Variants:
    return operations.mul(s.recipe, operations.silu(s.recipe, s.input("ffn_up")), s.input("ffn_gate"))


@hypothesis("glu-half", "{}", "ffn_swigl")
def glu_half(s: Site) -> Several:
    yield "gate times up: the activation is skipped", operations.mul(s.recipe, s.input("ffn_gate"), s.input("ffn_up"))
    yield "silu(gate) alone: up is not multiplied in", operations.rounded(s.recipe, s.input("ffn_silu"))
    yield "silu(gate) times silu(gate)", operations.mul(s.recipe, s.input("ffn_silu"), s.input("ffn_silu"))
    both = operations.mul(s.recipe, s.input("ffn_gate"), s.input("ffn_up"))
    yield "silu(gate up)", operations.silu(s.recipe, both)


# -- residuals --------------------------------------------------------------------------------------------------------


def addends(s: Site) -> tuple[Span, Span]:
    """(the residual so far, what the block adds)."""
    x, y = inputs_of(s)
    return x, y


@hypothesis("residual-missing", "the residual is not added: the block's output stands alone", *RESIDUALS)
def residual_missing(s: Site) -> Variants:
    return operations.rounded(s.recipe, addends(s)[1])


@hypothesis("residual-alone", "the block's output is not added: the residual passes unchanged", *RESIDUALS)
def residual_alone(s: Site) -> Variants:
    return operations.rounded(s.recipe, addends(s)[0])


@hypothesis("residual-twice", "{} is added twice", *RESIDUALS)
def residual_twice(s: Site) -> Several:
    x, y = addends(s)
    yield "the residual", operations.add(s.recipe, operations.add(s.recipe, x, y), x)
    yield "the block's output", operations.add(s.recipe, operations.add(s.recipe, x, y), y)


@hypothesis("residual-sign", "the block's output is subtracted", *RESIDUALS)
def residual_sign(s: Site) -> Variants:
    x, y = addends(s)
    return operations.add(s.recipe, x, y.map(np.negative))


@hypothesis("residual-multiplied", "residual and block output are multiplied, not added", *RESIDUALS)
def residual_multiplied(s: Site) -> Variants:
    return operations.mul(s.recipe, *addends(s))


@hypothesis("residual-wrong-place", "the residual is taken from {}", *RESIDUALS)
def residual_wrong_place(s: Site) -> Several:
    _, y = addends(s)
    for name, x in _elsewhere(s):
        yield name, operations.add(s.recipe, x, y)


def _elsewhere(s: Site) -> Iterator[tuple[str, Span]]:
    if s.stage == "post_attn_residual":
        yield "attn_norm: after the norm", s.input("attn_norm")
    else:
        yield "ffn_norm: after the norm", s.input("ffn_norm")
        yield "the layer's input: attention's share is lost", s.before()
        yield "attn_out", s.input("attn_out")
    if s.layer:
        yield "the layer before", s.at("post_attn_residual", layer=s.layer - 1).value()
    yield "the embedding", s.at("embedding", layer=0).value()
