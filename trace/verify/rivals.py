"""Stages that a loose arithmetic explains, and a mistake under a tight one explains better.

Attention without its rotation beside it: products that a compiler contracted leave each number of Q and K open to a
rounding of 16 bits, which is about what inverse frequencies are off by that were rounded to 16 bits themselves (a model
cast with all of its buffers). Spans hold both, so errors are held against each other, of each head at each position. An
engine that is right and contracts is nearer to the right frequencies in more than half of these, since what else is off
is a matter of chance; one that is wrong is nearer to the wrong ones.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..dump import Entry
from .arithmetic import whole_engines, wide
from .facts import FrequenciesUntold, Unjudgeable
from .finding import UNEXPLAINED, Finding
from .formulas import ROPE
from .hypotheses import rope
from .hypotheses.ways import turned
from .judge import Judge, shown
from .recipes.recipe import Recipe
from .span import BFLOAT16, FLOAT16, FLOAT32, Array

LOOSE = "contracted"  # of Recipe.turn
TIGHT = ("rounded", "tables", "float32")
MISTAKES = tuple(h for h in rope.TABLE if h.name in ("rope-frequencies", "rope-angles"))
TRIES = 3  # stages in which every mistake is looked at; in the others, only the one that was nearest in these
CHANCE = 1e-9  # that a fair coin, thrown for each head at each position, shows as many
IN_A_ROW = 30  # throws, as unlikely: no other arithmetic is looked at then
OTHER = {BFLOAT16: FLOAT16, FLOAT16: BFLOAT16}  # buffers are cast with the weights, so to the engine's own format
Candidate = tuple[Recipe, str]  # an arithmetic, and a mistake in a sentence


@dataclass(frozen=True, slots=True)
class Rival:
    """A stage, and the arithmetic and mistake that may explain it better. nearer, farther: heads and positions."""

    finding: Finding
    entry: Entry
    nearer: int
    farther: int

    @property
    def lead(self) -> int:
        return self.nearer - self.farther


def doubted(judge: Judge, findings: Sequence[Finding]) -> tuple[list[Finding], FrequenciesUntold | None]:
    """The findings; those that a mistake explains better are unexplained, and their arithmetic is the mistake's. And
    what is to be said where the dump tells neither the mistake nor that there is none."""
    candidate, rivals, tried = contest(judge, findings)
    if candidate is None:
        return list(findings), None
    nearer, farther = sum(r.nearer for r in rivals), sum(r.farther for r in rivals)
    if by_chance(nearer, farther) * tried > CHANCE:
        return list(findings), FrequenciesUntold(candidate[1])
    if nearer <= farther:
        return list(findings), None
    rivals = [r for r in rivals if r.lead > 0]
    seen = {f.key: f for f in findings}
    for r in rivals:
        for recipe in judge.good[judge.group(r.entry)]:
            if recipe.turn == LOOSE:
                judge.forget(r.entry, recipe)
                break
        judge.rivals[r.finding.key] = candidate[0]
        seen[r.finding.key] = replace(r.finding, verdict=UNEXPLAINED)
    for group in {judge.group(r.entry) for r in rivals}:
        places = [f for f in seen.values() if f.explained and judge.group(entry(judge, f)) == group]
        left = [r for r in judge.good[group] if any(judge.explains(entry(judge, f), r) for f in places)]
        if left:
            judge.good[group] = left
        else:
            del judge.good[group]
    return list(seen.values()), None


def contest(judge: Judge, findings: Sequence[Finding]) -> tuple[Candidate | None, list[Rival], int]:
    """The mistake that is nearest, the stages that it may explain, and of how many it was chosen."""
    tallies: dict[Candidate, list[Rival]] = {}
    best: Candidate | None = None
    tried = stages = 0
    for f in findings:
        e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
        if e is None or (stages >= TRIES and best is None):
            continue
        loose = loosely(judge, f, e)
        if loose is not None:
            stages += 1
            known = [best] if stages > TRIES and best is not None else list(tallies)
            for candidate, told in compared(judge, f, e, loose, known):
                tallies.setdefault(candidate, []).append(told)
            if stages <= TRIES:
                tried = len(tallies)
                best = max(tallies, key=lambda c: sum(r.lead for r in tallies[c]), default=None)
    return best, [] if best is None else tallies[best], tried


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


def compared(
    judge: Judge, f: Finding, e: Entry, loose: Recipe, known: Collection[Candidate]
) -> Iterator[tuple[Candidate, Rival]]:
    """At how many heads and positions each mistake that explains the stage is nearer than none under the same
    arithmetic, or the loose one; and at how many it is farther. known: the only ones to look at, if there are any."""
    got = np.asarray(judge.evidence.values(e), np.float64)
    as_loose = off(got, judge.again(e, loose)[1].mid)
    for recipe in dict.fromkeys(r for r, _ in known) if known else recipes(judge, e, loose):
        right = np.minimum(as_loose, off(got, judge.again(e, recipe)[1].mid))
        everywhere = False
        for sentence, mid in by_mistake(judge, e, recipe):
            if not known or (recipe, sentence) in known:
                wrong = off(got, mid)
                told = Rival(f, e, int((wrong < right).sum()), int((wrong > right).sum()))
                everywhere |= told.nearer >= IN_A_ROW and not told.farther
                yield (recipe, sentence), told
        if everywhere and not known:
            break


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
                others = OTHER[recipe.result].name in re.findall(r"\w+", detail)  # float16 is in bfloat16, too
                if not others and judge.compared(e, site, got, span).good:
                    yield h.sentence.format(detail), span.mid
        except Unjudgeable:
            continue
