"""Stages that a loose arithmetic explains, and a mistake under a tight one explains better.

Attention without its rotation beside it: products that a compiler contracted leave each number of Q and K open to a
rounding of 16 bits, which is about what inverse frequencies are off by that were rounded to 16 bits themselves (a model
cast with all of its buffers). The two part in size: the spans hold both, but the errors that are left are those of the
right explanation, or larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..dump import Entry
from .arithmetic import whole_engines, wide
from .facts import Unjudgeable
from .finding import UNEXPLAINED, Finding
from .fit import Fit
from .formulas import ROPE
from .hypotheses.table import explain
from .judge import Judge
from .recipes.recipe import Recipe
from .span import FLOAT32

LOOSE = "contracted"  # of Recipe.turn
TIGHT = ("rounded", "tables", "float32")
MISTAKES = frozenset({"rope-frequencies", "rope-angles"})
SMALLER = 0.8  # of the error: what the mistake must leave at most
SURE = 20.0  # nats of likelihood by which it must be better, over all such stages


@dataclass(frozen=True, slots=True)
class Rival:
    """A stage, and the arithmetic and mistake that may explain it better. gain: in nats."""

    finding: Finding
    entry: Entry
    recipe: Recipe
    sentence: str
    gain: float


def doubted(judge: Judge, findings: Sequence[Finding]) -> list[Finding]:
    """The findings; those that a mistake explains better are unexplained, and their arithmetic is the mistake's."""
    rivals: list[Rival] = []
    hopeless = 0
    for f in findings:
        e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
        loose = None if e is None else loosely(judge, f, e)
        if e is None or loose is None or f.fit is None or hopeless > 2:
            continue
        found = better(judge, f, e, loose, rivals)
        hopeless += found is None
        if found is not None:
            rivals.append(found)
    if sum(r.gain for r in rivals) < SURE:
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
        places = [f for f in seen.values() if f.explained and (e := entry(judge, f)) and judge.group(e) == group]
        left = [r for r in judge.good[group] if any(judge.explains(entry(judge, f), r) for f in places)]
        if left:
            judge.good[group] = left
        else:
            del judge.good[group]
    return list(seen.values())


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


def better(judge: Judge, f: Finding, e: Entry, loose: Recipe, known: Sequence[Rival]) -> Rival | None:
    """The best of the mistakes, if it is better than the loose arithmetic; once one is known, that one is looked at."""
    fit = judge.explains(e, loose)
    assert fit is not None
    best: tuple[float, str, Recipe] | None = None
    for recipe in [known[0].recipe] if known else recipes(judge, e, loose):
        for name, left in left_by(judge, e, recipe):
            if (not known or name == known[0].sentence) and (best is None or left < best[0]):
                best = left, name, recipe
        if best is not None and best[0] <= tiny(fit):
            break
    if best is None or best[0] > SMALLER * fit.left:
        return None
    left, name, recipe = best
    return Rival(f, e, recipe, name, scores_of(judge, e) * float(np.log(fit.left / max(left, tiny(fit)))))


def tiny(fit: Fit) -> float:
    """What is left if one of the values is off by as little as the others may be."""
    return max(fit.allowed, 1e-12) / np.sqrt(max(1, fit.size))


def recipes(judge: Judge, e: Entry, loose: Recipe) -> Iterator[Recipe]:
    spots = judge.involved(e)
    engines = whole_engines(spots, [loose.result], judge.votes)
    named = [judge.meant(r) for r in engines if r.angle == loose.angle]
    told = set()
    for r in (*(replace(loose, turn=turn) for turn in TIGHT), *named, loose):
        if (shown := judge.shows(e, r)) not in told:
            told.add(shown)
            yield r


def left_by(judge: Judge, e: Entry, recipe: Recipe) -> Iterator[tuple[str, float]]:
    """What each of the mistakes leaves that explain the stage."""
    try:
        site = judge.site(e, recipe)
        for named in explain(site, judge.evidence.values(e), MISTAKES):
            yield named.sentence, named.left
    except Unjudgeable:
        return


def scores_of(judge: Judge, e: Entry) -> int:
    """How many numbers of the stage hang on the angles: scores of a query and a key at another position."""
    return judge.evidence.config.num_attention_heads * sum(judge.evidence.positions(e))
