"""Mistakes in matrix products: the wrong weights, weights read or decoded wrongly, the wrong input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....engine.config import Config
from ....engine.weights import plain
from ..fit import fit_of
from ..formulas import PRODUCTS, bias_of, flat, input_of, linear
from ..recipes import operations
from ..recipes.matrix import FileMatrix
from ..recipes.products import product
from ..recipes.scaled import WHOLE
from ..site import Site
from ..span import BFLOAT16, FLOAT16, Span, joined
from .hypothesis import Hypothesis, Several, Variants, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


IN_LAYER = tuple(s for s in PRODUCTS if s != "lm_head")
NOTHING = Span.point(np.zeros(0))  # of no stage's shape
COLUMNS = 64  # that show whether a product may be the dump's
MOST = 1 << 28  # weights of a matrix that is held whole, 1 GiB


def through(s: Site, x: Span | None = None, matrices: list[FileMatrix] | None = None) -> Span:
    """The stage's product with another input or other weights, in the stage's shape; NOTHING where its first columns
    are not the dump's."""
    x = flat(input_of(s)) if x is None else x
    matrices = matrices or s.matrices()
    if glimpsed(s, x, matrices[0]) is False:
        return NOTHING
    y = linear(s, x, matrices)
    return y.shaped(lambda v: v[0]) if s.stage == "lm_head" else y


def glimpsed(s: Site, x: Span, m: FileMatrix) -> bool | None:
    """Whether a product makes the dump's first columns, so that the rest is worth its time; None: who knows.
    A recipe that looks at a whole matrix or at all positions is not tried on a part."""
    mine = s.evidence.dump.get(s.stage, s.layer, s.phase)
    whole = s.recipe.quantiser in WHOLE or s.recipe.requantised is not None
    if mine is None or whole or m.shape[1] != x.mid.shape[1]:
        return None
    got = np.atleast_2d(s.evidence.values(mine))
    few = operations.rounded(s.recipe, product(s.recipe, x, m.head(COLUMNS)))
    got = got[:, : few.mid.shape[1]]
    return fit_of(got, few).good if got.shape == few.mid.shape else None


@hypothesis("weight-other-layer", "the weights are those of layer {}", *IN_LAYER)
def weight_other_layer(s: Site) -> Several:
    for layer in range(s.config.num_hidden_layers):
        if layer != s.layer:
            yield str(layer), through(s, matrices=s.evidence.matrices(layer, s.stage))


@hypothesis("weight-transposed", "the weights are transposed: {}", *PRODUCTS)
def weight_transposed(s: Site) -> Several:
    matrices = s.matrices()
    if sum(m.shape[0] * m.shape[1] for m in matrices) <= MOST:
        yield "[out, in] in memory, read as [in, out]", through(s, matrices=[reread(m) for m in matrices])
        if any(m.shape[0] != m.shape[1] for m in matrices):
            yield "[in, out] in memory, read as [out, in]", through(s, matrices=[turned(m) for m in matrices])


def reread(m: FileMatrix) -> FileMatrix:
    """The same numbers in the same order, taken for [I, O]."""
    O, I = m.shape
    values = m.rows(0, O).reshape(I, O).T
    return replace(m, change=lambda start, w: values[start : start + len(w)])


def turned(m: FileMatrix) -> FileMatrix:
    """The transposed matrix's numbers in their order, taken for [O, I]."""
    O, I = m.shape
    values = m.rows(0, O).T.reshape(O, I)
    return replace(m, change=lambda start, w: values[start : start + len(w)])


@hypothesis("gate-up-swapped", "the weights of gate and up are swapped", "ffn_gate", "ffn_up")
def gate_up_swapped(s: Site) -> Variants:
    return through(s, matrices=s.evidence.matrices(s.layer, "ffn_up" if s.stage == "ffn_gate" else "ffn_gate"))


@hypothesis("gate-up-order", "the rows of gate and up {}", "ffn_gate", "ffn_up")
def gate_up_order(s: Site) -> Several:
    x, F = flat(input_of(s)), s.config.intermediate_size
    parts = [linear(s, x, s.evidence.matrices(s.layer, name)) for name in ("ffn_gate", "ffn_up")]
    both, second = joined(parts, 1), s.stage == "ffn_up"
    one_by_one = np.arange(2 * F).reshape(2, F).T.reshape(-1)  # g0 u0 g1 u1 ...
    for words, rows in (
        ("stand one after the other, and are read as two halves", np.split(one_by_one, 2)[second]),
        ("stand as two halves, and are read one after the other", np.arange(2 * F)[int(second) :: 2]),
    ):
        yield words, both.shaped(partial(np.take, indices=rows, axis=1))


