"""What a verification says: one finding per file of the dump, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .evidence import Key
from .fit import Fit
from .recipes.recipe import Recipe

VERDICTS = ("exact", "reproduced", "within budget", "unexplained", "not judged")
EXACT, REPRODUCED, BUDGET, UNEXPLAINED, UNJUDGED = VERDICTS


@dataclass
class Finding:
    """What is known of one stage.

    observed: relative RMS of the dump against the plain float64 stage; left: against the recipe's; predicted: what the
    recipe's rounding allows (or the budget expects). worst: the largest error of any element over what it is allowed.
    blames: the file that is wrong instead of this stage. outside of size: elements that rounding does not explain;
    equal: bit-equal ones. recipe: None where none fits.
    """

    phase: int
    layer: int | None
    stage: str
    verdict: str
    recipe: str | None = None
    observed: float | None = None
    left: float | None = None
    predicted: float | None = None
    worst: float | None = None
    outside: int = 0
    equal: int = 0
    size: int = 0
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    hypotheses: list[dict[str, Any]] = field(default_factory=list)
    blames: Key | None = None
    budget: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.phase, self.layer, self.stage

    @property
    def explained(self) -> bool:
        return self.verdict in (EXACT, REPRODUCED, BUDGET)

    def state(self, fit: Fit, verdict: str, recipe: str | None) -> None:
        """Takes over the numbers of a fit."""
        self.verdict, self.recipe = verdict, recipe
        self.left, self.predicted, self.worst = fit.left, fit.allowed, fit.worst
        self.outside, self.equal, self.size = fit.outside, fit.equal, fit.size


@dataclass
class Verification:
    """findings in order of execution; recipe: the engine's arithmetic as the data show it.

    first: sentences to say before any other; remarks: what to say after the verdict. operands: what its activations
    become before the products of this model. turned: whether the dump tells how RoPE's angle is made.
    """

    findings: list[Finding]
    recipe: Recipe
    tokens: list[int] | None
    first: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    turned: bool = False

    @property
    def status(self) -> int:
        """0: all that could be judged is explained; 1: something is not; 2: nothing could be judged."""
        if any(f.verdict == UNEXPLAINED for f in self.findings):
            return 1
        return 0 if any(f.explained for f in self.findings) else 2
