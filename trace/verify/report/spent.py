"""What an engine's arithmetic costs, as it is told: as lines, for JSON, and as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...plural import plural


@dataclass(frozen=True, slots=True)
class Cost:
    """What is lost by one fact, or by all. divergence: KL(float64 || with it) in nats, of each position. flips:
    positions whose likeliest token is another, with float64's gap between the two. perplexity: of the tokens, without
    and with it; None for a single token.
    """

    fact: str
    divergence: tuple[float, ...]
    flips: tuple[tuple[int, float], ...]
    perplexity: tuple[float, float] | None

    def sentence(self) -> str:
        mean, most = float(np.mean(self.divergence)), max(self.divergence)
        said = f"{self.fact}: KL {mean:.1e} nats on average, {most:.1e} at most"
        told = [f"position {at}, top-2 gap {gap:.2g}" for at, gap in self.flips[:3]]
        more = " ..." if len(self.flips) > 3 else ""
        said += f"; {len(self.flips)} of {plural(len(self.divergence), 'first choice')} flipped"
        said += f" ({'; '.join(told)}{more})" if told else ""
        if self.perplexity is None:
            return said
        without, there = self.perplexity
        return f"{said}; perplexity {there:.4g}, {there - without:+.2g} beside {without:.4g}"

    def as_json(self) -> dict[str, Any]:
        return {
            "fact": self.fact, "kl": float(np.mean(self.divergence)), "kl_max": max(self.divergence),
            "positions": len(self.divergence), "flips": [{"position": at, "gap": gap} for at, gap in self.flips],
            "perplexity": None if self.perplexity is None else self.perplexity[1],
            "perplexity_without": None if self.perplexity is None else self.perplexity[0],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spent:
    """The costs of each fact and of all together, and what is to be said of the keys. whole: whether the dump shows
    all of the engine's arithmetic."""

    costs: tuple[Cost, ...]
    keys: str | None
    whole: bool = True

    def lines(self) -> list[str]:
        """For a terminal, below a report."""
        if not self.costs:
            if not self.whole:
                return ["", "Cost: nothing of what this dump shows, which is not all that the engine computes with."]
            return ["", "Cost: nothing, the engine computes in float32 what float64 tells from it by rounding only."]
        head = "Cost, of float64's logits from the same tokens:"
        return ["", head, *(f"    {c.sentence()}" for c in self.costs), *([self.keys] if self.keys else [])]

    def as_json(self) -> dict[str, Any]:
        return {"cost": [c.as_json() for c in self.costs], "keys": self.keys}
