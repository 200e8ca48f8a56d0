"""What logits are that are not those of the last position: of another one, soft-maxed, in another order, unlike any."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...quant.rms import ratio
from .span import Array

NEAR = 0.1  # of the logits' RMS: what an engine's roundings may move them by
FAR = 0.5  # of it: what no rounding moves them by
ONE = 1e-3  # from 1: a sum of probabilities that were rounded to 16 bits
SAME = 0.3  # of 1 / sqrt(V), by which the sorted values of two samples of one distribution part


def likeness(got_V: NDArray[np.floating[Any]], exact_TV: Array) -> str | None:
    """What the logits of a dump are, if not those of float64's last position. exact_TV: float64's of every position."""
    got_V, last = np.asarray(got_V, np.float64), len(exact_TV) - 1
    if (got_V >= 0).all() and abs(got_V.sum() - 1) < ONE and got_V.max() > 0:
        return "these are probabilities, the soft-max of logits: their sum is 1"
    if exact_TV[last].size > 1 and got_V.max() < 0 and abs(np.exp(got_V).sum() - 1) < ONE:
        return "these are log-probabilities, the log-soft-max of logits: the sum of their exponentials is 1"
    away_T = np.array([apart(got_V, exact_V) for exact_V in exact_TV])
    best = int(away_T.argmin())
    if away_T[last] < FAR:
        return None
    if away_T[best] < NEAR:
        return f"these are the logits of position {best}, not of {last}"
    if apart(np.sort(got_V), np.sort(exact_TV[last])) < SAME / np.sqrt(got_V.size):
        return "these are the right values in another order of the vocabulary"
    r = np.corrcoef(got_V, exact_TV[last])[0, 1] if got_V.std() > 0 else 0.0
    return (
        f"these logits are no position's of these tokens (correlation {r:+.2f} with the right ones): "
        "of other tokens, of another model, or of an engine that is wrong or rounds much"
    )


def apart(got_V: Array, exact_V: Array) -> float:
    """RMS of the difference over the RMS of the second."""
    return ratio(float(np.linalg.norm(got_V - exact_V)), float(np.linalg.norm(exact_V)))
