"""Choosing the next token from logits: pure functions on one row of logits and a generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose: temperature 0 is greedy; top_k 0 and top_p 1 cut nothing. Raises BadInput for senseless values."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature {self.temperature} is not a number of at least 0; 0 is greedy")
        if self.top_k < 0:
            raise BadInput(f"top-k {self.top_k} is below 0; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top-p {self.top_p} is not above 0 and at most 1; 1 keeps every token")
        if self.seed < 0:
            raise BadInput(f"seed {self.seed} is below 0")


def greedy(logits_V: NDArray[np.floating]) -> int:
    """The first of the largest logits."""
    return int(np.argmax(logits_V))


def sample(logits_V: NDArray[np.floating], s: Sampling, generator: np.random.Generator) -> int:
    """Draws from softmax(logits / temperature) cut to the top k, then to the nucleus top_p (Holtzman et al. 2020).

    logits_V: finite, of any size; the temperature may be the smallest float. Of the nucleus, the token that reaches
    the mass is the last.
    """
    if s.temperature == 0:
        return greedy(logits_V)
    order = np.argsort(-logits_V, kind="stable")[: s.top_k or None]
    below = logits_V[order].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):  # so far below the first that its probability is 0
        p = np.exp((below - below[0]) / s.temperature)
    if s.top_p < 1:
        mass = np.cumsum(p)
        p = p[: int(np.searchsorted(mass, s.top_p * mass[-1])) + 1]
    return int(order[generator.choice(len(p), p=p / p.sum())])
