"""Attention of which a dump has the result alone: what it was made of is guessed, and the guess left to a span.

A result is a quotient of two sums over the rows of the cache, exp(q k) v over exp(q k), so that a key more or less, or
another row at a place, changes both sums by what is known. Guesses are taken without roundings, at some of the
positions; who asks recomputes the stage with the nearest, and judges that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....engine.kernels import reference
from ..fit import few_of
from ..formulas import WITHIN
from ..site import Site
from ..span import Array

ROOM = 1 << 18  # scores that are there at once
MOST = 512  # keys that are told apart
ROWS = 16  # positions that are looked at
STARTS = 64  # blocks of one size that change places
MOVES = 12  # blocks that stand elsewhere
DOCUMENTS = 8  # that are packed into one prompt
BLOCKS = (1, 2, 4, 8, 16, 32, 64)  # positions of a block of a paged cache
BETTER = 0.9  # of the error: what another move must come below to be believed
ZERO = -1  # in an order: nothing was written there

Order = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Whole:
    """q, got [T, N, H]: queries and the dump's result. k, v [S, N, H]: the cache, each head its own. pos_T, see_T,
    window: who sees what."""

    q_TNH: Array
    k_SNH: Array
    v_SNH: Array
    got_TNH: Array
    pos_T: NDArray[np.int32]
    see_T: NDArray[np.int32]
    window: int

    @property
    def seen_TS(self) -> Mask:  # noqa: N802
        return ~reference.hidden(self.see_T, len(self.k_SNH), self.window)

    def powers(self, k_SNH: Array) -> Array:
        """exp(q k) [N, T, S], each row relative to its largest."""
        scores = np.einsum("tnh,snh->nts", self.q_TNH, k_SNH) / np.sqrt(k_SNH.shape[2])
        return np.exp(scores - scores.max(-1, keepdims=True))

    def away(self, sum_NTxH: Array, total_NTx: Array) -> Array:
        """[T, x]: how far results of such sums are from the dump's, squared."""
        y = sum_NTxH / np.maximum(total_NTx, np.finfo(float).tiny)[..., None]
        return np.square(y - self.got_TNH.swapaxes(0, 1)[:, :, None]).sum((0, 3))


def whole_of(s: Site) -> Whole | None:
    """What a site's layer and phase has, at some of its positions; None where the dump has scores or probabilities, or
    has no result, or one that is not finite."""
    mine, dump = s.evidence.dump.get("attention", s.layer, s.phase), s.evidence.dump
    if mine is None or any(dump.get(stage, s.layer, s.phase) is not None for stage in WITHIN):
        return None
    at = s.at("attention", pos=s.evidence.positions(mine))
    q, k, v = at.input("q_post_rope").mid, at.so_far("k_post_rope").mid, at.so_far(s.evidence.valued).mid
    got = np.asarray(s.evidence.values(mine), np.float64)
    if got.shape != q.shape or len(k) > MOST or not all(np.isfinite(x).all() for x in (got, q, k, v)):
        return None
    some = few_of(len(got), ROWS)
    each = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, each, 1), np.repeat(v, each, 1)
    return Whole(q[some], k, v, got[some], at.pos_T[some], at.see_T[some], s.evidence.window(s.layer))


# -- masks ------------------------------------------------------------------------------------------------------------


