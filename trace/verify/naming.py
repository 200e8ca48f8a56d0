"""What an engine is called: a known engine's name where the dump shows what that claims, else its facts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...quant.rms import ratio
from ..dump import Entry
from .arithmetic import choices, formats_of, likeliest, narrowest, whole_engines
from .finding import Finding
from .fit import few_of
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


@dataclass(frozen=True, slots=True)
class Judged:
    """spoilt: an input of it is wrong, so that it says nothing of how it was computed."""

    finding: Finding
    entry: Entry
    spoilt: bool


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
