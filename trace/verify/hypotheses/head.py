"""The output head, where no product of the model's makes the logits."""

from __future__ import annotations

import numpy as np

from ..site import Site
from ..span import Span
from .hypothesis import Hypothesis, Several, entering
from .masks import dumped

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

ROUGH = 5.0  # standard errors of a correlation: 1 / sqrt(V)


@hypothesis("head-unset", "the output head is unset, or another model's: its logits have nothing to do with the right "
            "ones (correlation {})", "lm_head")  # fmt: skip
def head_unset(s: Site) -> Several:
    """No formula makes these logits, but their lack of any correlation tells them from every wrong reading of the right
    matrix. Its last rows may still be right: so no part of the rows may correlate either."""
    got, mid = dumped(s), s.compute().mid
    if got is None or got.shape != mid.shape or not np.isfinite(got).all() or len(mid) < 128:
        return
    pieces = [(got, mid), *zip(np.array_split(got, 4), np.array_split(mid, 4), strict=True)]
    found = [correlation(a, b) for a, b in pieces]
    if got.std() > 0 and all(abs(r) < ROUGH / np.sqrt(len(a)) for r, (a, _) in zip(found, pieces, strict=True)):
        yield f"{found[0]:+.2f}", Span.point(got)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / size if size else 1.0
