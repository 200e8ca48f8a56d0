"""Kernels of attention in pieces: parts of the keys that are merged by wrong weights, memory that lies otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..recipes import operations
from ..site import Site
from ..span import FLOAT32, Array, Span, joined, plus
from .attention import Indices, attended, mixed, scored
from .hypothesis import Hypothesis, Several, entering
from .masks import keys, listed

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

EACH = 64  # keys up to which every place of a cut is tried
BLOCKS = (8, 16, 32, 64, 128, 256)
PAGES = (4, 8, 16, 32, 64, 128, 256)
LEAST = np.finfo(float).tiny

Weights = Callable[[Array, Array], Array]


def powers(a: float) -> Weights:
    return lambda w, _: normal(w**a)


def normal(w: Array) -> Array:
    return w / np.maximum(w.sum(-1, keepdims=True), LEAST)


def by_heads(order: Indices) -> Weights:
    """Each head's parts weighted as another head's are; a part that is hidden from it stays so."""
    return lambda w, _: normal(w[order] * (w > 0))


def weightings(heads: int, kv_heads: int) -> Iterator[tuple[str, Weights]]:
    """Wrong weights of the parts [N, T, parts], of the right ones and of the largest probability in each."""
    yield "logarithms to base 2 of the parts' sums are taken for natural ones", powers(1 / np.log(2))
    yield "natural logarithms of the parts' sums are taken for those to base 2", powers(np.log(2))
    yield "the parts are weighted alike", lambda w, _: normal((w > 0).astype(float))
    yield "the parts are added, not weighted", lambda w, _: (w > 0).astype(float)
    yield "the parts are weighted by their largest score, not by their sum", lambda _, most: normal(most)
    yield "each part has the other's weight", lambda w, _: normal(w[..., ::-1] * (w > 0))
    each = heads // kv_heads
    for words, order in (
        ("[groups, kv heads], not [kv heads, groups]", np.arange(heads).reshape(kv_heads, each).T.ravel()),
        ("[kv heads, groups], not [groups, kv heads]", np.arange(heads).reshape(each, kv_heads).T.ravel()),
        ("in reverse order", np.arange(heads)[::-1]),
        ("one further on", np.roll(np.arange(heads), 1)),
    ):
        if (order != np.arange(heads)).any():
            yield f"the parts' weights are another head's: heads lie {words}", by_heads(order)


def cuts(held: int, S: int) -> Iterator[list[int]]:
    """Where the parts may begin: two, or blocks of one size."""
    places = range(1, S) if S <= EACH else sorted({*range(16, S, 16), S // 2, -(-S // 2), held} - {0, S})
    yield from ([0, n] for n in places)
    yield from ([*range(0, S, n)] for n in BLOCKS if 2 * n < S)


@hypothesis("softmax-merged", "the keys are summed in parts, and {}", "attention")
def softmax_merged(s: Site) -> Several:
    """Attention over parts of the keys, each with the logarithm of its sum, which weights it when they are merged. Of
    each mistake the cut that is nearest to the dump is tried."""
    mine = s.evidence.dump.get(s.stage, s.layer, s.phase)
    p, v = s.input("attn_softmax"), s.so_far(s.evidence.valued)
    N, T, S = (*p.mid.shape[:2], len(v.mid))
    if mine is None or S < 2:
        return
    rows = {at: i for i, at in enumerate(s.evidence.positions(mine))}
    values = np.asarray(s.evidence.values(mine), np.float64)
    if not all(at in rows for at in s.pos) or not np.isfinite(values).all():
        return
    got_NTH = values[[rows[at] for at in s.pos]].reshape(T, N, -1).swapaxes(0, 1)
    p_NTS = p.mid[:, :, :S]
    each_NTSH = p_NTS[..., None] * np.repeat(v.mid, N // v.mid.shape[1], 1).swapaxes(0, 1)[:, None]
    parts = []
    for starts in cuts(s.evidence.rows[s.phase][0], S):
        w = np.add.reduceat(p_NTS, starts, -1)
        if ((w > 0).sum(-1) > 1).any():
            o = np.add.reduceat(each_NTSH, starts, 2) / np.maximum(w, LEAST)[..., None]
            parts.append((starts, w, np.maximum.reduceat(p_NTS, starts, -1), o))
    for words, weigh in weightings(N, s.config.num_key_value_heads) if parts else ():
        made = [weigh(w, most) for _, w, most, _ in parts]
        away = [np.square((o * w[..., None]).sum(2) - got_NTH).sum() for w, (*_, o) in zip(made, parts, strict=True)]
        i = int(np.argmin(away))
        starts, right, *_ = parts[i]
        whole, slack = merged(s, p.shaped(lambda x: x[:, :, :S]), v, starts, made[i] / np.maximum(right, LEAST))
        detail = f"{words} ({of_parts(starts, S)})"
        yield detail, operations.rounded(s.recipe, whole)
        if s.recipe.result is not FLOAT32:  # probabilities or the parts' results are stored before they are merged
            stored = Span(whole.mid, whole.lo - slack, whole.hi + slack)
            yield detail, operations.rounded(s.recipe, stored)


def merged(s: Site, p: Span, v: Span, starts: list[int], factor_NTx: Array) -> tuple[Span, Array]:
    """The sum of the parts' sums over values, each times a factor that was made of their probabilities; and what it may
    be off by where 16 bits hold the probabilities and the results of parts."""
    long = s.under(replace(s.recipe, result=FLOAT32))
    sure = (p.radius / np.maximum(np.abs(p.mid), LEAST)).max(-1, initial=0, where=p.mid > 0)
    rel_TN1 = (3 * sure + (p.mid.shape[-1] + 16) * operations.U).T[..., None]
    total, slack = Span.point(np.zeros(())), np.zeros(())
    for i, (start, end) in enumerate(zip(starts, [*starts[1:], p.mid.shape[-1]], strict=True)):
        within = (np.arange(p.mid.shape[-1]) >= start) & (np.arange(p.mid.shape[-1]) < end)
        part = mixed(long, p=only(p, within), v=v)
        factor = factor_NTx[..., i].T[..., None]
        off = rel_TN1 * np.abs(part.mid * factor)
        ends = part.lo * factor, part.hi * factor
        total = plus(total, Span(part.mid * factor, np.minimum(*ends) - off, np.maximum(*ends) + off))
        sizes = mixed(long, p=only(p, within), v=Span.point(np.abs(v.mid))).mid
        slack = slack + 2 * factor * s.recipe.result.u * (sizes + s.recipe.result.least)
    return total, slack


def only(p: Span, within: NDArray[np.bool_]) -> Span:
    return p.shaped(lambda x: np.where(within, x, 0))


def of_parts(starts: list[int], S: int) -> str:
    if len(starts) == 2:
        return f"{keys([*range(starts[1])])} and {listed([*range(starts[1], S)])}"
    return f"blocks of {starts[1]} keys"


@hypothesis("strides", "{} in memory", "attn_scores", "attention", by_row=False)
def strides(s: Site) -> Several:
    """Rows of heads that a view has transposed, read as if they had been copied; or the other way round."""
    rows = s.evidence.rows[s.phase]
    if len(s.pos) != len(rows):
        return
    ways = (
        ("are read as [heads, rows] where they lie as [rows, heads]", as_heads_first),
        ("are read as [rows, heads] where they lie as [heads, rows]", as_rows_first),
    )
    q, k = s.input("q_post_rope"), s.so_far("k_post_rope")
    for words, read in ways:
        if s.stage == "attn_scores":
            yield f"the queries {words}", scored(s, q=q.shaped(read))
            yield f"the keys {words}", scored(s, k=k.shaped(read))
            yield f"queries and keys {words}", scored(s, q=q.shaped(read), k=k.shaped(read))
        else:
            v, at = s.so_far(s.evidence.valued).shaped(read), s.at("attn_scores")
            yield f"the values {words}", mixed(s, v=v)
            for which, asked in (("keys and values", q), ("queries, keys and values", q.shaped(read))):
                made = s.at("attn_softmax").having(attn_scores=scored(at, q=asked, k=k.shaped(read)))
                yield f"{which} {words}", mixed(s, p=made.compute(), v=v)


def as_heads_first(x: Array) -> Array:
    rows, heads, width = x.shape
    return x.reshape(heads, rows, width).swapaxes(0, 1)


def as_rows_first(x: Array) -> Array:
    return x.swapaxes(0, 1).reshape(x.shape)


@hypothesis("pages-in-turn", "blocks of {} keys and of as many values lie in turn, and are read as if each lay alone",
            "attention")  # fmt: skip
def pages_in_turn(s: Site) -> Several:
    """A stride of one block where it is two: block b of the keys is found where half of b says, block b of the values
    one further on."""
    k, v = s.so_far("k_post_rope"), s.so_far(s.evidence.valued)
    S = len(k.mid)
    for size in PAGES:
        if size < S and k.mid.shape == v.mid.shape:
            row = np.arange(S)
            block = row // size

            def taken(at: Indices, row: Indices = row, size: int = size) -> Span:
                """The rows of block `at` in memory: keys of its half, or values."""
                rows = at // 2 * size + row % size
                among = joined([k, v, k.shaped(lambda x: np.zeros_like(x[:1]))], 0)
                return among.shaped(lambda x: x[np.where(rows < S, rows + S * (at % 2), 2 * S)])

            yield str(size), attended(s, taken(block), taken(block + 1))
