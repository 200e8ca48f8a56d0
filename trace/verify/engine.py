"""The engine behind a dump: one arithmetic for each kind of stage, or the exception is a finding (named: naming.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..stages import Key
from .arithmetic import choices, whole_engines, wide
from .finding import EXACT, REPRODUCED, UNEXPLAINED, Finding, Named
from .fit import Fit
from .judge import Group, Judge
from .naming import Judged, alone, named, product_name, words_of
from .recipes.facts.table import FACTS
from .recipes.recipe import Recipe
from .span import FLOAT32

ODD = "odd-arithmetic"  # the name of what only another arithmetic explains
WIDER = 3.0  # times what the tightest allows: more is no explanation of a place that the tightest does not explain
LOOSER = 16.0  # the same, of what leaves open how the whole engine does it


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many places of a group a recipe explains, how many to the bit, how likely its format is, and what it allows
    there."""

    recipe: Recipe
    count: int
    exact: int
    likely: int
    allowed: float


def settled(judge: Judge, findings: Sequence[Finding]) -> tuple[list[Finding], Recipe]:
    """The findings, each under the arithmetic of its group, and the engine's recipe, with its name.

    A fact holds for all stages of a kind. One that only another arithmetic explains (a residual that is kept in half in
    one layer) is a mistake of that place.
    """
    wrong = {f.key for f in findings if f.verdict == UNEXPLAINED}
    groups = groups_of(judge, findings, wrong)
    seen = {f.key: f for f in findings}
    for group, places in groups.items():
        if group in judge.good:
            best = agreed(judge, group, [p for p in places if not p.spoilt] or places)
            seen |= {p.finding.key: under(judge, p, best) for p in places}
    for group, places in groups.items():
        if group in judge.good and unlike(judge, group, groups):
            seen |= {p.finding.key: odd(judge, p) for p in places if seen[p.finding.key].explained}
    held = {g: [p for p in places if seen[p.finding.key].explained] for g, places in groups.items() if g in judge.good}
    recipe, fitting = named(judge, {g: places for g, places in held.items() if places})
    for group, places in held.items():
        own = judge.good[group][0]
        name = recipe.name if group in fitting else alone(judge, places, own, recipe)
        for p in places:
            seen[p.finding.key] = replace(seen[p.finding.key], recipe=name)
    for key, parts in judge.parts.items():
        called = dict.fromkeys(f"{product_name(r, fmt, recipe)} for {fmt}" for r, fmt in parts)
        seen[key] = replace(seen[key], recipe=", ".join(called))
    return list(seen.values()), recipe


def groups_of(judge: Judge, findings: Iterable[Finding], wrong: Collection[Key]) -> dict[Group, list[Judged]]:
    """What was judged, but for what is explained part by part."""
    groups: dict[Group, list[Judged]] = {}
    for f in findings:
        e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
        if e is not None and f.verdict in (EXACT, REPRODUCED, UNEXPLAINED) and f.key not in judge.parts:
            spoilt = any((f.phase, f.layer, name) in wrong for name in judge.evidence.stage(f.stage).inputs)
            groups.setdefault(judge.group(e), []).append(Judged(f, e, spoilt))
    return groups


def agreed(judge: Judge, group: Group, places: Sequence[Judged]) -> Recipe:
    """The arithmetic that explains most of a group; it is put first of those that explain some. One that allows much
    more than another, which explains half of the group or more, might explain anything.

    Where much is missing, a place may be explained by several, and what was taken for the first need not hold for all:
    then the engines that have a name are tried, too.
    """
    known = judge.good[group]
    explained = [p.entry for p in places if p.finding.explained]
    others = whole_engines(judge.involved(places[0].entry), [r.result for r in known], judge.votes)
    first = known[0]
    fields = ("result", *(choices(judge.involved(places[0].entry), first.result, Counter()).keys() - {"fused"}))
    like_it = [r for r in known if all(getattr(r, f) == getattr(first, f) for f in fields)]
    together = replace(first, fused=first.fused.union(*(r.fused for r in like_it)))  # each stage has its own neighbours
    found: list[Agreement] = []
    whole: Agreement | None = None
    for recipe in dict.fromkeys((*known, together, *others)):
        fits = [fit for e in explained if (fit := judge.explains(e, recipe)) is not None]
        allowed = float(np.median([fit.allowed for fit in fits])) if fits else np.inf
        exact = sum(fit.exact for fit in fits)
        found.append(Agreement(recipe, len(fits), exact, judge.votes["result", recipe.result.name], allowed))
        if len(found) == 1 and len(fits) == len(explained) and not wide(judge.involved(places[0].entry), recipe):
            if recipe.result is FLOAT32 or allowed <= WIDER * recipe.result.u:
                break
            whole = found[0]
    best = known[0]
    if whole is not None:
        # In 16 bits no other arithmetic has every bit of half of the places by chance. Of two that have, the one that
        # leaves far less open is meant: what the other allows (products that may be contracted) would hide a mistake.
        sharp = [a for a in found if 0 < len(explained) <= 2 * a.exact]
        if whole in sharp:
            sharp = [a for a in sharp if WIDER * a.allowed < whole.allowed]
        best = max(sharp, key=lambda a: (a.exact, -a.allowed), default=whole).recipe
    elif explained:
        most = [a for a in found if 2 * a.count >= len(explained)] or found
        tight = min((a.allowed for a in most if a.count), default=np.inf)
        best = max(
            (a for a in most if fair(judge, places[0], a, tight, len(explained))), key=lambda a: (a.count, a.likely)
        ).recipe
    judge.good[group] = [best, *(r for r in known if r != best)]
    return best


