"""The second look, at what no recipe explained: was a file mislabelled, where does the error sit, which mistake is it?"""

from __future__ import annotations

from collections.abc import Sequence

from .dump import Entry
from .hypotheses import explain
from .recipes import Recipe
from .verify import REPRODUCED, UNEXPLAINED, Finding, Judge, state
from .verify_site import Key, Unjudgeable, place
from .verify_where import locate


def review(judge: Judge, findings: Sequence[Finding]) -> None:
    """Fills in the unexplained findings, under the dump's own recipe; takes back those that a wrong file explains."""
    recipe = judge.recipe
    wrong = {f.key for f in findings if f.verdict == UNEXPLAINED}
    for f in findings:
        if f.verdict == UNEXPLAINED:
            e = judge.bench.dump.get(f.stage, f.layer, f.phase)
            assert e is not None
            if not _without(judge, e, f, recipe, wrong):
                _name(judge, e, f, recipe)
    by_key = {f.key: f for f in findings}
    for f in findings:
        if f.verdict == REPRODUCED and f.blames is not None:
            by_key[f.blames].notes.append(
                f"{f.stage} was not computed from it, but from the right value: the file is wrong, not the engine"
            )


def _without(judge: Judge, e: Entry, f: Finding, recipe: Recipe, wrong: set[Key]) -> bool:
    """Whether the stage is right once an unexplained input is recomputed: then the engine never used what that file holds."""
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
                state(f, fit, REPRODUCED, recipe.name)
                f.blames = key
                f.notes.append(f"recomputed without {key[2]} of {place(key[1])}, whose file is wrong")
                wrong.discard(e.key)
                return True
    return False


def _name(judge: Judge, e: Entry, f: Finding, recipe: Recipe) -> None:
    site, span, fit = judge.again(e, recipe)
    state(f, fit, UNEXPLAINED, None)
    got = e.values()
    f.where = locate(site, got, span)
    f.hypotheses = [
        {"name": n.name, "sentence": n.sentence, "stage": n.at, "left": n.left, "predicted": n.allowed}
        for n in explain(site, got)
    ]