def masks(s: Site) -> Iterator[Mask]:
    """Which keys each of the site's positions may have seen [T, S]: of each kind of mask the one that fits best."""
    w = whole_of(s)
    if w is None:
        return
    S, pos_T = len(w.k_SNH), w.pos_T
    power = w.powers(w.k_SNH)
    ahead = [(0, 0)] * 2 + [(1, 0)]
    total = np.pad(power.cumsum(-1), ahead)
    summed = np.pad(np.einsum("nts,snh->ntsh", power, w.v_SNH).cumsum(2), [*ahead, (0, 0)])
    T = np.arange(len(pos_T))
    key_S, site_T1 = np.arange(S), s.pos_T[:, None]
    own_from_T = np.maximum(0, pos_T.astype(np.int64) - w.window + 1)

    def away(first_T: NDArray[np.integer], end_T: NDArray[np.integer]) -> Array:
        """[T], of keys first to end: nothing where there are none of these."""
        a, b = np.clip(first_T, 0, S), np.clip(end_T, 0, S)
        found = w.away((summed[:, T, b] - summed[:, T, a])[:, :, None], (total[:, T, b] - total[:, T, a])[..., None])
        return np.where(a < b, found[:, 0], np.inf)

    left_TS = np.stack([away(np.full(len(T), a), pos_T + 1) for a in range(S)], 1)  # from a to itself
    free_S = np.array([away(np.full(len(T), a), np.full(len(T), S)).sum() for a in range(S)])  # from a to the end
    causal_TS = key_S <= site_T1

    windows = [left_TS[T, np.maximum(0, pos_T - size + 1)].sum() for size in range(1, S + 1)]
    size = int(np.argmin(windows)) + 1
    yield ~reference.hidden(s.pos_T, S, size)
    yield np.broadcast_to(key_S >= int(free_S.argmin()), causal_TS.shape)
    yield ~reference.hidden(s.see_T, S, w.window) & (~hidden(w, power) | (key_S == site_T1))
    shifts = np.array([d for d in range(-S, S) if d])
    shift = int(shifts[np.argmin([away(own_from_T, pos_T + 1 + d).sum() for d in shifts])])
    yield (key_S <= site_T1 + shift) & (key_S > site_T1 - w.window)
    yield causal_TS & (key_S >= first_of(documents(left_TS, pos_T), s.pos_T)[:, None])


def hidden(w: Whole, power_NTS: Array) -> Mask:
    """[S]: keys that no later position sees: one more as long as it helps."""
    S = len(w.k_SNH)
    e_NTS = power_NTS * w.seen_TS
    lost_NTS = e_NTS * (np.arange(S) != w.pos_T[:, None])
    gone_S = np.zeros(S, bool)
    summed, total = np.einsum("nts,snh->nth", e_NTS, w.v_SNH), e_NTS.sum(-1)
    least = float(w.away(summed[:, :, None], total[..., None]).sum())
    while gone_S.sum() < MOVES:
        sums = summed[:, :, None] - lost_NTS[..., None] * w.v_SNH.swapaxes(0, 1)[:, None]
        away_S = w.away(sums, total[..., None] - lost_NTS).sum(0)
        key = int(np.where(gone_S, np.inf, away_S).argmin())
        if not away_S[key] < BETTER * least:
            break
        least, gone_S[key], summed = float(away_S[key]), True, sums[:, :, key]
        total = total - lost_NTS[:, :, key]
    return gone_S


def documents(left_TS: Array, pos_T: NDArray[np.integer]) -> list[int]:
    """Where documents begin that do not see each other: one more as long as it helps."""
    T, starts = np.arange(len(pos_T)), [0]
    least = left_TS[T, 0].sum()
    while len(starts) < DOCUMENTS:
        tried = [(left_TS[T, first_of([*starts, d], pos_T)].sum(), d) for d in range(1, left_TS.shape[1])]
        best, d = min(tried, default=(np.inf, 0))
        if best >= BETTER * least:
            break
        least, starts = best, [*starts, d]
    return starts


def first_of(starts: list[int], pos_T: NDArray[np.integer]) -> NDArray[np.intp]:
    """[T]: where the document of each position begins."""
    ordered = np.array(sorted(starts))
    return ordered[np.searchsorted(ordered, pos_T, "right") - 1]


# -- rows of the cache ------------------------------------------------------------------------------------------------


