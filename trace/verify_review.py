"""The second look, at what no recipe explained: was a file mislabelled, where does the error sit, which mistake is
it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .budgets import SHARE, Budget, budgets, commonest, kind
from .dump import Entry
from .hypotheses import explain
from .recipes import Recipe
from .verify_bench import PRODUCTS, Key, Unjudgeable, place
from .verify_finding import BUDGET, EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding
from .verify_fit import Fit
from .verify_judge import Judge
from .verify_where import locate

TRIES = 4  # of one stage in several layers on which every hypothesis is tried


def review(judge: Judge, findings: Sequence[Finding], against: Judge | None = None) -> None:
    """Fills in the unexplained findings, under the dump's own recipe; takes back those that something else explains:
    a wrong file before them, another model's weights, or a source of noise that their whole kind shows."""
    wrong = {f.key: f for f in findings if f.verdict == UNEXPLAINED}
    under = {key: recipe_of(judge, f, findings) for key, f in wrong.items()}
    for f in list(wrong.values()):
        e = entry(judge, f)
        if _without(judge, e, f, under[f.key], set(wrong)) or (against is not None and _other_weights(against, e, f)):
            del wrong[f.key]
    for key in _noise(judge, findings, under):
        del wrong[key]
    _name_all(judge, list(wrong.values()), under)
    by_key = {f.key: f for f in findings}
    for f in findings:
        if f.verdict == REPRODUCED and f.blames is not None:
            by_key[f.blames].notes.append(
                f"{f.stage} was not computed from it, but from the right value: the file is wrong, not the engine"
            )


def entry(judge: Judge, f: Finding) -> Entry:
    e = judge.bench.dump.get(f.stage, f.layer, f.phase)
    assert e is not None
    return e


def recipe_of(judge: Judge, f: Finding, findings: Sequence[Finding]) -> Recipe:
    """The dump's own recipe; of a product the one that explains all others by weights of these formats, if that is
    another: engines treat formats differently.
    """
    best = judge.recipe
    if f.stage not in PRODUCTS:
        return best

    def formats(x: Finding) -> list[str]:
        return [m.format for m in judge.bench.matrices(x.layer, x.stage)]

    mine = formats(f)
    named = Counter(x.recipe for x in findings if x.explained and x.stage in PRODUCTS and formats(x) == mine)
    if best.name in named:
        return best
    known = {r.name: r for r in judge.ranked() if r.angle == best.angle}
    return next((known[name] for name, _ in named.most_common() if name in known), best)


def kinds_in_want(findings: Sequence[Finding]) -> set[str]:
    """The kinds of stage of which most are not reproduced: a budget is for these."""
    judged, lacking = Counter[str](), Counter[str]()
    for f in findings:
        judged[kind(f.stage)] += f.verdict != UNJUDGED
        lacking[kind(f.stage)] += f.verdict == UNEXPLAINED
    return {k for k in judged if lacking[k] and lacking[k] >= SHARE * judged[k]}


def _noise(judge: Judge, findings: Sequence[Finding], under: Mapping[Key, Recipe]) -> list[Key]:
    """Puts within budget what a source of noise explains; returns which."""
    wanting = kinds_in_want(findings)
    unexplained = [f for f in findings if f.verdict == UNEXPLAINED and kind(f.stage) in wanting]
    found: dict[Key, tuple[Finding, Fit, list[Budget]]] = {}
    for f in unexplained:
        e = entry(judge, f)
        site, span, fit = judge.again(e, under[f.key])
        fitting = budgets(site, e.values(), span.mid)
        if fitting:
            found[f.key] = f, fit, fitting
    common = commonest(fitting for _, _, fitting in found.values())
    for f, fit, fitting in found.values():
        best = max(fitting, key=lambda b: (common[b.source], -abs(np.log(b.ratio))))
        f.state(fit, BUDGET, under[f.key].name)
        f.predicted = best.predicted
        f.budget = {"source": best.source, "ratio": best.ratio}
    return list(found)


def _other_weights(against: Judge, e: Entry, f: Finding) -> bool:
    """Whether the second model's weights reproduce the stage: then (W_a - W_b) x is the whole error."""
    other = against.judge(e)
    if other.verdict not in (EXACT, REPRODUCED):
        return False
    f.verdict, f.recipe, f.left, f.worst, f.outside = BUDGET, other.recipe, other.left, other.worst, 0
    f.predicted, f.equal = f.observed, other.equal
    f.budget = {"source": "the weights of the second model, exactly", "ratio": 1.0}
    return True


def _without(judge: Judge, e: Entry, f: Finding, recipe: Recipe, wrong: set[Key]) -> bool:
    """Whether the stage is right once an unexplained input is recomputed: then the engine never used what that file
    holds."""
    site, _, _ = judge.again(e, recipe)
    for key in site.used:
        if key in wrong and key != e.key:
            judge.bench.distrusted = {key}
            try:
                _, _, fit = judge.again(e, recipe)
            except Unjudgeable:
                continue
            finally:
                judge.bench.distrusted = set()
            if fit.good:
                f.state(fit, REPRODUCED, recipe.name)
                f.blames = key
                f.notes.append(f"recomputed without {key[2]} of {place(key[1])}, whose file is wrong")
                return True
    return False


def _name_all(judge: Judge, wrong: Sequence[Finding], under: Mapping[Key, Recipe]) -> None:
    """Tries the hypotheses; not each of them on each layer where one mistake runs through all, or none explains."""
    named: dict[str, set[str]] = {}
    tried = Counter[str]()
    for f in wrong:
        known = named.setdefault(f.stage, set())
        tried[f.stage] += 1
        _name(judge, entry(judge, f), f, under[f.key], None if tried[f.stage] <= TRIES else known)
        known |= {h["name"] for h in f.hypotheses}
        if tried[f.stage] > TRIES and not f.hypotheses:
            f.notes.append(f"not every hypothesis was tried: {tried[f.stage] - 1} {f.stage} before it were wrong too")


def _name(judge: Judge, e: Entry, f: Finding, recipe: Recipe, only: Collection[str] | None) -> None:
    site, span, fit = judge.again(e, recipe)
    f.state(fit, UNEXPLAINED, None)
    got = e.values()
    f.where = locate(site, got, span)
    f.hypotheses = [
        {"name": n.name, "sentence": n.sentence, "stage": n.at, "left": n.left, "predicted": n.allowed}
        for n in explain(site, got, only)
    ]
