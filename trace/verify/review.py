"""The second look, at what no recipe explained: was a file mislabelled, where does the error sit, which mistake is
it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ...engine.weights import Adapted
from ..dump import Entry
from .arithmetic import narrowest, whole_engines
from .budgets import SHARE, budgets, commonest, kind
from .engine import ODD
from .facts import FileWrong, Key, NotAllTried, Unjudgeable, WithoutFile
from .finding import BUDGET, EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Budget, Finding, Named
from .fit import Fit
from .hypotheses import adapters, layers
from .hypotheses.layers import weights_on
from .hypotheses.table import explain
from .judge import Group, Judge
from .locate import locate
from .recipes.facts.fused import PRODUCT
from .recipes.recipe import Recipe
from .span import FLOAT32

TRIES = 4  # of one stage in several layers on which every hypothesis is tried


def review(judge: Judge, findings: Sequence[Finding], engine: Recipe, against: Judge | None = None) -> list[Finding]:
    """The findings with the unexplained filled in, under the dump's own recipe, and without those that something else
    explains: a wrong file before them, another model's weights, or a source of noise that their whole kind shows."""
    seen = {f.key: f for f in findings}
    wrong = {f.key for f in findings if f.verdict == UNEXPLAINED}
    under = {key: judge.recipe_of(entry(judge, seen[key])) for key in wrong}
    for key in [f.key for f in findings if f.key in wrong]:
        f, e = seen[key], entry(judge, seen[key])
        found = _without(judge, e, f, under[key], engine, wrong, seen)
        if found is None and against is not None:
            found = _other_weights(against, e, f)
        if found is not None:
            seen[key] = found
            wrong.discard(key)
    known = {key for key in wrong if key in judge.rivals or _adapter(judge, entry(judge, seen[key]), under[key])}
    excused = _noise(judge, [f for f in seen.values() if f.key not in known], under, engine)
    wrong -= excused.keys()
    seen |= excused
    seen |= _named(judge, [f for f in seen.values() if f.key in wrong], under)
    seen |= {f.key: agreeing(judge, f, list(seen.values())) for f in seen.values() if f.hypotheses}
    for f in list(seen.values()):
        if f.verdict == REPRODUCED and f.blames is not None:
            blamed = seen[f.blames]
            seen[f.blames] = replace(blamed, notes=(*blamed.notes, FileWrong(f.stage)))
    return list(seen.values())


def entry(judge: Judge, f: Finding) -> Entry:
    e = judge.evidence.dump.get(f.stage, f.layer, f.phase)
    assert e is not None
    return e


def kinds_in_want(findings: Sequence[Finding]) -> set[str]:
    """The kinds of stage of which most are not reproduced: a budget is for these."""
    judged, lacking = Counter[str](), Counter[str]()
    for f in findings:
        judged[kind(f.stage)] += f.verdict != UNJUDGED
        lacking[kind(f.stage)] += f.verdict == UNEXPLAINED
    return {k for k in judged if lacking[k] and lacking[k] >= SHARE * judged[k]}


def _noise(
    judge: Judge, findings: Sequence[Finding], under: Mapping[Key, Recipe], engine: Recipe
) -> dict[Key, Finding]:
    """Those that a source of noise explains, within their budgets."""
    wanting = kinds_in_want(findings)
    found: dict[Key, tuple[Finding, Fit, list[Budget]]] = {}
    for f in findings:
        if f.verdict == UNEXPLAINED and kind(f.stage) in wanting:
            e = entry(judge, f)
            site, span, fit = judge.again(e, under[f.key])
            fitting = budgets(site, judge.evidence.values(e), span.mid)
            if fitting:
                found[f.key] = f, fit, fitting
    common = commonest(fitting for _, _, fitting in found.values())

    def best(fitting: list[Budget]) -> Budget:
        return max(fitting, key=lambda b: (common[b.source], -abs(np.log(b.ratio))))

    return {
        key: replace(f, verdict=BUDGET, recipe=engine.name, fit=fit, budget=best(fitting))
        for key, (f, fit, fitting) in found.items()
    }


def _other_weights(against: Judge, e: Entry, f: Finding) -> Finding | None:
    """The finding, if the second model's weights reproduce the stage: then (W_a - W_b) x is the whole error."""
    other = against.judge(e)
    if other.verdict not in (EXACT, REPRODUCED) or f.observed is None:
        return None
    budget = Budget("the weights of the second model, exactly", f.observed, 1.0)
    return replace(f, verdict=BUDGET, recipe=against.recipe_of(e).name, fit=other.fit, budget=budget)


def _without(
    judge: Judge,
    e: Entry,
    f: Finding,
    recipe: Recipe,
    engine: Recipe,
    wrong: Collection[Key],
    seen: Mapping[Key, Finding],
) -> Finding | None:
    """The finding, if the stage is right once an unexplained input is recomputed: then the engine never used what that
    file holds."""
    site, _, _ = judge.again(e, recipe)
    for key in site.used:
        if key in wrong and key != e.key:
            judge.evidence.distrusted = {key}
            try:
                _, _, fit = judge.again(e, recipe)
            except Unjudgeable:
                continue
            finally:
                judge.evidence.distrusted = set()
            if fit.good and not taken_elsewhere(judge, e, key, seen):
                notes = (*f.notes, WithoutFile(key[1:]))
                return replace(f, verdict=REPRODUCED, recipe=engine.name, fit=fit, blames=key, notes=notes)
    return None


