"""The output head, where no product of the model's makes the logits."""

from __future__ import annotations

import numpy as np

from ..fit import fit_of
from ..site import Site
from ..span import BFLOAT16, FLOAT16, FLOAT32, Span
from .hypothesis import Hypothesis, Several, Variants, entering
from .masks import dumped

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

MANY = 16  # logits whose ranks are no accident
ROUGH = 5.0  # standard errors of a correlation: 1 / sqrt(V)


@hypothesis("head-unset", "the output head is unset, or another model's, or its logits are of other tokens: they have "
            "nothing to do with the right ones (correlation {})", "lm_head")  # fmt: skip
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
        if isinstance(ordered, Span) and fit_of(got, ordered).good:
            return
        yield f"{found[0]:+.2f}", Span.point(got)


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
