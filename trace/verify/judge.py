"""The judge of one file: tries the recipes on its stage, and learns which engine this is as it goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dump import Entry
from .arithmetic import Spot, Votes, candidates, choices, involved, narrowest, rounded_to, shows, wide
from .evidence import Evidence
from .facts import CapturedElsewhere, Key, NextToken, Note, NotFinite, OtherShape, Reason, Recomputed, Unjudgeable
from .finding import EXACT, REPRODUCED, UNEXPLAINED, UNJUDGED, Finding, Named
from .fit import Fit, few_of, fit_of
from .formulas import flat, input_of, product_in_float64
from .kept import Kept
from .leaning import MOST, leaning
from .recipes.facts import fused
from .recipes.loaded import ROWS as LOADED
from .recipes.matrix import FileMatrix
from .recipes.products import Beside, product
from .recipes.recipe import FLOAT32_RECIPE, Recipe
from .recipes.scaled import WHOLE
from .site import Site
from .span import FLOAT16, FLOAT32, Array, Float, Span, joined

MASKED = ("mask", "above_diagonal")  # of scores: these say what stands above the diagonal, which is not judged
TRIES = 600  # arithmetics of one stage
LOOSE, MORE = 3.0, 80  # times what the likeliest allows; arithmetics that are tried beyond one that allows more
LIKELIEST = 60  # of them that come before what is wide
FEW, COLUMNS = 16, 64  # positions and columns that show most wrong arithmetics to be wrong
ROWS = 32  # positions at which a stage is compared with the plain one
PLACES = 3  # of a group on which all of them are tried, if none explains any


Group = tuple[Any, ...]
Shown = tuple[Any, ...]  # what of a recipe a stage shows


@dataclass
class Judge:
    """Tries arithmetics on stages, and learns which engine this is as it goes.

    votes: how many stages each value of each fact explains so far. fits: for each stage judged, how well each
    arithmetic that was tried on it explains it. good: the recipes that explained a stage of each group.
    hopeless: how many stages of a group no arithmetic explained. stages: see `involved`. parts: see by_parts.
    rounded: the format of stages whose values tell it, and which a recipe of that explained. tops: see top.
    kept: see kept.py. fusable: stages that one of this model can take as computed. broken: stages with values that are
    NaN or infinite, in order of execution. rivals: the arithmetic of stages that a mistake explains better (rivals.py).
    """

    evidence: Evidence
    votes: Votes = field(default_factory=Counter)
    fits: dict[Key, dict[Shown, Fit]] = field(default_factory=dict)
    good: dict[Group, list[Recipe]] = field(default_factory=dict)
    hopeless: Counter[Group] = field(default_factory=Counter)
    stages: dict[Key, tuple[Spot, ...]] = field(default_factory=dict)
    parts: dict[Key, list[tuple[Recipe, str]]] = field(default_factory=dict)
    rounded: dict[Key, Float] = field(default_factory=dict)
    tops: dict[tuple[int | None, str], float] = field(default_factory=dict)
    broken: list[Key] = field(default_factory=list)
    rivals: dict[Key, Recipe] = field(default_factory=dict)
    kept: Kept = field(init=False)
    fusable: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(self.evidence)
        stages = self.evidence.stages.values()
        self.fusable = frozenset[str]().union(*(v for s in stages for v in fused.values(s, FLOAT16)))
        ways = list(self.evidence.rotations)
        self.votes = Counter({("angle", way): len(ways) - i for i, way in enumerate(ways)})

    def site(self, e: Entry, recipe: Recipe) -> Site:
        how, pos = self.meant(recipe), self.evidence.positions(e)
        return Site(self.evidence, self.kept, e.phase, e.layer, e.stage.name, pos, how, e.stage.name)

    def meant(self, recipe: Recipe) -> Recipe:
        """A recipe as it holds of this model: an engine's bias inside the product is nothing where there is no bias."""
        if recipe.fused <= self.fusable:
            return recipe
        return replace(recipe, fused=recipe.fused & self.fusable)

    def involved(self, e: Entry) -> tuple[Spot, ...]:
        if e.key not in self.stages:
            self.stages[e.key] = involved(self.evidence, e.key)
        return self.stages[e.key]

    def shows(self, e: Entry, recipe: Recipe) -> Shown:
        return shows(self.site(e, recipe), self.involved(e))

    def group(self, e: Entry) -> Group:
        """The stages that one engine computes alike: those of a kind; products of the same stage by weights of the same
        formats; of products and attention those of one position and those of several."""
        s = e.stage
        of = tuple(m.format for m in self.evidence.matrices(e.layer, s.name)) if s.kind == "product" else ()
        one = s.kind in ("product", "scores", "soft-max", "mix") and len(self.evidence.positions(e)) == 1
        return s.kind, s.scope, s.name if of else "", of, one

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
        if broken:
            self.broken.append(e.key)
        tried = self.fits.setdefault(e.key, {})
        spans: list[tuple[Recipe, Span, Fit]] = []
        failed: list[Recipe] = []
        plain, beside = None, self.beside(e, got)
        last = None  # after how many tries to stop
        for recipe in self.tries(e, got):
            shown_here = self.shows(e, recipe)
            if shown_here in tried:
                continue
            if len(spans) > 1 and (fit := self.glimpsed(e, recipe, got)) is not None and not fit.good:
                tried[shown_here] = fit
                failed.append(recipe)
                if len(tried) >= TRIES:
                    break
                continue
            site = self.site(e, recipe)
            if e.stage.kind == "product" and recipe != FLOAT32_RECIPE and not beside.parts:
                site = replace(site, beside=beside)
            span = shown(got, site.compute(), e)
            notes |= dict.fromkeys(notes_on(site))
            fit = tried[shown_here] = self.compared(e, site, got, span)
            if fit.leans and spans:
                continue
            spans.append((recipe, span, fit))
            if recipe == FLOAT32_RECIPE:
                plain = span, fit
            if fit.good and last is None:
                # Other matrices that allow much more may not be the engine's, but near to what it does.
                loose = recipe.requantised is not None and fit.allowed > LOOSE * spans[0][2].allowed
                last = len(tried) + MORE * loose
            if len(tried) >= (TRIES if last is None else min(TRIES, last)):
                break
        if plain is None:
            plain = self.plain(e, got, beside.parts)
        if e.stage.name == "lm_head" and not broken:
            notes[next_token(got, plain[0].mid)] = None
        recipe, span, fit = min(spans, key=lambda t: (not t[2].good, t[2].left, t[2].outside))
        verdict = UNEXPLAINED
        if fit.good:
            self.learn(e, recipe)
            if recipe.result is not FLOAT32 and self.told(e, got) is recipe.result:
                self.rounded[e.key] = recipe.result
            verdict = EXACT if fit.exact else REPRODUCED
        else:
            self.hopeless[self.group(e)] += 1
            mixed = by_parts(self.site(e, recipe), got, [*(how for how, _, _ in spans), *failed])
            if mixed is not None:
                verdict, (self.parts[e.key], fit) = REPRODUCED, mixed
        reason: Reason | None = None
        hypotheses: tuple[Named, ...] = ()
        overflow = self.overflow(e, got, recipe) if broken else None
        if overflow is not None:
            verdict, hypotheses = UNEXPLAINED, (Named("overflow", overflow, e.stage.name, fit.left, fit.allowed),)
            notes[NotFinite(broken, inputs=False)] = None
        elif broken and verdict != UNEXPLAINED:
            verdict, reason = UNJUDGED, NotFinite(broken, inputs=True)
        elif broken:
            notes[NotFinite(broken, inputs=False)] = None
        f = Finding(e.phase, e.layer, e.stage.name, verdict, reason, None, plain[1].left, fit, tuple(notes))
        return replace(f, hypotheses=hypotheses)

    def glimpsed(self, e: Entry, recipe: Recipe, got: NDArray[np.float32]) -> Fit | None:
        """How well a recipe explains a few positions or columns of a stage; None where that is not worth it, or where a
        scale is shared with the others, or the dump has other positions than the stage's inputs."""
        if e.stage.kind == "product":
            site = self.site(e, recipe)
            (m, *_), x = site.matrices(), flat(site.input_of_all() if recipe.quantiser in WHOLE else input_of(site))
            if e.stage.positions == "all" and len(got) != len(x.mid):
                return None
            rows = few_of(len(x.mid), FEW) if e.stage.positions == "all" else np.array([len(x.mid) - 1])
            y = product(recipe, x, m.head(COLUMNS, self.top(e, m, recipe)), rows.tolist()).map(recipe.result.round)
            return fit_of((got[rows] if got.ndim > 1 else got[None])[:, : y.mid.shape[1]], y)
        if "T" not in e.stage.letters or recipe.quantiser in WHOLE or len(self.evidence.positions(e)) <= FEW:
            return None
        return fit_of(*self.at_few(e, recipe, got, FEW))

    def top(self, e: Entry, m: FileMatrix, recipe: Recipe) -> float | None:
        """The largest weight of a stage's first matrix, if the recipe asks for it: looked for once."""
        if recipe.requantised is None or not LOADED[recipe.requantised].top:
            return None
        key = e.layer, e.stage.name
        if key not in self.tops:
            self.tops[key] = m.top()
        return self.tops[key]

    def at_few(self, e: Entry, recipe: Recipe, got: NDArray[np.float32], few: int) -> tuple[NDArray[np.float32], Span]:
        """The dump and the stage at a few of its positions, the last among them."""
        site, some = self.site(e, recipe).at_few(got, few)
        return some, shown(some, site.compute(), e)

    def beside(self, e: Entry, got: NDArray[np.float32]) -> Beside:
        """Which rows `plain` has of a product."""
        if e.stage.positions != "all":
            return Beside(slice(-1, None))
        T = len(self.evidence.positions(e))
        return Beside(few_of(T, ROWS).tolist() if len(got) == T else slice(None))

    def plain(self, e: Entry, got: NDArray[np.float32], parts: Sequence[Array]) -> tuple[Span, Fit]:
        """The plain float64 stage, at no more than ROWS of its positions: how far the dump is from it is only told.

        parts: of a product, what is there of it already (Beside).
        """
        site, some = self.site(e, FLOAT32_RECIPE).at_few(got, ROWS)
        of_file = product_in_float64(site, parts) if e.stage.kind == "product" else None
        span = shown(some, site.compute() if of_file is None else Span.point(of_file), e)
        return span, fit_of(some, span)

    def overflow(self, e: Entry, got: NDArray[np.float32], recipe: Recipe) -> str | None:
        """What a stage of finite inputs that is not finite would be, in float32; None for another reason.

        It is a mistake also where a recipe reproduces it: the engine's format does not hold this model's values.
        """
        mid = shown(got, self.site(e, replace(recipe, result=FLOAT32)).compute(), e).mid
        within = ""
        if e.stage.kind == "scores" and recipe.scale == "after":
            mid, within = mid * np.sqrt(self.evidence.config.head_dim), ", before the scale,"
        lost = mid[~np.isfinite(got) & np.isfinite(mid)]
        if not lost.size:
            return None
        largest = float(lost[np.abs(lost).argmax()])
        kept = recipe.result if recipe.result is not FLOAT32 else FLOAT16
        return (
            f"it reaches{within} {largest:,.0f} where {kept.name} ends at {kept.most:,.0f}"
            if abs(largest) > kept.most
            else None
        )

    def tries(self, e: Entry, got: NDArray[np.float32]) -> Iterator[Recipe]:
        """What may explain a stage. Where nothing did, in several of its group, only what explained others of it. What
        is wide, and might explain a mistake, comes after the likeliest that is not."""
        group, stored, spots = self.group(e), narrowest(got), self.involved(e)
        known = [r for r in self.good.get(group, ()) if r.result in (stored, FLOAT32)]
        loose = [r for r in known if wide(spots, r)]
        yield from (r for r in known if r not in loose)
        every = candidates(spots, stored, self.votes, self.told(e, got) is not None)
        if loose:
            yield from (r for r in islice(every, LIKELIEST) if not wide(spots, r))
            yield from loose
        yield from every if self.hopeless[group] < PLACES else islice(every, 1)

    def learn(self, e: Entry, recipe: Recipe) -> None:
        """What a stage says of the engine, by this recipe and by all that it cannot tell from it."""
        known = self.good.setdefault(self.group(e), [])
        if recipe not in known:
            known.append(recipe)
        self.votes.update(self._said(e, recipe))

    def forget(self, e: Entry, recipe: Recipe) -> None:
        """Takes back what was learned of a stage that this recipe does not explain after all."""
        self.votes.subtract(self._said(e, recipe))

    def _said(self, e: Entry, recipe: Recipe) -> Votes:
        mine = self.shows(e, recipe)
        said = Votes({("result", recipe.result.name): 1})
        for name, values in choices(self.involved(e), recipe.result, Counter()).items():
            for value in values:
                same = value == getattr(recipe, name) or self.shows(e, replace(recipe, **{name: value})) == mine
                said[name, value] += same
        return said

    def explains(self, e: Entry, recipe: Recipe) -> Fit | None:
        """How well a recipe explains a stage, if it does. Where much is missing, the span of float32 may hold what was
        rounded to 16 bits, too; it does not explain why it was, unless it has every bit."""
        tried, shown_here = self.fits.setdefault(e.key, {}), self.shows(e, recipe)
        if shown_here not in tried:
            try:
                few = self.glimpsed(e, recipe, self.evidence.values(e)) if len(self.involved(e)) == 1 else None
                tried[shown_here] = few if few is not None and few.outside else self.again(e, recipe)[2]
            except Unjudgeable:
                return None
        fit = tried[shown_here]
        if not fit.good or (wide(self.involved(e), recipe) and not recipe.result.holds(self.evidence.values(e))):
            return None
        return fit if fit.exact or self.rounded.get(e.key, recipe.result) is recipe.result else None

    def told(self, e: Entry, got: NDArray[np.float32]) -> Float | None:
        """The 16-bit format that the values of a stage tell by themselves, where inputs are missing: with them, the
        span of another is too narrow to need it."""
        return rounded_to(e.stage.kind, got) if len(self.involved(e)) > 1 else None

    def recipe_of(self, e: Entry) -> Recipe:
        """The arithmetic of a stage's group, as far as it is known."""
        if e.key in self.rivals:
            return self.rivals[e.key]
        best = self.good.get(self.group(e))
        if best:
            return best[0]
        got = self.evidence.values(e)
        told = rounded_to(e.stage.kind, got) is not None
        return next(candidates(self.involved(e), narrowest(got), self.votes, told))

    def again(self, e: Entry, recipe: Recipe) -> tuple[Site, Span, Fit]:
        """The stage under one recipe."""
        site = self.site(e, recipe)
        got = self.evidence.values(e)
        span = shown(got, site.compute(), e)
        return site, span, self.compared(e, site, got, span)

    def compared(self, e: Entry, site: Site, got: NDArray[np.floating[Any]], span: Span) -> Fit:
        """How well a span explains the stage. Where it leaves much open, the error may have no side either."""
        fit, spots = fit_of(got, span), self.involved(e)
        if not fit.good or not wide(spots, site.how):
            return fit
        width = got.shape[-1]
        for layer, stage in spots:
            at = site.at(stage.name, layer)
            if stage.kind == "product" and sum(m.shape[0] for m in at.matrices()) == width:
                error = (got - span.mid).reshape(-1, width)
                if leaning(at, error, got.reshape(-1, width)) > MOST:
                    return replace(fit, leans=True)
        return fit


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


def by_parts(site: Site, got: NDArray[np.float32], tried: list[Recipe]) -> tuple[list[tuple[Recipe, str]], Fit] | None:
    """Q, K and V may have weights of different formats, and an engine may treat each by its own recipe: which, for each
    format."""
    if site.stage != "qkv_matmul" or len({m.format for m in site.matrices()}) == 1:
        return None
    parts: list[tuple[Recipe, str]] = []
    spans, at, x = [], 0, flat(input_of(site))
    for m in site.matrices():
        part = slice(at, at := at + m.shape[0])
        for recipe in tried:
            few = product(recipe, x, m.head(COLUMNS)).map(recipe.result.round)
            if fit_of(got[:, part][:, : few.mid.shape[1]], few).good:
                piece = product(recipe, x, m).map(recipe.result.round)
                if fit_of(got[:, part], piece).good:
                    parts.append((recipe, m.format))
                    spans.append(piece)
                    break
        else:
            return None
    return parts, fit_of(got, joined(spans, 1))
