"""Which arithmetics a stage may have been computed with, and what of one it shows.

A recipe is composed: for each fact that bears on a stage, or on an input which the dump lacks, one of its values. What
the dump has shown so far comes first, then the engines that have a name, then what differs from the first in one fact,
or in two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np

from ..stages import BEFORE, Key, Stage
from .evidence import Evidence
from .formulas import codes
from .recipes.facts.fused import NONE
from .recipes.facts.table import FACTS
from .recipes.loaded import ROWS as LOADED
from .recipes.recipe import RECIPES, Recipe
from .site import Site
from .span import BFLOAT16, FLOAT16, FLOAT32, Float

TELLING = 16  # values of a few bits that are no accident: the bits that 16-bit formats lack are 0 in each
DEVIATIONS = 2  # facts in which a stage may differ from what the dump has shown so far
Votes = Counter[tuple[str, Any]]
Spot = tuple[int | None, Stage]


def involved(evidence: Evidence, key: Key) -> tuple[Spot, ...]:
    """The stage, and those of its inputs that the dump lacks, and theirs, each with its layer."""
    found: dict[tuple[int | None, str], Spot] = {}

    def visit(phase: int, layer: int | None, name: str) -> None:
        if (layer, name) in found:
            return
        stage = evidence.stage(name)
        found[layer, name] = layer, stage
        for given in stage.inputs:
            at: Key = (phase, *(evidence.entering(layer) if given == BEFORE else (layer, given)))
            if evidence.stored(at) is None:
                visit(*at)

    visit(*key)
    return tuple(found.values())


def narrowest(got: Any) -> Float:
    """The narrowest format that holds all these values."""
    for f in (BFLOAT16, FLOAT16):
        if f.holds(got.reshape(-1)[:64]) and f.holds(got):
            return f
    return FLOAT32


def rounded_to(kind: str, got: Any) -> Float | None:
    """The 16-bit format that a computed stage was rounded to, as its values tell by themselves: they have no bits
    beyond it. None where they have, or tell nothing: copies of the model's own numbers, zeros and powers of 2."""
    stored = None if kind == "look-up" else narrowest(got)
    if stored is None or stored is FLOAT32:
        return None
    fraction, _ = np.frexp(got)
    return stored if np.count_nonzero((fraction != 0) & (np.abs(fraction) != 0.5)) >= TELLING else None


def choices(spots: Sequence[Spot], result: Float, votes: Votes) -> dict[str, list[Any]]:
    """For each fact that bears on these stages, if the first is stored so: its values, the likeliest first."""
    offered = _offered(tuple(stage for _, stage in spots), result)
    if not votes:
        return {field: list(values) for field, values in offered.items()}
    return {field: sorted(values, key=lambda v: -votes[field, v]) for field, values in offered.items()}


@lru_cache(1024)
def _offered(stages: tuple[Stage, ...], result: Float) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for fact in FACTS:
        if fact.field == "fused":
            sets = {NONE: None}
            for stage in stages:
                more = dict.fromkeys(fact.values(stage, result))
                sets |= {one | other: None for one in sets for other in more} if len(sets) < 8 else more
            values: list[Any] = list(sets)
        else:
            values = list(dict.fromkeys(v for stage in stages for v in fact.values(stage, result)))
        if values and values != [NONE]:
            found[fact.field] = values
    return found


