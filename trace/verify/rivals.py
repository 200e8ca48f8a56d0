"""Stages that a loose arithmetic explains, and a mistake under a tight one explains better.

Attention without its rotation beside it: products that a compiler contracted leave each number of Q and K open to a
rounding of 16 bits, which is about what inverse frequencies are off by that were rounded to 16 bits themselves (a model
cast with all of its buffers). Spans hold both, so errors are held against each other, of each head at each position. An
engine that is right and contracts is nearer to the right frequencies in more than half of these, since what else is off
is a matter of chance; one that is wrong is nearer to the wrong ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..dump import Entry
from .arithmetic import whole_engines, wide
from .facts import Unjudgeable
from .finding import UNEXPLAINED, Finding
from .formulas import ROPE
from .hypotheses import rope
from .hypotheses.ways import turned
from .judge import Judge, shown
from .recipes.recipe import Recipe
from .span import FLOAT32, Array

LOOSE = "contracted"  # of Recipe.turn
TIGHT = ("rounded", "tables", "float32")
MISTAKES = tuple(h for h in rope.TABLE if h.name in ("rope-frequencies", "rope-angles"))
TRIES = 2  # stages in which no mistake was nearer, after which none is sought
CHANCE = 1e-9  # that a fair coin, thrown for each head at each position, shows as many


@dataclass(frozen=True, slots=True)
class Rival:
    """A stage, and the arithmetic and mistake that may explain it better. nearer, farther: heads and positions."""

    finding: Finding
    entry: Entry
    recipe: Recipe
    sentence: str
    nearer: int
    farther: int


def doubted(judge: Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings; those that a mistake explains better are unexplained, and their arithmetic is the mistake's."""
    rivals: list[Rival] = []
    hopeless = 0
    for f in findings:
        e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
        loose = None if e is None or hopeless > TRIES else loosely(judge, f, e)
        if e is not None and loose is not None:
            found = nearest(judge, f, e, loose, rivals)
            hopeless += found is None
            rivals += [] if found is None else [found]
    nearer, farther = sum(r.nearer for r in rivals), sum(r.farther for r in rivals)
    if nearer <= farther or by_chance(nearer, farther) > CHANCE:
        return list(findings)
    seen = {f.key: f for f in findings}
    for r in rivals:
        for recipe in judge.good[judge.group(r.entry)]:
            if recipe.turn == LOOSE:
                judge.forget(r.entry, recipe)
                break
        judge.rivals[r.finding.key] = r.recipe
        seen[r.finding.key] = replace(r.finding, verdict=UNEXPLAINED)
    for group in {judge.group(r.entry) for r in rivals}:
        places = [f for f in seen.values() if f.explained and judge.group(entry(judge, f)) == group]
        left = [r for r in judge.good[group] if any(judge.explains(entry(judge, f), r) for f in places)]
        if left:
            judge.good[group] = left
        else:
            del judge.good[group]
    return list(seen.values())


def by_chance(heads: int, tails: int) -> float:
    """How likely so many more heads of a fair coin are at most (Chernoff's bound)."""
    n = heads + tails
    return float(np.exp(-sum(k * np.log(2 * k / n) for k in (heads, tails) if k)))


def entry(judge: Judge, f: Finding) -> Entry:
    e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
    assert e is not None
    return e


def loosely(judge: Judge, f: Finding, e: Entry) -> Recipe | None:
    """The loose arithmetic by which alone a stage is explained that does not show how Q and K were turned."""
    if not f.explained or e.stage.kind not in ("scores", "mix"):
        return None
    spots = judge.involved(e)
    if not {*ROPE} <= {stage.name for layer, stage in spots if layer == e.layer}:
        return None
    good = [r for r in judge.good.get(judge.group(e), ()) if r.result is not FLOAT32]
    explaining = [r for r in good if judge.explains(e, r) is not None]
    if any(r.turn != LOOSE and not wide(spots, r) for r in explaining):
        return None
    return next((r for r in explaining if r.turn == LOOSE), None)


def nearest(judge: Judge, f: Finding, e: Entry, loose: Recipe, known: Sequence[Rival]) -> Rival | None:
    """The mistake that is nearer at most heads and positions than none under the same arithmetic, or the loose one.
    Once one is known, no other is looked at, and it counts where it is farther, too."""
    got = np.asarray(judge.evidence.values(e), np.float64)
    as_loose = off(got, judge.again(e, loose)[1].mid)
    best: Rival | None = None
    for recipe in [known[0].recipe] if known else recipes(judge, e, loose):
        right = np.minimum(as_loose, off(got, judge.again(e, recipe)[1].mid))
        for sentence, mid in by_mistake(judge, e, recipe):
            wrong = off(got, mid)
            told = Rival(f, e, recipe, sentence, int((wrong < right).sum()), int((wrong > right).sum()))
            if known and sentence == known[0].sentence:
                return told
            if not known and told.nearer - told.farther > (0 if best is None else best.nearer - best.farther):
                best = told
        if best is not None and not best.farther:
            break
    return best


def off(got: Array, mid: Array) -> Array:
    """How far each head is at each position, squared."""
    return np.square(got - mid).sum(-1)


def recipes(judge: Judge, e: Entry, loose: Recipe) -> Iterator[Recipe]:
    """The same without the looseness, engines that have a name, and, last, the same."""
    engines = whole_engines(judge.involved(e), [loose.result], judge.votes)
    named = [judge.meant(r) for r in engines if r.angle == loose.angle]
    told = set()
    for r in (*(replace(loose, turn=turn) for turn in TIGHT), *named, loose):
        if (shows := judge.shows(e, r)) not in told:
            told.add(shows)
            yield r


def by_mistake(judge: Judge, e: Entry, recipe: Recipe) -> Iterator[tuple[str, Array]]:
    """What each of the mistakes makes of the stage that explain it."""
    got = judge.evidence.values(e)
    site = judge.site(e, recipe)
    for h in MISTAKES:
        try:
            for (detail, _), whole in turned(h, site, None):
                span = shown(got, whole, e)
                if judge.compared(e, site, got, span).good:
                    yield h.sentence.format(detail), span.mid
        except Unjudgeable:
            continue
