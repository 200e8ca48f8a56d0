"""What logits say: the likeliest tokens, and where another one stands among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Ranked:
    """A token, its logit and its probability."""

    id: int
    logit: float
    probability: float


@dataclass(frozen=True, slots=True)
class Guess:
    """What a layer's residual says at a position. top: the likeliest tokens, likeliest first, equal ones in order of
    id; none where a logit is not finite. rank: from 1, of the token that the last of the layers finds likeliest there.
    """

    layer: int | None
    position: int
    top: tuple[Ranked, ...]
    rank: int | None


def guess(layer: int | None, position: int, logits_V: NDArray[np.float64], top: int, last: int) -> Guess:
    """Of one layer. last: the token whose rank is asked for."""
    if not np.isfinite(logits_V).all():
        return Guess(layer, position, (), None)
    p_V = np.exp(logits_V - logits_V.max())
    p_V /= p_V.sum()
    order = np.argsort(-logits_V, kind="stable")[:top]
    ranked = tuple(Ranked(int(i), float(logits_V[i]), float(p_V[i])) for i in order)
    return Guess(layer, position, ranked, 1 + int(np.count_nonzero(logits_V > logits_V[last])))
