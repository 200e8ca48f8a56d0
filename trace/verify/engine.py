"""The engine behind a dump: one arithmetic for each kind of stage, or the exception is a finding; and its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...quant.rms import ratio
from ..dump import Entry
from ..stages import Key
from .arithmetic import choices, formats_of, likeliest, narrowest, whole_engines, wide
from .finding import EXACT, REPRODUCED, UNEXPLAINED, Finding, Named
from .fit import Fit, few_of
from .judge import Group, Judge
from .recipes.facts import requantised
from .recipes.facts.table import FACTS
from .recipes.recipe import RECIPES, SO_FAR, UNTOLD, Recipe
from .span import FLOAT16, FLOAT32, Float

KINDS = {
    "look-up": "embedding", "norm": "norms", "product": "products", "bias": "biased products", "rotation": "RoPE",
    "scores": "scores", "soft-max": "soft-max", "mix": "attention", "activation": "SiLU", "gate": "gates",
    "residual": "residuals",
}  # fmt: skip
HEAD = "output head"

# What the name of an engine claims, in 32 and in 16 bits, beside the format of its results; and what that may be.
CLAIMS: tuple[Mapping[str, Sequence[Any]], ...] = (
    {"quantiser": (None, "x86", "int16"), "attention": (FLOAT32, FLOAT16)},
    {"norm": ("twice", "once")},
)
PLACES = 4  # of a group at which a fact is looked for


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


@dataclass(frozen=True, slots=True)
class Judged:
    """spoilt: an input of it is wrong, so that it says nothing of how it was computed."""

    finding: Finding
    entry: Entry
    spoilt: bool


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
        # In 16 bits no other arithmetic has every bit of half of the places by chance.
        sharpest = max(found, key=lambda a: a.exact)
        best = (sharpest if 2 * whole.exact < len(explained) <= 2 * sharpest.exact else whole).recipe
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
    if f.hypotheses:
        return f  # an overflow is one, whoever computes so
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

    layers = [judge.good[g][0] for g in groups if g[:2] == ("product", "layer") and g in judge.good]
    return bool(layers) and takes(judge.good[group][0]) not in {takes(r) for r in (Recipe(), *layers)}


# -- names ------------------------------------------------------------------------------------------------------------


def named(judge: Judge, groups: Mapping[Group, Sequence[Judged]]) -> tuple[Recipe, set[Group]]:
    """The engine's recipe, called by a known engine's name if that explains all, or all but products by weights of some
    formats; else by its facts. And the groups that it explains.
    """
    angle = likeliest(judge.votes).get("angle", "product")
    mixed: list[tuple[int, Recipe, set[Group]]] = []
    found: list[Recipe] = []
    for known in sorted(RECIPES, key=lambda known: -backing(judge, known)):
        engine = judge.meant(replace(known, angle=angle))
        fitting = {g for g, places in groups.items() if all(judge.explains(p.entry, engine) for p in places)}
        lacking = set(groups) - fitting
        if not lacking:
            found.append(engine)
        elif any(g[0] == "product" and g[1] == "layer" for g in fitting) and all(g[0] == "product" for g in lacking):
            mixed.append((sum(len(groups[g]) for g in fitting), engine, fitting))
    if found:
        sure = certain(found) and shown(judge, groups, found[0])
        return (found[0] if sure else composed(judge, groups)), set(groups)
    if mixed:
        most = max(n for n, *_ in mixed)
        best = [(engine, fitting) for n, engine, fitting in mixed if n == most]
        sure = certain([engine for engine, _ in best]) and shown(judge, groups, best[0][0])
        return best[0] if sure else (composed(judge, groups), set(groups))
    return reloading(judge, groups, angle) or composed(judge, groups), set(groups)


def certain(engines: Sequence[Recipe]) -> bool:
    """Whether engines that explain the same stages hold keys and values alike, and in 16 bits take biases and attention
    alike: the name of one tells these, and a dump without attention shows nothing of them."""
    return len({(r.attention, *((r.mix, r.fused) if r.result is not FLOAT32 else ())) for r in engines}) == 1


def shown(judge: Judge, groups: Mapping[Group, Sequence[Judged]], engine: Recipe) -> bool:
    """Whether a dump shows what an engine's name claims: in what its results are stored, and that none of CLAIMS is
    another. A name would tell of stages that nobody dumped."""
    claims = CLAIMS[engine.result is not FLOAT32]
    return any(stores(judge, p, engine) for places in groups.values() for p in some(places)) and all(
        refuted(judge, groups, engine, field, [v for v in values if v != getattr(engine, field)])
        for field, values in claims.items()
    )


def some(places: Sequence[Judged]) -> list[Judged]:
    return [places[i] for i in few_of(len(places), PLACES)]


def stores(judge: Judge, p: Judged, recipe: Recipe) -> bool:
    """Whether a place shows that results are stored as a recipe has them: a copy of the model's own 16-bit numbers is
    the same in 32 bits."""
    if recipe.result is FLOAT32:
        return narrowest(judge.evidence.values(p.entry)) is FLOAT32
    return fails(judge, p, replace(recipe, result=FLOAT32, weights=None))


def refuted(
    judge: Judge, groups: Mapping[Group, Sequence[Judged]], engine: Recipe, field: str, others: Sequence[Any]
) -> bool:
    """Whether the fact bears on some stage, and each other value of it, where that makes a difference, is one that some
    stage is not explained by."""
    bears = [
        p
        for places in groups.values()
        for p in some(places)
        if field in choices(judge.involved(p.entry), engine.result, Counter())
    ]
    for value in others:
        other = replace(engine, **{field: value})
        apart = [p for p in bears if judge.shows(p.entry, other) != judge.shows(p.entry, engine)]
        if apart and not any(fails(judge, p, other) for p in sorted(apart, key=lambda p: len(judge.involved(p.entry)))):
            return False
    return bool(bears)


def fails(judge: Judge, p: Judged, recipe: Recipe) -> bool:
    """Whether a recipe does not explain a place; most that do not fail at a few positions or columns."""
    fit = judge.glimpsed(p.entry, recipe, judge.evidence.values(p.entry)) if len(judge.involved(p.entry)) == 1 else None
    return (fit is not None and not fit.good) or judge.explains(p.entry, recipe) is None


def reloading(judge: Judge, groups: Mapping[Group, Sequence[Judged]], angle: str) -> Recipe | None:
    """A known engine of 16 bits that explains all, but that it makes other matrices when it loads the file."""
    how = likeliest(judge.votes).get("requantised")
    for known in RECIPES if how is not None else ():
        engine = replace(known, angle=angle, requantised=how)
        if known.result is not FLOAT32 and all(judge.explains(p.entry, engine) for g in groups.values() for p in g):
            return replace(engine, name=f"{known.name}; {requantised.FACT.words(how, known.result)}")
    return None


def backing(judge: Judge, known: Recipe) -> int:
    """How many stages show the facts of an engine: the one that many show is tried first."""
    return sum(n for (field, value), n in judge.votes.items() if field != "result" and getattr(known, field) == value)


def composed(judge: Judge, groups: Mapping[Group, Sequence[Judged]]) -> Recipe:
    """The facts of all groups together."""
    results = Counter[Float]()
    for g, places in groups.items():
        own = judge.good[g][0]
        results[own.result] += len(places) if any(stores(judge, p, own) for p in some(places)) else 0
    facts = likeliest(judge.votes)
    fused = frozenset().union(*(judge.good[g][0].fused for g in groups)) if groups else frozenset()
    whole = Recipe(**{**facts, "fused": fused})
    if not results.total():
        return replace(whole, name=UNTOLD)
    whole = replace(whole, result=max(results, key=lambda f: results[f]))
    said: dict[str, float] = {}
    near = [g for g, places in groups.items() if not far(judge, places[0])]
    for g in near or groups:
        places = groups[g]
        own = told(judge, places, judge.good[g][0], whole)
        said |= dict.fromkeys((c for c in clauses(judge, places, own, whole) if c not in said), 0.0)
        for clause, more in open_questions(judge, places, own):
            said[clause] = max(said.get(clause, 0.0), more)
    words = [f"{clause}: span {more:.0f} x wider" if more > 1.5 else clause for clause, more in said.items()]
    return replace(whole, name="; ".join([whole.result.name, *words]) if words else f"{whole.result.name}{SO_FAR}")


def far(judge: Judge, p: Judged) -> bool:
    """Whether a whole block, from a norm to its residual, is missing on the way to a stage: its span is too wide then
    to tell one arithmetic from another, beside stages that are near to their inputs."""
    kinds = {stage.kind for _, stage in judge.involved(p.entry)[1:]}
    return {"norm", "residual"} <= kinds


def open_questions(judge: Judge, places: Sequence[Judged], recipe: Recipe) -> Iterator[tuple[str, float]]:
    """What a recipe leaves open of some stages, in words, and how many times more that allows."""
    shown = choices(judge.involved(places[0].entry), recipe.result, Counter())
    for fact in FACTS:
        value = getattr(recipe, fact.field)
        if fact.field in shown and value in fact.wide:
            ratios = []
            for p in places[:3]:
                fits = [judge.again(p.entry, r)[2] for r in (recipe, replace(recipe, **{fact.field: fact.wide[value]}))]
                ratios.append(ratio(fits[0].allowed, fits[1].allowed))
            yield fact.words(value, recipe.result), float(np.median(ratios))


def words_of(judge: Judge, places: Sequence[Judged], recipe: Recipe, whole: Recipe) -> str:
    return "; ".join([recipe.result.name, *clauses(judge, places, told(judge, places, recipe, whole), whole)])


def clauses(judge: Judge, places: Sequence[Judged], recipe: Recipe, whole: Recipe) -> Iterator[str]:
    """What the recipe of some stages says, in an engine that stores most of its results as `whole` does."""
    stages = judge.involved(places[0].entry)
    if recipe.result is not whole.result:
        kind, scope = stages[0][1].kind, stages[0][1].scope
        yield f"{HEAD if (kind, scope) == ('product', 'whole') else KINDS[kind]} in {recipe.result.name}"
    yield from words_in(recipe, choices(stages, recipe.result, Counter()), formats_of(judge.evidence, stages))


def words_in(recipe: Recipe, shown: Collection[str], formats: Sequence[str] = ()) -> list[str]:
    """The words of a recipe's facts, of those that are shown and say something, for weights of these formats."""
    said = [f.words(f.amounts(getattr(recipe, f.field), formats), recipe.result) for f in FACTS if f.field in shown]
    return [words for words in said if words]