def fair(judge: Judge, p: Judged, a: Agreement, tight: float, places: int) -> bool:
    """Whether a recipe allows no more than it may beside the tightest: something, or what an open question of a whole
    engine (in what blocks its attention takes the keys) leaves open, if it explains every place."""
    wider = LOOSER if a.count == places and wide(judge.involved(p.entry), a.recipe) else WIDER
    return a.allowed <= wider * max(tight, a.recipe.result.u)


def under(judge: Judge, p: Judged, best: Recipe) -> Finding:
    """The finding under the arithmetic of its group."""
    f, fit = p.finding, judge.explains(p.entry, best)
    if f.hypotheses or f.key in judge.rivals:
        return f  # an overflow is one, whoever computes so; and what a mistake explains better
    if fit is not None:
        return replace(f, verdict=EXACT if fit.exact else REPRODUCED, fit=fit)
    if f.explained and p.spoilt and (looser := loosened(judge, p, best)) is not None:
        return replace(f, fit=looser)
    if not f.explained or p.spoilt:
        return replace(f, verdict=UNEXPLAINED)
    if len({layer for layer, _ in judge.involved(p.entry)}) > 1:
        return f  # a layer is missing on the way: the span is too wide to tell one arithmetic from another
    return odd(judge, p)


def loosened(judge: Judge, p: Judged, best: Recipe) -> Fit | None:
    """How well the same arithmetic explains a place if what a whole engine leaves open (in what blocks its attention
    takes the keys) is left open."""
    for r in judge.good[judge.group(p.entry)]:
        tight = replace(r, **{f.field: getattr(best, f.field) for f in FACTS if getattr(r, f.field) in f.wide})
        near = judge.again(p.entry, best)[2].allowed * LOOSER
        if tight == best and (fit := judge.explains(p.entry, r)) is not None and fit.allowed <= near:
            return fit
    return None


def odd(judge: Judge, p: Judged) -> Finding:
    """The finding of a place that is computed as no other of its kind."""
    f = p.finding
    others = [r for r in judge.good[judge.group(p.entry)] if judge.explains(p.entry, r)]
    said = words_of(judge, [p], others[0], others[0])
    assert f.fit is not None
    named = Named(ODD, f"it is computed otherwise than its like: {said}", f.stage, f.fit.left, f.fit.allowed)
    return replace(f, verdict=UNEXPLAINED, hypotheses=(named,))


def unlike(judge: Judge, group: Group, groups: Mapping[Group, Sequence[Judged]]) -> bool:
    """Whether a product of the whole model, which has no like, takes operands or sums as no product of a layer does:
    engines leave their output head as it is in the file, or treat it as the rest."""
    if group[:2] != ("product", "whole"):
        return False

    def takes(r: Recipe) -> tuple[tuple[Any, ...], ...]:
        return tuple((r.operand(weight_format), r.requantised, r.sums) for weight_format in dict.fromkeys(group[3]))

    layers = {g: judge.good[g][0] for g in groups if g[:2] == ("product", "layer") and g in judge.good}
    own = judge.good[group][0]
    if not layers or takes(own) in {takes(r) for r in (Recipe(), *layers.values())}:
        return False
    for g, r in layers.items():  # where much is missing, the layers' may be explained by less than they take
        like_it = replace(r, quantiser=own.quantiser, requantised=own.requantised, sums=own.sums)
        if not all(judge.explains(p.entry, like_it) for p in groups[g] if p.finding.explained):
            return True
    return False
