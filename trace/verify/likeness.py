"""What logits are that are not those of the last position: of another one, soft-maxed, in another order, unlike any.

apart(g, e) = |g - e| / |e| is at least the sine of the angle between the two. A direction by chance in V dimensions is
within an angle a < pi / 2 of a given one with a chance of at most sin(a)^(V - 1) / 2 (a cap's share of the sphere), so
random logits are within d of one of T positions with a chance below T d^(V - 1) / 2. Where the vocabulary is so small
that NEAR or FAR were passed more often than once in 1 / CHANCE, `within` has the distance at which they are not.

Logits of other tokens are no direction by chance: all tokens' have much in common. NEAR and FAR lie between what was
measured on Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), two prompts of 13 and 11 tokens, against float64: 8-bit activations
move the logits of a position by 0.011 to 0.056; those of two positions of a prompt are 0.22 to 3.2 apart (half of them
more than 0.5), of two prompts 0.30 to 3.0 (half of them more than 0.58).

Sorted, logits part by no more than as they stand (the rearrangement inequality). Two samples of one distribution part
more, by an amount that is seen in samples of the right logits themselves: of 20,000 pairs for each V of 16, 64 and 259,
normal or uniform, the nearest were 0.22 to 0.33 of the median pair apart. SAME is less. In so large a vocabulary as
Qwen2's it is an order of float32 engines alone: 8-bit activations part sorted logits by 0.5 / sqrt(V) and more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...quant.rms import ratio
from .span import BFLOAT16, FLOAT32, Array

NEAR = 0.1  # of the logits' RMS: what an engine's roundings may move them by
FAR = 0.25  # of it: what no rounding moves them by
SAME, MANY = 0.15, 16  # of what two samples part by: what sorted values may, of so many
DRAWS = 9  # pairs of samples
CHANCE = 1e-9  # that random logits are taken for a position's
TWICE = 2.0  # times nearer than the right position: by the triangle's inequality the two are as far apart, then


def likeness(got_V: NDArray[np.floating[Any]], exact_TV: Array) -> str | None:
    """What the logits of a dump are, if not those of float64's last position. exact_TV: float64's of every position."""
    got_V, last = np.asarray(got_V, np.float64), len(exact_TV) - 1
    one = BFLOAT16.u + got_V.size * FLOAT32.u  # rounded to 16 bits each, and summed: what their sum may be off by
    if got_V.size > 1 and (got_V >= 0).all() and abs(got_V.sum() - 1) < one:
        return "these are probabilities, the soft-max of logits: their sum is 1"
    if got_V.size > 1 and got_V.max() < 0 and abs(np.exp(got_V).sum() - 1) < one:
        return "these are log-probabilities, the log-soft-max of logits: the sum of their exponentials is 1"
    away_T = np.array([apart(got_V, exact_V) for exact_V in exact_TV])
    best = int(away_T.argmin())
    close, far = (within(d, got_V.size, len(exact_TV)) for d in (NEAR, FAR))
    if away_T[best] < close and TWICE * away_T[best] < away_T[last]:
        return f"these are the logits of position {best}, not of {last}"
    if away_T[last] < far:
        return None
    if got_V.size >= MANY and apart(np.sort(got_V), np.sort(exact_TV[last])) < SAME * parted(exact_TV[last]):
        return "these are the right values in another order of the vocabulary"
    r = np.corrcoef(got_V, exact_TV[last])[0, 1] if got_V.std() > 0 else 0.0
    return (
        f"these logits are no position's of these tokens (correlation {r:+.2f} with the right ones): "
        "of other tokens, of another model, or of an engine that is wrong or rounds much"
    )


def near(got_V: NDArray[np.floating[Any]], exact_V: Array) -> bool:
    """Whether logits are so near to a position's that no other one need be asked."""
    return apart(np.asarray(got_V, np.float64), exact_V) < within(NEAR, got_V.size, 1)


def within(most: float, size: int, positions: int) -> float:
    """The distance, at most so large, that random logits of so many tokens keep from each of so many positions."""
    return min(most, float((2 * CHANCE / positions) ** (1 / max(1, size - 1))))


def parted(exact_V: Array) -> float:
    """How far two samples of these values are apart when they are sorted."""
    rng = np.random.default_rng(0)
    pairs = (np.sort(rng.choice(exact_V, (2, exact_V.size)), axis=1) for _ in range(DRAWS))
    return float(np.median([apart(x_V, y_V) for x_V, y_V in pairs]))


def apart(got_V: Array, exact_V: Array) -> float:
    """RMS of the difference over the RMS of the second."""
    return ratio(float(np.linalg.norm(got_V - exact_V)), float(np.linalg.norm(exact_V)))