def told(judge: Judge, places: Sequence[Judged], recipe: Recipe, whole: Recipe) -> Recipe:
    """The recipe that says least and explains the same stages: what a dump does not show is not said of its engine.

    A row of 16-bit weights is the same in a 32-bit embedding; a layer that is missing leaves room for several engines.
    A value says less if its words begin the other's.
    """

    def explained(r: Recipe) -> bool:
        return all(judge.explains(p.entry, r) for p in places)

    spots = judge.involved(places[0].entry)
    stored = replace(recipe, result=whole.result)
    recipe = stored if recipe.result is not whole.result and explained(stored) else recipe
    shown = choices(spots, recipe.result, Counter())
    for known in whole_engines(spots, [recipe.result], judge.votes) if words_in(recipe, shown) else ():
        part = set(words_in(known, shown)) < set(words_in(recipe, shown))
        recipe = known if part and explained(known) else recipe
    for name in sorted(recipe.fused):
        less = replace(recipe, fused=recipe.fused - {name})
        recipe = less if "fused" in shown and explained(less) else recipe
    for fact in FACTS:
        said = fact.words(getattr(recipe, fact.field), recipe.result)
        for value in shown.get(fact.field, ()) if said and fact.field != "fused" else ():
            fewer, less = fact.words(value, recipe.result), replace(recipe, **{fact.field: value})
            if fewer != said and said.startswith(fewer) and explained(less):
                recipe, said = less, fewer
    return recipe


def alike(engine: Recipe) -> list[Recipe]:
    """The engines that have a name, those that keep keys and values as this one first."""
    return [engine, *sorted(RECIPES, key=lambda known: known.attention is not engine.attention)]


def alone(judge: Judge, places: Sequence[Judged], own: Recipe, engine: Recipe) -> str:
    """The name for some stages of an engine that has another one."""
    for known in alike(engine):
        if all(judge.explains(p.entry, replace(known, angle=own.angle)) for p in places):
            return known.name
    return words_of(judge, places, own, own)


def product_name(r: Recipe, weight_format: str, engine: Recipe) -> str:
    """The first known engine, or this one, that multiplies weights of a format like that."""
    for known in alike(engine):
        if (known.result, known.weights, known.operand(weight_format)) == (
            r.result,
            r.weights,
            r.operand(weight_format),
        ):
            return known.name
    return r.operand(weight_format)
