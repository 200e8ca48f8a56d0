"""The output head, where no product of the model's makes the logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....quant.rms import rms
from ....quant.tensor import dequantize, take
from ..facts import Unjudgeable
from ..fit import few_of, fit_of, outside
from ..formulas import flat, input_of
from ..recipes import operations
from ..recipes.matrix import SLAB
from ..recipes.products import SIGMAS, product, summation
from ..recipes.scaled import WHOLE
from ..site import Site
from ..span import BFLOAT16, FLOAT16, FLOAT32, Array, Span
from .hypothesis import Hypothesis, Several, Variants, entering
from .masks import dumped

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

MANY = 16  # logits whose ranks are no accident
MOST, NEAREST = 4096, 40  # positions that are looked at; where that costs a whole product each
COLUMNS = 64  # logits that tell one position from another
ENOUGH = 3  # times as many logits as numbers in a state: half of them are more than it takes to find it
TIMES = 3.0  # what rounding predicts of logits that were foretold
RIDGE = 1e-13  # of the mean square: rows of tokens that nobody trained are one another's copies
SIZE = 0.1  # how far the RMS of a normalised state may seem from 1
NEARLY = 0.999  # a correlation of one and the same
ROUGH = 5.0  # standard errors of a correlation: 1 / sqrt(V)


@hypothesis("head-position", "the logits of position {}", "lm_head")
def head_position(s: Site) -> Several:
    """Those of any position of which the final norm can be had, before or behind, in this phase or in another; also
    where no right product of the dump tells what activations become before it."""
    got, last = dumped(s), s.pos[-1]
    for there in reversed(places(s)):
        for how in dict.fromkeys((s.how, *(replace(s.how, quantiser=q) for q in (None, "x86", "reference")))):
            for p in alike(there.under(how), got) if got is not None else ():
                if p != last:
                    yield f"{last} hold those of position {p}", replace(there.under(how), pos=(p,)).compute()


def places(s: Site) -> list[Site]:
    """The stage at all positions of which the dump has the head's input, or what it is computed from; by phases."""
    found = []
    for phase in s.evidence.phases:
        stored = s.evidence.stored((phase, None, "final_norm"))
        for pos in (s.evidence.rows[phase], () if stored is None else s.evidence.positions(stored)):
            there = replace(s, phase=phase, pos=pos[-MOST:], given={}, used={}, recomputed={})
            try:
                if pos:
                    input_of(there)
                    found.append(there)
                    break
            except Unjudgeable:
                continue
    return found


def alike(s: Site, got: np.ndarray) -> list[int]:
    """Positions whose first logits are the dump's; the nearest ones where a recipe looks at more than these."""
    r, (m,), x = s.recipe, s.matrices(), flat(input_of(s))
    if got.shape != m.shape[:1]:
        return []
    if r.quantiser in WHOLE or r.requantised is not None:
        return list(s.pos[-NEAREST:])
    few = operations.rounded(r, product(r, x, m.head(COLUMNS)))
    wrong_TO = np.asarray(outside(np.broadcast_to(got[: few.mid.shape[1]], few.mid.shape), few))
    return [s.pos[i] for i in np.flatnonzero(~wrong_TO.any(1))]


@hypothesis("head-run", "the logits are {}", "lm_head")
def head_run(s: Site) -> Several:
    """No position's, but this head's: a product W h of another state h. There are more logits than numbers in h, so a
    part of them is enough to find h, which must then foretell others."""
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape or not np.isfinite(got).all():
        return
    if abs(correlation(got, span.mid)) > NEARLY or any(fit_of(got, other).good for _, other in head_position(s)):
        return
    state = state_of(s, got)
    if state is None:
        return
    held = [(there.pos, flat(input_of(there)).mid) for there in places(s)]
    pos, x_TD = tuple(p for some, _ in held for p in some), np.concatenate([x for _, x in held])
    y_PO = np.vstack((state, x_TD)) @ s.matrices()[0].head(len(state)).rows(0, len(state)).T
    near = [abs(correlation(y_PO[0], y_O)) for y_O in y_PO[1:]]
    gain_D = s.evidence.gain(None, "final_norm_D")
    size = float(np.sqrt(np.mean(np.square(state / np.where(gain_D == 0, np.inf, gain_D)))))
    if max(near) > NEARLY:
        said = f"those of position {pos[int(np.argmax(near))]}, not of {s.pos[-1]}, by an arithmetic that is not known"
    elif abs(size - 1) > SIZE:
        said = f"this head's, but of an input that no final norm makes: RMS {size:.3g} before its gain, not 1"
    elif set(pos) >= set(range(s.pos[-1] + 1)):
        said = "of another run: this head made them, of no position of these tokens"
    else:
        said = "of another position, or of another run: this head made them, of no position that the dump has"
    yield said, Span.point(got)


