"""Mistakes in what is done element by element: embedding, bias, activation, residuals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import erf

import numpy as np

from ...stages import of_kind
from ..formulas import input_of, inputs_of, weight_of
from ..recipes import operations
from ..site import Site
from ..span import Array, Span
from .hypothesis import Hypothesis, Several, Variants, entering
from .products import group_orders

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


RESIDUALS, BIASES = of_kind("residual"), of_kind("bias")


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


@hypothesis("embedding-shard", "of the vocabulary only part {} is looked up, and other tokens' rows are 0", "embedding")
def embedding_shard(s: Site) -> Several:
    span, tokens, V = s.compute(), s.evidence.tokens, s.config.vocab_size
    assert tokens is not None  # nothing is computed without
    id_T = np.array([tokens[p] for p in s.pos])
    for ranks in (2, 4, 8):
        size = -(-V // ranks)
        for rank in range(ranks):
            own_T = id_T // size == rank
            yield f"{rank} of {ranks} (from 0)", span.shaped(partial(np.multiply, own_T[:, None]))


# -- bias -------------------------------------------------------------------------------------------------------------


BIAS = {
    "qkv_bias": "QKV bias", "attn_out_bias": "bias of the output projection", "ffn_gate_bias": "bias of gate",
    "ffn_up_bias": "bias of up", "ffn_out_bias": "bias of the down projection",
}  # fmt: skip


def biased(s: Site, bias: Array) -> Span:
    return operations.add(s.recipe, input_of(s), point(s, bias[None]))


@hypothesis("bias-missing", "the {}", *BIASES)
def bias_missing(s: Site) -> Several:
    yield f"{BIAS[s.stage]} is not added", operations.rounded(s.recipe, input_of(s))
    for name, columns in parts(s) if s.stage == "qkv_bias" else ():
        bias = weight_of(s)
        bias[columns] = 0
        yield f"{BIAS[s.stage]} is not added to {name}", biased(s, bias)


@hypothesis("bias-doubled", "the {} is added twice", *BIASES)
def bias_doubled(s: Site) -> Several:
    once = biased(s, weight_of(s))
    yield BIAS[s.stage], operations.add(s.recipe, once, point(s, weight_of(s)[None]))


@hypothesis("bias-subtracted", "the {} is subtracted", *BIASES)
def bias_subtracted(s: Site) -> Several:
    yield BIAS[s.stage], biased(s, -weight_of(s))


@hypothesis("bias-other-layer", "the {}", *BIASES)
def bias_other_layer(s: Site) -> Several:
    for layer in range(s.config.num_hidden_layers):
        if layer != s.layer:
            other = s.evidence.gain(layer, s.evidence.stage(s.stage).weight or "")
            yield f"{BIAS[s.stage]} is that of layer {layer}", biased(s, other)


@hypothesis("bias-order", "the parts of the QKV bias stand in another order ({})", "qkv_bias")
def bias_order(s: Site) -> Several:
    q, k, v = (weight_of(s)[columns] for _, columns in parts(s))
    yield "Q V K", biased(s, np.concatenate([q, v, k]))
    yield "K V Q", biased(s, np.concatenate([k, v, q]))
    for name, rows in group_orders(s.config):
        yield name, biased(s, weight_of(s)[rows])


@hypothesis("bias-other-piece", "the {}", *BIASES)
def bias_other_piece(s: Site) -> Several:
    """Of Q, K and V (whose heads are repeated, or the first taken, where there are others), or of another product."""
    if s.stage != "qkv_bias":
        for name, what in BIAS.items():
            other = s.evidence.stages.get(name)
            if name != s.stage and other is not None and other.letters == s.evidence.stage(s.stage).letters:
                yield f"{BIAS[s.stage]} is the {what}", biased(s, s.gain(other.weight or ""))
        return
    own, H = weight_of(s), s.config.head_dim
    for name, columns in parts(s):
        for other_name, taken in parts(s):
            if name != other_name:
                other_KH, count = own[taken].reshape(-1, H), own[columns].size // H
                times = -(-count // len(other_KH))
                for heads in (np.repeat(other_KH, times, 0), np.tile(other_KH, (times, 1)))[: 1 + (times > 1)]:
                    bias = own.copy()
                    bias[columns] = heads[:count].reshape(-1)
                    yield f"{BIAS[s.stage]} of {name} is that of {other_name}", biased(s, bias)


def parts(s: Site) -> list[tuple[str, slice]]:
    """The columns of Q, K and V in the product of all three; else all of the stage."""
    if s.stage != "qkv_bias":
        return [("", slice(None))]
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
    x = input_of(s)
    for name, f in ACTIVATIONS.items():
        y = f(x.mid)
        # 1 + erf and 1 + tanh cancel where x is very negative: an absolute error of u |x| there.
        slack = 8 * operations.U * (np.abs(y) + np.where("GELU" in name, np.abs(x.mid), 0)) + operations.FLOAT32.least
        yield name, operations.rounded(s.recipe, Span.around(y, slack))
    yield "GELU (quick, sigmoid 1.702 x)", in_steps(s, x)


def in_steps(s: Site, x: Span) -> Span:
    """Quick GELU as a model's own code has it: three operations, each of which is stored."""
    inner = x.map(lambda v: s.recipe.result.round(1.702 * v))
    y = _sigmoid(inner.mid)
    slack = 8 * operations.U * y + inner.radius / 4 + operations.FLOAT32.least
    return operations.mul(s.recipe, x, operations.rounded(s.recipe, Span.around(y, slack)))


