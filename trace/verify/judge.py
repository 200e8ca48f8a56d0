"""The judge of one file: tries the recipes on its stage, and learns which engine this is as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dump import Entry
from .evidence import Evidence
from .facts import CapturedElsewhere, Key, NextToken, Note, NotFinite, OtherShape, Recomputed, Unjudgeable
from .finding import EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding
from .fit import Fit, compare
from .formulas import arithmetic
from .recipes.recipe import FLOAT32_RECIPE, RECIPES, Recipe
from .site import Site
from .span import Array, Span

MASKED = ("mask", "above_diagonal")  # of scores: these say what stands above the diagonal, which is not judged


@dataclass
class Judge:
    """Tries recipes on stages, and learns which engine this is as it goes.

    score: how many stages each recipe explains so far. fits: for each stage judged, the arithmetics that explain it.
    """

    evidence: Evidence
    score: dict[Recipe, int] = field(default_factory=dict)
    fits: dict[Key, set[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        angles = list(self.evidence.rotations)
        self.score = {replace(r, angle=a): 0 for r in RECIPES for a in angles}

    @property
    def recipe(self) -> Recipe:
        """The one that explains most; of equals the first, which is the simplest."""
        return max(self.score, key=lambda r: self.score[r])

    def ranked(self) -> list[Recipe]:
        return sorted(self.score, key=lambda r: -self.score[r])

    def site(self, e: Entry, recipe: Recipe) -> Site:
        return Site(self.evidence, e.phase, e.layer, e.stage.name, self.evidence.positions(e), recipe)

    def judge(self, e: Entry) -> Finding:
        """The verdict on one file, before budgets and hypotheses."""
        told = tuple((k, v) for k, v in (e.capture or {}).items() if e.stage.capture.get(k) != v)
        if e.stage.kind == "scores":
            told = tuple((k, v) for k, v in told if k not in MASKED)
        if told:
            return Finding(e.phase, e.layer, e.stage.name, UNJUDGED, CapturedElsewhere(told))
        notes: dict[Note, None] = {}
        try:
            return self._judge(e, notes)
        except Unjudgeable as error:
            return Finding(e.phase, e.layer, e.stage.name, UNJUDGED, error.reason, notes=tuple(notes))

    def _judge(self, e: Entry, notes: dict[Note, None]) -> Finding:
        """notes: filled as it goes, also where it then raises Unjudgeable."""
        got = self.evidence.values(e)
        broken = int(got.size - np.count_nonzero(np.isfinite(got)))
        tried: dict[Any, tuple[Recipe, Span, Fit]] = {}
        for recipe in self.ranked():
            site = self.site(e, recipe)
            kind: Any = arithmetic(site)
            if kind in tried or not (recipe.result.name == "float32" or recipe.result.holds(got)):
                continue
            span = shown(got, site.compute(), e)
            notes |= dict.fromkeys(notes_on(site))
            if site.recomputed:
                kind = recipe
            fit = compare(got, span)
            tried[kind] = recipe, span, fit
            if fit.good:
                break
        plain = next((t for t in tried.values() if t[0] == FLOAT32_RECIPE), None)
        if plain is None:
            span = shown(got, self.site(e, FLOAT32_RECIPE).compute(), e)
            plain = FLOAT32_RECIPE, span, compare(got, span)
        if e.stage.name == "lm_head" and not broken:
            notes[next_token(got, plain[1].mid)] = None
        good = {kind for kind, (_, _, fit) in tried.items() if fit.good}
        self.fits[e.key] = good
        verdict, named = UNEXPLAINED, None
        if good:
            for recipe in self.score:
                self.score[recipe] += bool({arithmetic(self.site(e, recipe)), recipe} & good)
            recipe, _, fit = next(t for t in tried.values() if t[2].good)
            verdict, named = EXACT if fit.exact else REPRODUCED, recipe.name
        else:
            recipe, span, fit = min(tried.values(), key=lambda t: (t[2].left, t[2].outside))
            mixed = by_parts(self.site(e, recipe), got, list(tried.values()))
            if mixed is not None:
                verdict, (named, fit) = REPRODUCED, mixed
        reason = None
        if broken and verdict != UNEXPLAINED:
            verdict, reason = UNJUDGED, NotFinite(broken, inputs=True)
        elif broken:
            notes[NotFinite(broken, inputs=False)] = None
        observed = plain[2].left
        return Finding(e.phase, e.layer, e.stage.name, verdict, reason, named, observed, fit, tuple(notes))

    def again(self, e: Entry, recipe: Recipe) -> tuple[Site, Span, Fit]:
        """The stage under one recipe."""
        site = self.site(e, recipe)
        got = self.evidence.values(e)
        span = shown(got, site.compute(), e)
        return site, span, compare(got, span)

    def with_recipes_named(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings, with every stage that the dump's recipe explains called by its name."""
        best = self.recipe

        def fits(f: Finding) -> bool:
            e = self.evidence.dump.get(f.stage, f.layer, f.phase)
            known = self.fits.get(f.key, set())
            return f.explained and e is not None and bool({arithmetic(self.site(e, best)), best} & known)

        return [replace(f, recipe=best.name) if fits(f) else f for f in findings]


def shown(got: NDArray[np.float32], span: Span, e: Entry) -> Span:
    """The span in the dump's own frame: a wider S holds zeros."""
    if "S" not in e.stage.letters:
        if got.shape != span.mid.shape:
            raise Unjudgeable(OtherShape(got.shape, span.mid.shape))
        return span
    S, width = span.mid.shape[2], got.shape[2]
    if width < S or got.shape[:2] != span.mid.shape[:2]:
        raise Unjudgeable(OtherShape(got.shape, span.mid.shape))
    if width > S:
        span = span.shaped(lambda v: np.pad(v, ((0, 0), (0, 0), (0, width - S))))
    return span


def notes_on(site: Site) -> list[Note]:
    missing = dict.fromkeys((layer, stage) for _, layer, stage, _ in site.recomputed)
    used = dict.fromkeys((layer, stage) for _, layer, stage in site.used)
    return [Recomputed(site.layer, tuple(used), tuple(missing))] if missing else []


def next_token(got: NDArray[np.float32], exact: Array) -> NextToken:
    mine, best = int(np.argmax(got)), int(np.argmax(exact))
    noise = float(np.sqrt(np.mean(np.square(got - exact))))
    second, first = np.sort(exact)[-2:]
    rank = int(np.count_nonzero(exact > exact[mine])) + 1
    return NextToken(mine, best, rank, float(first - second), noise)


def columns(x: Array, part: slice) -> Array:
    return x[:, part]


def by_parts(site: Site, got: NDArray[np.float32], tried: list[tuple[Recipe, Span, Fit]]) -> tuple[str, Fit] | None:
    """Q, K and V may have weights of different formats, and an engine may treat each by its own recipe."""
    if site.stage != "qkv_matmul":
        return None
    matrices, names, spans, at = site.matrices(), [], [], 0
    for m in matrices:
        part = slice(at, at := at + m.shape[0])
        for recipe, span, _ in tried:
            piece = span.shaped(partial(columns, part=part))
            if compare(got[:, part], piece).good:
                names.append(f"{recipe.name} for {m.format}")
                spans.append(piece)
                break
        else:
            return None
    whole = Span(*(np.concatenate([getattr(s, end) for s in spans], 1) for end in ("mid", "lo", "hi")))
    return ", ".join(dict.fromkeys(names)), compare(got, whole)