def candidates(spots: Sequence[Spot], stored: Float, votes: Votes, told: bool = False) -> Iterator[Recipe]:
    """The arithmetics that a stage with such values may have, the likeliest first; those whose span is wide, which may
    explain anything, after all others. told: whether the values tell by themselves how they were stored: then float32,
    whose span is wide where much is missing, has to wait for what is near to the likeliest in that format."""
    formats = [FLOAT32] if stored is FLOAT32 else sorted([FLOAT32, stored], key=lambda f: -votes["result", f.name])
    late = told and stored is not FLOAT32
    formats = [stored] if late else formats
    for distance in range(DEVIATIONS + 1):
        if distance == 1:
            yield from whole_engines(spots, formats, votes)
        if distance == DEVIATIONS and late:
            formats = [stored, FLOAT32]
            facts, first = tight(spots, FLOAT32, votes)
            yield from (r for n in range(distance) for r in deviating(first, facts, n))
        for result in formats:
            facts, first = tight(spots, result, votes)
            yield from deviating(first, facts, distance)
    for result in formats:
        facts, first = tight(spots, result, votes)
        offered = choices(spots, result, votes)
        wide = [(f.field, v) for f in FACTS for v in f.wide if v in offered.get(f.field, ())]
        for n in range(1, len(wide) + 1):
            for loose in combinations(wide, n):
                for distance in range(DEVIATIONS + 1):
                    others = {field: values for field, values in facts.items() if field not in dict(loose)}
                    yield from deviating(first | dict(loose), others, distance)


def tight(spots: Sequence[Spot], result: Float, votes: Votes) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The choices without the wide ones, but for what the dump has shown most; and the likeliest recipe."""
    wide = {f.field: f.wide for f in FACTS}
    facts = {
        field: [v for n, v in enumerate(values) if v not in wide[field] or (n == 0 and votes[field, v])]
        for field, values in choices(spots, result, votes).items()
    }
    usual = {field: v for field, v in likeliest(votes).items() if v not in wide[field]}
    return facts, {**usual, "result": result} | {field: values[0] for field, values in facts.items()}


def deviating(first: dict[str, Any], facts: dict[str, list[Any]], distance: int) -> Iterator[Recipe]:
    """What differs from the first in so many facts."""
    for others in combinations(facts, distance):
        for values in product(*(facts[field][1:] for field in others)):
            yield Recipe(**first | dict(zip(others, values, strict=True)))


def wide(spots: Sequence[Spot], recipe: Recipe) -> bool:
    """Whether a recipe leaves so much of these stages open that it might explain a mistake."""
    return any(
        getattr(recipe, f.field) in f.wide and any(f.values(stage, recipe.result) for _, stage in spots)
        for f in FACTS
        if f.wide
    )


def whole_engines(spots: Sequence[Spot], formats: Sequence[Float], votes: Votes) -> Iterator[Recipe]:
    """The engines that have a name: where much is missing, they differ from the likeliest in many facts at once."""
    for known in RECIPES:
        if known.result in formats:
            for angle in choices(spots, known.result, votes).get("angle", [known.angle]):
                yield replace(known, angle=angle)


def likeliest(votes: Votes) -> dict[str, Any]:
    """Of each fact that some stage has shown, but for what is fused with a stage, the value that most have."""
    best: dict[str, Any] = {}
    for (field, value), n in votes.items():
        if field not in ("result", "fused") and n > votes.get((field, best.get(field)), 0):
            best[field] = value
    return best


def shows(site: Site, spots: Sequence[Spot]) -> tuple[Any, ...]:
    """What of a recipe the stage shows: recipes that agree in it cannot be told apart here."""
    r = site.how
    facts = choices(spots, r.result, Votes())
    said: list[Any] = [r.result.name]
    for field in facts:
        if field == "fused":
            said.append(r.fused & frozenset().union(*facts[field]))
        elif field == "quantiser":
            formats = formats_of(site.evidence, spots)
            said += [tuple(map(r.operand, formats)), codes(site, formats) if len(spots) == 1 else r.quantiser]
        elif field == "requantised" and r.requantised is not None:
            taken = any(map(LOADED[r.requantised].takes, formats_of(site.evidence, spots)))
            said.append(r.requantised if taken else None)
        elif field != "scale" or r.mix == "stored" or spots[0][1].kind != "mix":  # in one piece, no score is rounded
            said.append(getattr(r, field))
    return tuple(said)


def formats_of(evidence: Evidence, spots: Sequence[Spot]) -> list[str]:
    """Of the matrices of these stages."""
    return [m.format for at, s in spots if s.kind == "product" for m in evidence.matrices(at, s.name)]
