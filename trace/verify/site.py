"""Site: one stage of one layer in one phase of a dump, and what it is recomputed from.

Every stage is a formula of other stages' values. A value is taken from the dump where the dump has it; where it has
not, it is recomputed in its turn, from the nearest values that are there, and the site remembers so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.config import Config
from ..stages import BEFORE
from .evidence import Evidence
from .facts import Key, KeysMissing, PositionsMissing, TooMuchMissing, Unjudgeable
from .fit import few_of
from .formulas import ROPE, as_heads, formula
from .recipes.facts.fused import PRODUCT
from .recipes.matrix import FileMatrix
from .recipes.products import Beside
from .recipes.recipe import Recipe
from .span import FLOAT32, Array, Span, joined

Values = NDArray[np.floating[Any]]
LAYERS = 1  # that may be missing as a whole on the way to a stage: the error bound grows with each


class Keeps(Protocol):
    """Where values that the dump lacks are kept (kept.py)."""

    def value(self, site: Site, /) -> Span: ...


@dataclass(frozen=True)
class Site:
    """A stage to recompute. pos: absolute positions of its rows. given: inputs to use instead of the dump's.

    beside: see formulas.py; of this stage alone.
    how: the recipe of the stage that is judged, which may be another one, on the way to which this is recomputed.
    used, recomputed: what `compute` read from the dump, and what it had to make up for (filled as it goes).
    """

    evidence: Evidence
    kept: Keeps
    phase: int
    layer: int | None
    stage: str
    pos: tuple[int, ...]
    how: Recipe
    judged: str
    given: Mapping[str, Span] = field(default_factory=dict)
    missing_layers: int = 0
    beside: Beside | None = None
    used: dict[Key, None] = field(default_factory=dict)
    recomputed: dict[tuple[int, int | None, str, tuple[int, ...]], None] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.evidence.config

    @property
    def pos_T(self) -> NDArray[np.int32]:  # noqa: N802
        return np.array(self.pos, np.int32)

    @property
    def see_T(self) -> NDArray[np.int32]:  # noqa: N802
        """The last position that each sees."""
        return self.evidence.sees(self.phase, self.pos)

    @property
    def recipe(self) -> Recipe:
        """How this stage is computed: as the judged one, but stored as its own kind is, or not stored at all."""
        if self.stage == self.judged:
            return self.how
        if self.how.mix != "stored" and self.evidence.stage(self.stage).kind in ("scores", "soft-max"):
            return replace(self.how, result=FLOAT32, scale="inside")  # attention in one piece rounds neither
        kept = FLOAT32 if self.goes_on else self.evidence.stored_as(self.stage, self.how.result)
        return self.how if kept is self.how.result else replace(self.how, result=kept)

    def under(self, recipe: Recipe) -> Site:
        return replace(self, how=recipe, judged=self.stage, used={}, recomputed={})

    def having(self, **given: Span) -> Site:
        """The same stage with other inputs."""
        return replace(self, given={**self.given, **given}, used={}, recomputed={})

    def at(
        self, stage: str, layer: int | None = -1, pos: tuple[int, ...] | None = None, phase: int | None = None
    ) -> Site:
        """Another stage, of the same layer, positions and phase where not said. What is given holds for these."""
        layer = self.layer if layer == -1 else layer
        phase = self.phase if phase is None else phase
        pos = self.pos if pos is None else pos
        given = self.given if (layer, phase, pos) == (self.layer, self.phase, self.pos) else {}
        return replace(self, stage=stage, layer=layer, pos=pos, phase=phase, given=given, beside=None)

    def compute(self) -> Span:
        """The stage under the recipe. Raises Unjudgeable."""
        return formula(self)

    def value(self) -> Span:
        """The stage's own value at `pos`: the dump's, or recomputed. Raises Unjudgeable."""
        key = (self.phase, self.layer, self.stage)
        entry = self.evidence.stored(key)
        if entry is not None:
            rows = {p: i for i, p in enumerate(self.evidence.positions(entry))}
            if all(p in rows for p in self.pos):
                self.used[key] = None
                index = [rows[p] for p in self.pos]
                axis = entry.stage.letters.index("T") if "T" in entry.stage.letters else 0
                values = self.evidence.values(entry)
                if "S" in entry.stage.letters:
                    values = values[:, :, : self.keys(values.shape[2])]
                return Span.point(values if index == list(range(len(rows))) else np.take(values, index, axis))
        if self.missing_layers > LAYERS:
            raise Unjudgeable(TooMuchMissing((self.layer, self.stage)))
        self.recomputed[(*key, self.pos)] = None
        return self.kept.value(self)

    def keys(self, held: int) -> int:
        """How many keys the last of these positions has, of those that a file holds: a wider one is filled up."""
        last = int(self.see_T.max())
        if held <= last:
            raise Unjudgeable(KeysMissing((self.layer, self.stage), held, last))
        return last + 1

    def input(self, stage: str) -> Span:
        """Another stage of this layer, at these positions; BEFORE for the residual that enters it."""
        if stage == BEFORE:
            return self.before()
        if stage in self.given:
            return self.given[stage]
        return self.at(stage).taken()

    def input_of_all(self) -> Span:
        """The only input of this stage, at every position of the phase: they share a scale."""
        (name,) = self.evidence.stage(self.stage).inputs
        rows = self.evidence.rows[self.phase]
        if name == BEFORE or name in self.given or rows[-1] != self.pos[-1]:
            return self.input(name)
        return self.at(name, pos=rows).taken()

    def unrounded(self) -> Span:
        """The only input of this stage, a residual, as it was before it was stored."""
        (name,) = self.evidence.stage(self.stage).inputs
        whole = frozenset({"post_ffn_residual" if name == BEFORE else name})
        return replace(self, how=replace(self.how, fused=self.how.fused | whole)).input(name)

    def taken(self) -> Span:
        """The stage's value as the judged one takes it: as it was stored, or, in one operation with it, as computed."""
        return self.compute() if self.goes_on else self.value()

    @property
    def goes_on(self) -> bool:
        """Whether the stage goes into the judged one as it was computed, not as it was stored."""
        fused = self.how.fused
        return self.stage in fused or (PRODUCT in fused and self.stage in self.evidence.biased)

    def before(self) -> Span:
        """The residual that enters this layer (or the final norm)."""
        if BEFORE in self.given:
            return self.given[BEFORE]
        layer, stage = self.evidence.entering(self.layer)
        if stage == "embedding":
            return self.at(stage).value()
        return replace(self.at(stage, layer=layer), missing_layers=self.missing_layers + 1).taken()

    def qkv(self, part: int) -> Span:
        """Queries and keys as they are rotated, or values (part 0, 1, 2): [T, N or K, H]."""
        name = self.evidence.valued if part == 2 else self.evidence.stage(ROPE[part]).inputs[0]
        return as_heads(self.config, self.input(name), part)

    def so_far(self, stage: str) -> Span:
        """Keys (k_post_rope) or values (Evidence.valued) of every position up to the last that is seen: [S, K, H]."""
        if f"all {stage}" in self.given:
            return self.given[f"all {stage}"]
        S, rows, reached = int(self.see_T.max()) + 1, [], 0
        for phase in (p for p in self.evidence.phases if p <= self.phase):
            pos = tuple(p for p in self.evidence.rows[phase] if reached <= p < S)
            if pos and pos == tuple(range(reached, reached + len(pos))):
                if phase == self.phase and stage in self.given and set(pos) <= set(self.pos):
                    index = [self.pos.index(p) for p in pos]
                    span = self.given[stage].shaped(partial(np.take, indices=index, axis=0))
                else:
                    span = self.at(stage, pos=pos, phase=phase).taken()
                rows.append(as_heads(self.config, span, 2))
                reached = pos[-1] + 1
        if reached < S:
            what = "keys" if stage == "k_post_rope" else "values"
            own = self.evidence.rows[self.phase][0]
            last = own - 1 if own > reached else S - 1
            raise Unjudgeable(PositionsMissing(what, stage, reached, last))
        return joined(rows, 0)

    def at_few(self, got: Values, few: int) -> tuple[Site, Values]:
        """The stage and what the dump holds of it, at a few of its positions, the last among them; at all of them if
        there are no more, or if the dump has others."""
        letters = self.evidence.stage(self.stage).letters
        T = letters.index("T") if "T" in letters else None
        if T is None or len(self.pos) <= few or got.shape[T] != len(self.pos):
            return self, got
        rows = few_of(len(self.pos), few)
        return replace(self, pos=tuple(self.pos[t] for t in rows), used={}, recomputed={}), np.take(got, rows, T)

    def matrices(self) -> list[FileMatrix]:
        return self.evidence.matrices(self.layer, self.stage)

    def gain(self, name: str) -> Array:
        return self.evidence.gain(self.layer, name)