@hypothesis("qkv-order", "Q, K and V stand in another order: {}", "qkv_matmul", "qkv_bias")
def qkv_order(s: Site) -> Several:
    """Of matrices; where nothing tells them apart, of matrices and bias."""
    if s.stage == "qkv_matmul":
        q, k, v = s.matrices()
        yield "Q V K", through(s, matrices=[q, v, k])
        yield "K V Q", through(s, matrices=[k, v, q])
    span = s.compute()
    for name, rows in group_orders(s.config):
        yield name, span.shaped(lambda v, rows=rows: v[:, rows])  # type: ignore[misc]


def group_orders(c: Config) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Megatron's order of the rows of Q, K and V, taken for all of one after the other; and the reverse."""
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    order = [part for g in range(K) for part in (range(g * N // K, (g + 1) * N // K), [N + g], [N + K + g])]
    rows = np.concatenate([np.arange(n * H, (n + 1) * H) for part in order for n in part])
    yield "one group of heads after the other", rows
    yield "all of one after the other, read as if they stood by groups of heads", np.argsort(rows)


@hypothesis("head-embedding", "the output head is the embedding (tied), not its own matrix", "lm_head")
def head_embedding(s: Site) -> Variants:
    return None if s.config.tie_word_embeddings else through(s, matrices=[FileMatrix(plain(s.evidence.weights.embed))])


@hypothesis("product-wrong-input", "the product is of {}", *PRODUCTS)
def product_wrong_input(s: Site) -> Several:
    if s.stage == "lm_head":
        yield "the residual before the final norm", through(s, s.before())
    elif s.stage == "qkv_matmul":
        yield "the residual before the norm", through(s, s.before())
    elif s.stage in ("ffn_gate", "ffn_up"):
        yield "the residual before the norm", through(s, s.input("post_attn_residual"))
        yield "attn_norm", through(s, s.input("attn_norm"))
        added = s.evidence.stage("post_attn_residual").inputs[1]
        yield added, through(s, s.input(added))
    elif s.stage == "ffn_out":
        for name in (*s.evidence.stage("ffn_swigl").inputs, *s.evidence.stage("ffn_silu").inputs):
            yield name, through(s, s.input(name))
    else:
        x = s.input("attention")
        T, N, H = x.mid.shape
        yield "heads laid out [H, N]", through(s, x.shaped(lambda v: v.swapaxes(1, 2).reshape(T, N * H)))
        yield "heads in reverse order", through(s, x.shaped(lambda v: v[:, ::-1].reshape(T, N * H)))
        yield "heads laid out [N, T]", through(s, x.shaped(lambda v: v.swapaxes(0, 1).reshape(T, N * H)))


@hypothesis("bias-included", "the stage already holds the bias", *IN_LAYER)
def bias_included(s: Site) -> Variants:
    if s.stage not in s.evidence.biased:
        return None
    return bias_of(s.at(s.evidence.biased[s.stage]).having(**{s.stage: s.compute()}))


@hypothesis("operands-rounded", "activations and weights are rounded to {} first", *PRODUCTS)
def operands_rounded(s: Site) -> Several:
    for f in (BFLOAT16, FLOAT16):
        site = s.under(replace(s.recipe, weights=f, quantiser=None))
        x = flat(input_of(s)).map(f.round)
        yield f.name, through(site, x)
        yield f"{f.name} (activations only)", through(s.under(replace(s.recipe, quantiser=None)), x)


@hypothesis("rows-shifted", "the rows of the weights are shifted by {}", *PRODUCTS)
def rows_shifted(s: Site) -> Several:
    span = s.compute()
    for n in (-1, 1):
        yield f"{n:+d}", span.shaped(partial(np.roll, shift=n, axis=-1))


@hypothesis("result-rounded", "the result is rounded to {}, alone in this dump", *PRODUCTS)
def result_rounded(s: Site) -> Several:
    for f in (BFLOAT16, FLOAT16):
        if f is not s.recipe.result:
            yield f.name, s.compute().map(f.round)
