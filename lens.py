"""The logit lens: what a model would say if it ended after a layer (nostalgebraist, interpreting GPT: the logit lens,
2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engine.load import Opened, load
from .trace.show.view import View

RESIDUALS = ("embedding", "post_attn_residual", "post_ffn_residual")  # the stages that a final norm could read
AT_ONCE = 8  # positions: the head is decoded for each such group, whose logits are in memory together


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


def lens(views: Sequence[View], model: Opened, top: int) -> Iterator[list[Guess]]:
    """Position by position, what each layer says: final norm and head of its residual, in float64.

    views: one of RESIDUALS, a layer each, and the same rows of it; whatever engine computed them.
    """
    m = load(model, "reference", "f64")
    w, k = m.weights, m.kernels
    x_LTD = np.stack([v.by_head[0] for v in views]).astype(np.float64)
    L, T, D = x_LTD.shape
    for start in range(0, T, AT_ONCE):
        x_RD = x_LTD[:, start : start + AT_ONCE].reshape(-1, D)
        with np.errstate(all="ignore"):  # of what is not finite
            logits_RV = k.linear(k.rms_norm(x_RD, w.final_norm_D, w.config.rms_norm_eps), w.lm_head)
        logits_LTV = logits_RV.reshape(L, -1, logits_RV.shape[-1])
        for t in range(logits_LTV.shape[1]):
            position, last = views[0].positions[views[0].rows[start + t]], int(np.argmax(logits_LTV[-1, t]))
            yield [
                guess(v.entry.layer, position, x_V, top, last) for v, x_V in zip(views, logits_LTV[:, t], strict=True)
            ]


def guess(layer: int | None, position: int, logits_V: NDArray[np.float64], top: int, last: int) -> Guess:
    """Of one layer. last: the token whose rank is asked for."""
    if not np.isfinite(logits_V).all():
        return Guess(layer, position, (), None)
    p_V = np.exp(logits_V - logits_V.max())
    p_V /= p_V.sum()
    order = np.argsort(-logits_V, kind="stable")[:top]
    ranked = tuple(Ranked(int(i), float(logits_V[i]), float(p_V[i])) for i in order)
    return Guess(layer, position, ranked, 1 + int(np.count_nonzero(logits_V > logits_V[last])))
