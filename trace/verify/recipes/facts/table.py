"""Every fact, those that differ most between engines first."""

from __future__ import annotations

from . import angle, cache, fused, held, mixing, norm, operands, requantised, scale, sigmoid, sums, turn, weights
from .fact import Fact

FACTS: tuple[Fact, ...] = (
    operands.FACT,
    mixing.FACT,
    weights.FACT,
    requantised.FACT,
    cache.FACT,
    held.FACT,
    norm.FACT,
    turn.FACT,
    scale.FACT,
    sigmoid.FACT,
    fused.FACT,
    sums.FACT,
    angle.FACT,
)
