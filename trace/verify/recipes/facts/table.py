"""Every fact, those that differ most between engines first."""

from __future__ import annotations

from . import angle, cache, fused, mixing, norm, operands, scale, sigmoid, turn, weights
from .fact import Fact

FACTS: tuple[Fact, ...] = (
    operands.FACT,
    mixing.FACT,
    weights.FACT,
    cache.FACT,
    norm.FACT,
    turn.FACT,
    scale.FACT,
    sigmoid.FACT,
    fused.FACT,
    angle.FACT,
)
