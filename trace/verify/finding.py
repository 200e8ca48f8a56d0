"""What a verification finds: one finding per file of the dump, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .facts import First, FromTokens, Key, Note, Reason, Remark
from .fit import Fit
from .recipes.recipe import Recipe
from .samples import Samples

Verdict = Literal["exact", "reproduced", "within budget", "unexplained", "not judged"]
EXACT: Verdict = "exact"
REPRODUCED: Verdict = "reproduced"
BUDGET: Verdict = "within budget"
UNEXPLAINED: Verdict = "unexplained"
UNJUDGED: Verdict = "not judged"
VERDICTS = (EXACT, REPRODUCED, BUDGET, UNEXPLAINED, UNJUDGED)


@dataclass(frozen=True, slots=True)
class Budget:
    """source: what makes the error, for people. predicted: its RMS over the stage's RMS. ratio: observed over
    predicted."""

    source: str
    predicted: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Named:
    """A hypothesis that reproduces a stage. at: the stage that the mistake is in, which the dump may lack."""

    name: str
    sentence: str
    at: str
    left: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Axis:
    """How many of an axis's indices hold unexplained elements, of how many, and the first few."""

    count: int
    of: int
    which: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """An error over what is allowed, as powers of ten, in cells: rows of positions, everything else across.

    letters, shape: the stage's axes, positions first. A cell holds the worst of the elements that share it.
    """

    letters: tuple[str, ...]
    shape: tuple[int, ...]
    cells: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class WrongNumber:
    """The one number of a block that is wrong: a scale, a minimum, a weight. columns: first and last that hang on it.

    factor: what it counts times; None for a weight, which is off by `change`.
    """

    what: str
    columns: tuple[int, int]
    factor: float | None = None
    change: float | None = None


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row of a matrix that is not the model's, and its likeliest block of `size` columns (None: nothing tells).

    likely: of each block. number: what in the block is wrong, where one number explains it.
    """

    row: int
    matrix: str
    format: str
    size: int
    block: int | None
    confidence: float
    likely: tuple[float, ...]
    number: WrongNumber | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """Where the unexplained elements sit. axes: by the axis's name. worst: index of the largest error by axis.

    rows: of a matrix product that is wrong in few rows; None for other stages. samples: for pictures.
    """

    outside: int
    of: int
    axes: Mapping[str, Axis]
    worst: Mapping[str, int]
    picture: Picture
    rows: tuple[WrongRow, ...] | None
    samples: Samples | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one stage.

    observed: relative RMS of the dump against the plain float64 stage. fit: the dump against the recipe's span; None
    where nothing could be compared. recipe: None where none fits. blames: the file that is wrong instead of this one.
    """

    phase: int
    layer: int | None
    stage: str
    verdict: Verdict
    reason: Reason | None = None
    recipe: str | None = None
    observed: float | None = None
    fit: Fit | None = None
    notes: tuple[Note, ...] = ()
    where: Where | None = None
    hypotheses: tuple[Named, ...] = ()
    blames: Key | None = None
    budget: Budget | None = None

    @property
    def key(self) -> Key:
        return self.phase, self.layer, self.stage

    @property
    def explained(self) -> bool:
        return self.verdict in (EXACT, REPRODUCED, BUDGET)

    @property
    def left(self) -> float | None:
        """Relative RMS of the dump against the recipe."""
        return None if self.fit is None else self.fit.left

    @property
    def predicted(self) -> float | None:
        """What the recipe's rounding allows, or the budget expects, as a relative RMS."""
        return self.budget.predicted if self.budget else None if self.fit is None else self.fit.allowed

    @property
    def worst(self) -> float | None:
        """The largest error of any element over what it is allowed."""
        return None if self.fit is None else self.fit.worst

    @property
    def outside(self) -> int:
        """How many elements rounding does not explain."""
        return 0 if self.fit is None else self.fit.outside


@dataclass(frozen=True, slots=True)
class Verification:
    """findings in order of execution; recipe: the engine's arithmetic as the data show it.

    first: what to say before anything else; remarks: what to say after the verdict. operands: what its activations
    become before the products of this model. turned: whether the dump tells how RoPE's angle is made.
    """

    findings: tuple[Finding, ...]
    recipe: Recipe
    tokens: tuple[int, ...] | None
    first: tuple[First, ...] = ()
    remarks: tuple[Remark, ...] = ()
    operands: tuple[str, ...] = ()
    turned: bool = False

    @property
    def status(self) -> int:
        """0: all that could be judged is explained; 1: something is not; 2: nothing could be judged. Of logits by
        themselves: 0 where the tokens that they choose are float64's, 1 where one is not."""
        if any(f.verdict == UNEXPLAINED for f in self.findings):
            return 1
        if any(f.explained for f in self.findings):
            return 0
        chosen = [n.agrees for f in self.findings for n in f.notes if isinstance(n, FromTokens)]
        return 2 if not chosen else 0 if all(chosen) else 1