def taken_elsewhere(judge: Judge, e: Entry, key: Key, seen: Mapping[Key, Finding]) -> bool:
    """Whether another stage of the layer is explained by what a file holds: then the engine had computed that, and took
    it in one place and not in the other."""
    phase, layer, name = key
    for other in judge.evidence.stages.values():
        f = seen.get((phase, layer, other.name))
        if f is not None and f.key != e.key and name in other.inputs and f.explained and f.blames is None:
            return True
    return False


def _adapter(judge: Judge, e: Entry, recipe: Recipe) -> bool:
    """Whether a mistake with an adapter explains the stage down to rounding: adapters are small, and what is wrong with
    one would often be within a budget of noise."""
    own = judge.evidence.stage(e.stage.name)
    stages = own.inputs if own.kind == "bias" else (own.name,) if own.kind == "product" else ()
    looked_up = own.kind == "look-up" and isinstance(judge.evidence.weights.embed, Adapted)
    if not looked_up and not any(m.adapters for stage in stages for m in judge.evidence.matrices(e.layer, stage)):
        return False
    site, _, _ = judge.again(e, recipe)
    return bool(explain(site, judge.evidence.values(e), {h.name for h in adapters.TABLE}))


def _named(judge: Judge, wrong: Sequence[Finding], under: Mapping[Key, Recipe]) -> dict[Key, Finding]:
    """Tries the hypotheses: those first that explained the same stage in another layer, since one mistake may be in
    all; the others where these do not, in a few layers."""
    known: dict[str, set[str]] = {}
    likely: dict[Group, Recipe] = {}
    tried = Counter[str]()
    done: dict[Key, Finding] = {}
    for f in wrong:
        names = known.setdefault(f.stage, set())
        tried[f.stage] += 1
        recipe = likely.get(judge.group(entry(judge, f)), under[f.key])
        found = _name(judge, entry(judge, f), f, recipe, names)
        if len(found.hypotheses) == len(f.hypotheses) and tried[f.stage] <= TRIES:
            found = _name(judge, entry(judge, f), f, under[f.key], None)
            for recipe in plausible(judge, entry(judge, f), under[f.key]):
                if len(found.hypotheses) > len(f.hypotheses):
                    break
                another = _name(judge, entry(judge, f), f, recipe, None)
                if len(another.hypotheses) > len(f.hypotheses):
                    found, likely[judge.group(entry(judge, f))] = another, recipe
        names |= {h.name for h in found.hypotheses}
        if tried[f.stage] > TRIES and not found.hypotheses:
            found = replace(found, notes=(*found.notes, NotAllTried(f.stage, tried[f.stage] - 1)))
        done[f.key] = found
    return done


def agreeing(judge: Judge, f: Finding, findings: Sequence[Finding]) -> Finding:
    """The finding without what is said of several stages, unless all say it; then that comes first.

    That a layer runs with another's weights, every stage with weights of it must say; that weights stand elsewhere in
    each layer, the same stage of another layer. A stage that is recomputed through several with weights says it alone.
    """

    def bearing(other: Finding) -> bool:
        return other.verdict != UNJUDGED and weights_on(judge.evidence, other.key) > 0

    def says(other: Finding, h: Named) -> bool:
        return any(x.sentence == h.sentence for x in other.hypotheses)

    first, rest = [], []
    for h in f.hypotheses:
        if h.name == layers.WHOLE:
            like = [other for other in findings if other.layer == f.layer and bearing(other)]
            agreed = all(says(other, h) for other in like) and (len(like) > 1 or weights_on(judge.evidence, f.key) > 1)
            first += [h] * agreed
        elif h.name == layers.DISPLACED:
            first += [h] * (len({other.layer for other in findings if other.stage == f.stage and says(other, h)}) > 1)
        else:
            rest.append(h)
    return replace(f, hypotheses=(*first, *rest))


def plausible(judge: Judge, e: Entry, first: Recipe) -> Iterator[Recipe]:
    """What a stage may have been computed with beside the first guess, where all of its kind is wrong and nothing was
    learned: attention with the arithmetic of every engine that has a name; in 16 bits a norm that is stored once or
    twice, a product with weights that are rounded or not, a bias inside the product or after it."""
    if judge.group(e) in judge.good:
        return
    told = {judge.shows(e, first)}
    others: Iterable[Recipe] = ()
    if e.stage.kind == "mix":
        others = whole_engines(judge.involved(e), [narrowest(judge.evidence.values(e))], judge.votes)
    elif e.stage.kind == "norm" and first.result is not FLOAT32:
        others = [replace(first, norm=n) for n in ("once", "twice")]
    elif e.stage.kind in ("product", "bias") and first.result is not FLOAT32:
        fused = (first.fused, first.fused ^ {PRODUCT})
        others = [replace(first, weights=w, fused=f) for w in (first.result, None) for f in fused]
    for r in others:
        if judge.shows(e, r) not in told:
            told.add(judge.shows(e, r))
            yield judge.meant(r)


def _name(judge: Judge, e: Entry, f: Finding, recipe: Recipe, only: Collection[str] | None) -> Finding:
    site, span, fit = judge.again(e, recipe)
    got = judge.evidence.values(e)
    named = tuple(explain(site, got, only, partial(judge.compared, e, site)))
    odd = tuple(h for h in f.hypotheses if h.name == ODD and named and named[0].allowed < h.allowed)  # told last
    first = tuple(h for h in f.hypotheses if h not in odd)
    return replace(f, recipe=None, fit=fit, where=locate(site, got, span), hypotheses=(*first, *named, *odd))