def orders(s: Site) -> Iterator[tuple[Order, bool]]:
    """Which position's rows may stand at each place of the cache, and whether of keys alone or of values too. Of each
    size of block one guess, block after block as long as that helps."""
    w = whole_of(s)
    if w is None:
        return
    S = len(w.k_SNH)
    # Places are seen, rows stand at them; the last row is zeros.
    power = w.powers(np.concatenate([w.k_SNH, np.zeros_like(w.k_SNH[:1])]))
    v_SNH = np.concatenate([w.v_SNH, np.zeros_like(w.v_SNH[:1])])
    for keys_alone in (False, True):
        least = np.inf
        for size in reversed(BLOCKS):
            if size < S and -(-S // size) <= STARTS:
                order, away = moved(w, power, v_SNH, size, keys_alone)
                # Which of several rows that a query sees stands where does not show; the larger block says less of it.
                if away < BETTER * least:
                    least = away
                    if (order != np.arange(S)).any():
                        yield order, keys_alone


def moved(w: Whole, power_NTS: Array, v_SNH: Array, size: int, keys_alone: bool) -> tuple[Order, float]:
    """The order by blocks of a size, from the right one on, and how far it is from the dump."""
    S = len(v_SNH) - 1
    order = np.arange(S)
    starts = range(0, S, size)
    seen_TS = w.seen_TS

    def of(places: Order, rows: Order) -> tuple[Array, Array]:
        """What rows at places add to both sums: [N, T, H], [N, T]."""
        e = power_NTS[:, :, rows] * seen_TS[:, places]
        return np.einsum("nts,snh->nth", e, v_SNH[places if keys_alone else rows]), e.sum(-1)

    summed, total = of(order, order)
    least = float(w.away(summed[:, :, None], total[..., None]).sum())
    for _ in range(MOVES):
        best = None
        for a in starts:
            places = np.arange(a, min(a + size, S))
            out = of(places, order[places])
            others = [np.full(len(places), S)] + [b + np.arange(len(places)) for b in starts if b + len(places) <= S]
            coming = [of(places, rows) for rows in others]
            sums = np.stack([summed - out[0] + y for y, _ in coming], 2)
            totals = np.stack([total - out[1] + t for _, t in coming], 2)
            found = w.away(sums, totals).sum(0)
            i = int(found.argmin())
            if best is None or found[i] < best[0]:
                best = float(found[i]), places, others[i], sums[:, :, i], totals[:, :, i]
        if best is None or not best[0] < BETTER * least:
            break
        least, places, rows, summed, total = best
        order[places] = rows
    return np.where(order == S, ZERO, order), least


# -- positions --------------------------------------------------------------------------------------------------------


def shifts(s: Site, turn_Ph: Array, shift_P: NDArray[np.integer]) -> Iterator[int]:
    """By how many positions too many queries may be turned, keys being right; or queries and this phase's keys, those
    before it being right. turn_Ph: the angles of each shift that is tried."""
    w = whole_of(s)
    if w is None:
        return
    few = slice(-max(1, MOST // len(w.k_SNH)), None)  # positions: what they cost is bounded
    w = Whole(w.q_TNH[few], w.k_SNH, w.v_SNH, w.got_TNH[few], w.pos_T[few], w.see_T[few], w.window)
    h = w.q_TNH.shape[2] // 2
    q, k = (x[..., :h] + 1j * x[..., h:] for x in (w.q_TNH, w.k_SNH))
    pairs_NTSh = np.einsum("tnh,snh->ntsh", q, np.conj(k))
    right_NTS = pairs_NTSh.real.sum(-1)
    old_S = np.arange(len(k)) < s.evidence.rows[s.phase][0]
    which = (np.ones_like(old_S), old_S) if old_S.any() else (np.ones_like(old_S),)
    size = max(1, ROOM // pairs_NTSh[..., 0].size)
    away = []
    for start in range(0, len(turn_Ph), size):
        turned_hP = np.exp(1j * turn_Ph[start : start + size].T)
        wrong_PNTS = np.moveaxis((pairs_NTSh @ turned_hP).real, -1, 0)
        away.append([_turned(w, np.where(turned_S, wrong_PNTS, right_NTS)) for turned_S in which])
    yield from shift_P[np.concatenate(away, 1).argmin(1)].tolist()


def _turned(w: Whole, scores_PNTS: Array) -> Array:
    """[P]: how far the results are with these scores, before their scale."""
    masked = np.where(w.seen_TS, scores_PNTS / np.sqrt(w.k_SNH.shape[2]), -np.inf)
    power = np.exp(masked - masked.max(-1, keepdims=True))
    y_PNTH = power @ w.v_SNH.swapaxes(0, 1) / power.sum(-1)[..., None]
    away: Array = np.square(y_PNTH - w.got_TNH.swapaxes(0, 1)).sum((1, 2, 3))
    return away