def gate_and_up(s: Site) -> tuple[Span, Span]:
    """What SiLU is of, and what its result is multiplied with."""
    (gate,), (_, up) = s.evidence.stage("ffn_silu").inputs, s.evidence.stage("ffn_swigl").inputs
    return s.input(gate), s.input(up)


@hypothesis("activation-of-up", "SiLU is applied to up, not to gate", "ffn_silu")
def activation_of_up(s: Site) -> Variants:
    return operations.silu(s.recipe, gate_and_up(s)[1])


@hypothesis("glu-add", "silu(gate) and up are added, not multiplied", "ffn_swigl")
def glu_add(s: Site) -> Variants:
    return operations.add(s.recipe, *inputs_of(s))


@hypothesis("glu-swapped", "gate and up are swapped: silu(up) times gate", "ffn_swigl")
def glu_swapped(s: Site) -> Variants:
    gate, up = gate_and_up(s)
    return operations.mul(s.recipe, operations.silu(s.recipe, up), gate)


@hypothesis("glu-half", "{}", "ffn_swigl")
def glu_half(s: Site) -> Several:
    (gate, up), silu = gate_and_up(s), s.input("ffn_silu")
    both = operations.mul(s.recipe, gate, up)
    yield "gate times up: the activation is skipped", both
    yield "silu(gate) alone: up is not multiplied in", operations.rounded(s.recipe, silu)
    yield "silu(gate) times silu(gate)", operations.mul(s.recipe, silu, silu)
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
    once = operations.add(s.recipe, x, y)
    for words, which, other in (("the residual", x, y), ("the block's output", y, x)):
        yield words, operations.add(s.recipe, once, which)
        yield words, operations.add(s.recipe, which.map(partial(np.multiply, 2)), other)
    if s.stage == "post_ffn_residual":
        earlier = s.input(s.evidence.stage("post_attn_residual").inputs[1])
        yield "attention's output", operations.add(s.recipe, operations.add(s.recipe, x, earlier), y)
        yield "the layer's input", operations.add(s.recipe, operations.add(s.recipe, x, s.before()), y)


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
        added = s.evidence.stage("post_attn_residual").inputs[1]
        yield added, s.input(added)
        both = operations.add(s.recipe, s.before(), s.input(added))
        yield "where the MLP's input has none of attention: the block is parallel", both
    if s.layer:
        yield "the layer before", s.at("post_attn_residual", layer=s.layer - 1).value()
    yield "the embedding", s.at("embedding", layer=0).value()
