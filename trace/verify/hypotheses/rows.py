"""Any rows of the cache: which position's keys or values stand at each place is fitted to the dump, then checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from ..facts import Unjudgeable
from ..recipes import operations
from ..site import Site
from ..span import Array, Span
from .attention import attended, mixed, scored
from .hypothesis import Hypothesis, Several, entering
from .masks import dumped, listed
from .whole import BLOCKS, MOST, STARTS, ZERO, Order, orders

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


@hypothesis("cache-rows", "other positions' rows stand in the cache: {}", "attn_scores", "attention")
def cache_rows(s: Site) -> Several:
    keys = s.stage == "attn_scores"
    x = s.so_far("k_post_rope" if keys else s.evidence.valued)
    got = dumped(s)
    if got is None or not np.isfinite(got).all() or len(x.mid) > MOST:
        return
    tried: set[bytes] = set()
    for order in of_scores(s, got) if keys else of_values(s, got, x.mid):
        if (order != np.arange(len(order))).any() and order.tobytes() not in tried:
            tried.add(order.tobytes())
            there = standing(x, order)
            yield words(order), scored(s, k=there) if keys else mixed(s, v=there)
    for order, keys_alone in orders(s) if not keys else ():
        k = standing(s.so_far("k_post_rope"), order)
        yield words(order), attended(s, k, x if keys_alone else standing(x, order))


def standing(x: Span, order: Order) -> Span:
    """The cache with other rows at its places."""
    return x.shaped(lambda v: np.where((order == ZERO)[:, None, None], 0, v[order]))


def of_scores(s: Site, got: Array) -> Iterator[Order]:
    """For each key, the row whose products with the queries that see it are nearest to the dump's."""
    k = s.so_far("k_post_rope")
    S = len(k.mid)
    last = np.full(len(s.pos), S - 1, np.int32)
    full = operations.scores(s.recipe, s.input("q_post_rope"), k, last).mid
    if got.shape[:2] != full.shape[:2] or got.shape[2] < S:
        return
    order = np.arange(S)
    for key in range(S):
        sees = s.see_T >= key
        if sees.any():
            mine = got[:, sees, key]
            away = np.square(full[:, sees] - mine[..., None]).sum((0, 1))
            order[key] = ZERO if np.square(mine).sum() < away.min() else away.argmin()
    yield order


def of_values(s: Site, got: Array, v: Array) -> Iterator[Order]:
    """The order of the layer's keys; that of a fit, where there are as many rows as keys; one block that is another."""
    try:
        keys = s.at("attn_scores")
        scores = dumped(keys)
        if scores is not None:
            yield from of_scores(keys, scores)
    except Unjudgeable:
        pass
    p = s.input("attn_softmax").mid[:, :, : len(v)]
    group = len(p) // v.shape[1]
    S = len(v)
    if p.shape[1:] != (len(s.pos), S) or got.shape != (len(s.pos), len(p), v.shape[2]):
        return
    if len(s.pos) >= S:
        fitted = np.stack(
            [
                np.linalg.lstsq(
                    p[n * group : (n + 1) * group].reshape(-1, S),
                    got[:, n * group : (n + 1) * group].swapaxes(0, 1).reshape(-1, v.shape[2]),
                    rcond=None,
                )[0]
                for n in range(v.shape[1])
            ],
            1,
        )
        away = np.square(fitted[:, None] - v[None]).sum((2, 3))
        yield np.where(np.square(fitted).sum((1, 2)) < away.min(1), ZERO, away.argmin(1))
    right = mixed(s).mid
    wide = np.repeat(v, group, 1)
    for size in BLOCKS:
        starts = range(0, S, size)
        if size >= S or len(starts) > STARTS:
            continue
        best = None
        for a in starts:
            here = np.arange(a, min(a + size, S))
            p_here = p[:, :, here]
            for b in (*starts, ZERO):
                if b == a or b + len(here) > S:
                    continue
                there = 0 if b == ZERO else wide[b : b + len(here)]
                change = np.einsum("nts,snh->tnh", p_here, there - wide[here])
                away = float(np.square(got - right - change).sum())
                if best is None or away < best[0]:
                    best = away, here, b
        if best is not None:
            order = np.arange(S)
            order[best[1]] = ZERO if best[2] == ZERO else np.arange(len(best[1])) + best[2]
            yield order


def words(order: Order) -> str:
    """`those of 4 to 7 stand at 0 to 3`."""
    wrong = np.flatnonzero(order != np.arange(len(order)))
    said, at = [], 0
    while at < len(wrong):
        end = at + 1
        zero = order[wrong[at]] == ZERO
        while (
            end < len(wrong)
            and wrong[end] == wrong[end - 1] + 1
            and (order[wrong[end]] == (ZERO if zero else order[wrong[end - 1]] + 1))
        ):
            end += 1
        places = wrong[at:end].tolist()
        rows = "zeros stand" if zero else f"those of {listed(order[places].tolist())} stand"
        said.append(f"{rows} at {listed(places)}")
        at = end
    return ", ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")


@hypothesis("values-heads", "the values' heads are {}", "attention")
def values_heads(s: Site) -> Several:
    """Query heads that take the values of the head beside theirs, or in another order, within the right kv head too."""
    span = s.compute()
    N = span.mid.shape[1]
    for n in range(1, min(N, 9)):
        yield f"rolled by {n}", span.shaped(partial(np.roll, shift=n, axis=1))
    yield "in reverse order", span.shaped(lambda v: v[:, ::-1])
