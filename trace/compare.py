"""Two stages side by side: how far apart, where, and by what measure. In float64, a slab at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from ..quant.rms import ratio
from .dump import Entry

_SLAB = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One of the largest differences: flat index, both values."""

    index: int
    a: float
    b: float

    @property
    def size(self) -> float:
        return abs(self.a - self.b)


@dataclass(frozen=True, slots=True)
class Comparison:
    """b against the reference a.

    elements: compared; of attn_scores only those up to the query's own key, for what stands after it is a fill.
    rms_a, rms_diff: root mean squares of a and of a - b. cosine: None where just one side is all zero.
    mismatched: elements that are NaN or an infinity on one side only, or different infinities; first_mismatch: where.
    nan_both: NaN on both sides, which counts as equal, as equal infinities do; neither enters the figures.
    top: the largest |a - b|, largest first, earlier first among equals; top[0] is the maximum.
    """

    elements: int
    equal: bool
    rms_a: float
    rms_diff: float
    cosine: float | None
    mismatched: int
    first_mismatch: int | None
    nan_both: int
    top: tuple[Difference, ...]

    @property
    def relative(self) -> float:
        """RMS of the difference / RMS of the reference; 0 if equal, infinite for a mismatch or a reference of zeros."""
        if self.mismatched:
            return inf
        return ratio(self.rms_diff, self.rms_a)

    @property
    def max_abs(self) -> float:
        """The largest |a - b| of finite elements."""
        return self.top[0].size if self.top else 0.0


@np.errstate(all="ignore")  # a NaN, quiet or signalling, is counted
def compare(a: Entry, b: Entry, top: int = 10) -> Comparison:
    """Compares two entries of one shape, without holding either in memory."""
    queries = _queries(a, b)
    n = -a.shape[0] * sum(max(0, a.shape[2] - 1 - p) for p in queries) if queries else 0
    mismatched = nan_both = 0
    aa = bb = ab = dd = 0.0
    same, first = True, None
    best: list[Difference] = []
    for start, x, y in _slabs(a, b, queries):
        n += x.size
        equal = (x == y) | (np.isnan(x) & np.isnan(y))
        same = same and bool(equal.all())
        usable = np.isfinite(x) & np.isfinite(y)
        nan_both += int((np.isnan(x) & np.isnan(y)).sum())
        wrong = np.flatnonzero(~usable & ~equal)
        if wrong.size:
            first = start + int(wrong[0]) if first is None else first
            mismatched += wrong.size
        p, q = np.where(usable, x, 0).astype(np.float64), np.where(usable, y, 0).astype(np.float64)
        d = p - q
        aa, bb, ab, dd = aa + float(p @ p), bb + float(q @ q), ab + float(p @ q), dd + float(d @ d)
        best = _largest(best, start, p, q, top)
    cosine = ab / sqrt(aa * bb) if aa and bb else (1.0 if aa == bb else None)
    return Comparison(
        elements=n,
        equal=same,
        rms_a=sqrt(aa / n) if n else 0.0,
        rms_diff=sqrt(dd / n) if n else 0.0,
        cosine=cosine,
        mismatched=mismatched,
        first_mismatch=first,
        nan_both=nan_both,
        top=tuple(best),
    )


def _largest(
    best: list[Difference], start: int, p: NDArray[np.float64], q: NDArray[np.float64], top: int
) -> list[Difference]:
    """The `top` largest differences of those so far and of this slab's."""
    size = np.abs(p - q)
    floor = best[-1].size if len(best) == top else 0.0
    found = np.flatnonzero(size > floor)
    if found.size > top:
        order = np.lexsort((found, -size[found]))[:top]
        found = found[order]
    new = [Difference(start + int(i), float(p[i]), float(q[i])) for i in found]
    return sorted(best + new, key=lambda d: (-d.size, d.index))[:top]


def _queries(a: Entry, b: Entry) -> tuple[int, ...] | None:
    """The query positions of attn_scores, which ends at them; None for a stage that is compared as a whole."""
    if a.stage.name != "attn_scores" or len(a.shape) != 3:
        return None
    _, T, S = a.shape
    return a.positions or b.positions or tuple(range(S - T, S))


def _slabs(
    a: Entry, b: Entry, queries: tuple[int, ...] | None
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """(flat start, a, b) in order; where a key stands after its query both sides are zero."""
    x, y = (e.values().reshape(-1) for e in (a, b))
    if queries is None:
        for start in range(0, x.size, _SLAB):
            yield start, x[start : start + _SLAB], y[start : start + _SLAB]
        return
    N, T, S = a.shape
    rows = max(1, _SLAB // S)
    for row in range(0, N * T, rows):
        query = np.array([queries[i % T] for i in range(row, min(row + rows, N * T))])
        seen = (np.arange(S) <= query[:, None]).reshape(-1)
        part = slice(row * S, row * S + seen.size)
        yield part.start, np.where(seen, x[part], np.float32(0)), np.where(seen, y[part], np.float32(0))


@dataclass(frozen=True, slots=True)
class Choice:
    """What two logit vectors would choose. kl: KL(softmax a || softmax b) in nats; None where a logit is not finite."""

    argmax_a: int | None
    argmax_b: int | None
    top5_overlap: int
    kl: float | None


@np.errstate(all="ignore")
def choice(a: Entry, b: Entry) -> Choice:
    """Compares two lm_head entries as distributions of the next token."""
    x, y = (e.values().reshape(-1).astype(np.float64) for e in (a, b))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        best = [None if np.isnan(v).any() else int(np.argmax(v)) for v in (x, y)]
        return Choice(best[0], best[1], 0, None)
    log_p, log_q = (v - v.max() - np.log(np.exp(v - v.max()).sum()) for v in (x, y))
    five = [set(np.argsort(-v, kind="stable")[:5].tolist()) for v in (x, y)]
    kl = max(0.0, float(np.exp(log_p) @ (log_p - log_q)))
    return Choice(int(np.argmax(x)), int(np.argmax(y)), len(five[0] & five[1]), kl)


def place(e: Entry, index: int, sizes: Mapping[str, int] | None = None) -> str:
    """Where a flat index is, in words: position (absolute where known), head, index; Q, K or V of a stacked row."""
    if len(e.shape) != len(e.stage.letters):
        return f"index {index}"
    words = []
    for letter, i in zip(e.stage.letters, np.unravel_index(index, e.shape), strict=True):
        if letter == "T":
            words.append(f"position {i if e.positions is None else e.positions[i]}")
        elif letter == "S":
            words.append(f"key {i}")
        elif letter == "V":
            words.append(f"token {i}")
        elif letter in ("N", "K"):
            words.append(f"{'head' if letter == 'N' else 'kv head'} {i}")
        elif letter == "E" and sizes is not None:
            H, N, K = sizes["H"], sizes["N"], sizes["K"]
            head = int(i) // H
            part, head = ("Q", head) if head < N else ("K", head - N) if head < N + K else ("V", head - N - K)
            words.append(f"{part} head {head}, index {int(i) % H}")
        else:
            words.append(f"index {i}")
    return ", ".join(words)