def state_of(s: Site, got: np.ndarray) -> Array | None:
    """The state of which the head makes these logits; None if there is none, or if so few logits tell of none.

    By least squares from half of at most 4 D rows, spread over the vocabulary, held against the other half: their RMS
    error must be what roundings of the logits make of it. Logits of any other origin part from every W h by
    sqrt(1 - D / V) of their size or so: 0.8 at V = 3 D.
    """
    (m,), r = s.matrices(), s.recipe
    V, D = m.shape
    if V < ENOUGH * D or r.requantised is not None or m.adapters:
        return None
    rows = few_of(V, min(V, 4 * D))
    parts = np.array_split(rows, max(1, len(rows) * D // SLAB))
    w_RD: Array = np.concatenate([dequantize(take(m.tensor, part)) for part in parts]).astype(np.float64)
    w_RD = w_RD if r.weights is None else r.weights.round(w_RD)
    y_R = np.asarray(got, np.float64)[rows]
    (fit_w, fit_y), (told_w, told_y) = ((w_RD[n::2], y_R[n::2]) for n in (0, 1))
    gram_DD = fit_w.T @ fit_w
    gram_DD += RIDGE * np.trace(gram_DD) / D * np.eye(D)
    state_D = np.linalg.solve(gram_DD, fit_w.T @ fit_y)
    y = told_w @ state_D
    sums = summation(D, np.square(y), np.square(told_w) @ np.square(state_D), kept=r.sums) / SIGMAS
    noise = np.sqrt(np.mean(np.square(sums)) + np.mean(np.square(r.result.u * told_y)) / 3)
    more = np.sqrt(1 + D / (len(fit_w) - D))  # what the noise of the fitted rows does to the state
    return state_D if rms(told_y - y) < TIMES * more * noise else None


@hypothesis("head-unset", "the output head is unset, or another model's{}", "lm_head")
def head_unset(s: Site) -> Several:
    """No formula makes these logits, but their lack of any correlation tells them from every wrong reading of the right
    matrix. Its last rows may still be right: so no part of the rows may correlate either."""
    got, mid = dumped(s), s.compute().mid
    if got is None or got.shape != mid.shape or not np.isfinite(got).all() or len(mid) < 128:
        return
    pieces = [(got, mid), *zip(np.array_split(got, 4), np.array_split(mid, 4), strict=True)]
    found = [correlation(a, b) for a, b in pieces]
    if got.std() > 0 and all(abs(r) < ROUGH / np.sqrt(len(a)) for r, (a, _) in zip(found, pieces, strict=True)):
        ordered = head_order(s)
        if (isinstance(ordered, Span) and fit_of(got, ordered).good) or state_of(s, got) is not None:
            return
        (m,) = s.matrices()
        few = m.shape[0] < ENOUGH * m.shape[1]
        who = ", or its logits are of other tokens: they" if few else ": its logits"
        yield f"{who} have nothing to do with the right ones (correlation {found[0]:+.2f})", Span.point(got)


@hypothesis("head-softmax", "the file holds {}, not the logits", "lm_head")
def head_softmax(s: Site) -> Several:
    """Of the logits as they are, or as they were stored in 16 bits. A log-soft-max is off by no more than the worst of
    its logits, twice, and by its rounding."""
    exact, u = s.compute(), s.recipe.result.u
    for span in (exact, exact.map(BFLOAT16.round), exact.map(FLOAT16.round)):
        mid = span.mid - span.mid.max() - np.log(np.exp(span.mid - span.mid.max()).sum())
        room = 2 * float(span.radius.max()) + 4 * FLOAT32.u * (1 + np.abs(span.mid).max() + np.abs(mid).max())
        room = room + u * np.abs(mid)
        yield "log-probabilities, the log-soft-max of the logits", Span(mid, mid - room, mid + room)
        lo, hi = np.exp(mid - room) * (1 - 2 * u), np.exp(mid + room) * (1 + 2 * u)
        yield "probabilities, the soft-max of the logits", Span(np.exp(mid), lo, hi)


@hypothesis("head-order", "the logits are right, but the vocabulary is in another order", "lm_head")
def head_order(s: Site) -> Variants:
    """Each value stands where its rank is in the dump: all of them are there, to rounding."""
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape or not np.isfinite(got).all() or len(got) < MANY:
        return None
    place = np.empty(len(got), np.intp)
    place[np.argsort(got, kind="stable")] = np.argsort(span.mid, kind="stable")
    return span.shaped(lambda v: v[place])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / size if size else 1.0
