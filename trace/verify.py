"""Local verification: every stage of a dump recomputed in float64 from the dump's own inputs, and a verdict for each.

What an engine carried forward from earlier stages cancels; what is left is what one operation did. docs/verify.md tells
the story, docs/budgets.md derives the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.weights import Weights
from ..quant.errors import BadInput
from .dump import Dump, Entry
from .recipes import FLOAT32_RECIPE, RECIPES, Recipe
from .recipes_floats import Span
from .recipes_rope import fitted
from .verify_fit import Fit, compare
from .verify_site import ROPE, Bench, Key, Site, Unjudgeable, arithmetic, heads_of, place
from .verify_tokens import known_tokens

EXACT, REPRODUCED, BUDGET, UNEXPLAINED, UNJUDGED = (
    "exact", "reproduced", "within budget", "unexplained", "not judged",
)  # fmt: skip


@dataclass
class Finding:
    """What is known of one stage.

    observed: relative RMS of the dump against the plain float64 stage; left: against the recipe's; predicted: what the
    recipe's rounding allows (or the budget expects). worst: the largest error of any element over what it is allowed.
    blames: the file that is wrong instead of this stage. outside of size: elements that rounding does not explain; equal: bit-equal ones. recipe: None where none fits.
    """

    phase: int
    layer: int | None
    stage: str
    verdict: str
    recipe: str | None = None
    observed: float | None = None
    left: float | None = None
    predicted: float | None = None
    worst: float | None = None
    outside: int = 0
    equal: int = 0
    size: int = 0
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    hypotheses: list[dict[str, Any]] = field(default_factory=list)
    blames: Key | None = None
    budget: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.phase, self.layer, self.stage

    @property
    def explained(self) -> bool:
        return self.verdict in (EXACT, REPRODUCED, BUDGET)


@dataclass
class Verification:
    """findings in order of execution; recipe: the engine's arithmetic as the data show it; remarks: to be said first.

    operands: what its activations become before the products of this model. turned: whether the dump tells how RoPE's angle is made.
    """

    findings: list[Finding]
    recipe: Recipe
    tokens: list[int] | None
    remarks: list[str] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    turned: bool = False

    @property
    def status(self) -> int:
        """0: all that could be judged is explained; 1: something is not; 2: nothing could be judged."""
        if any(f.verdict == UNEXPLAINED for f in self.findings):
            return 1
        return 0 if any(f.explained for f in self.findings) else 2


@dataclass
class Judge:
    """Tries recipes on stages, and learns which engine this is as it goes.

    score: how many stages each recipe explains so far. fits: for each stage judged, the arithmetics that explain it.
    """

    bench: Bench
    score: dict[Recipe, int] = field(default_factory=dict)
    fits: dict[Key, set[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        angles = list(self.bench.rotations)
        self.score = {replace(r, angle=a): 0 for r in RECIPES for a in angles}

    @property
    def recipe(self) -> Recipe:
        """The one that explains most; of equals the first, which is the simplest."""
        return max(self.score, key=lambda r: self.score[r])

    def ranked(self) -> list[Recipe]:
        return sorted(self.score, key=lambda r: -self.score[r])

    def site(self, e: Entry, recipe: Recipe) -> Site:
        return Site(self.bench, e.phase, e.layer, e.stage.name, self.bench.positions(e), recipe)

    def judge(self, e: Entry) -> Finding:
        """The verdict on one file, before budgets and hypotheses."""
        finding = Finding(e.phase, e.layer, e.stage.name, UNJUDGED)
        told = {k: v for k, v in (e.capture or {}).items() if e.stage.capture.get(k) != v}
        if told:
            what = ", ".join(f"{k}: {v}" for k, v in told.items())
            finding.reason = f"the manifest says that it was captured elsewhere ({what})"
            return finding
        try:
            self._judge(e, finding)
        except Unjudgeable as reason:
            finding.reason = str(reason)
        return finding

    def _judge(self, e: Entry, finding: Finding) -> None:
        got = e.values()
        broken = int(got.size - np.count_nonzero(np.isfinite(got)))
        tried: dict[Any, tuple[Recipe, Span, Fit]] = {}
        for recipe in self.ranked():
            site = self.site(e, recipe)
            kind = arithmetic(site)
            if kind in tried or not (recipe.result.name == "float32" or recipe.result.holds(got)):
                continue
            span = shown(got, site.compute(), e)
            finding.notes += [n for n in notes_on(site) if n not in finding.notes]
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
        finding.observed = plain[2].left
        if e.stage.name == "lm_head" and not broken:
            finding.notes.append(next_token(got, plain[1].mid))
        good = {kind for kind, (_, _, fit) in tried.items() if fit.good}
        self.fits[finding.key] = good
        if good:
            for recipe in self.score:
                self.score[recipe] += bool({arithmetic(self.site(e, recipe)), recipe} & good)
            recipe, _, fit = next(t for t in tried.values() if t[2].good)
            state(finding, fit, EXACT if fit.exact else REPRODUCED, recipe.name)
        else:
            recipe, span, fit = min(tried.values(), key=lambda t: (t[2].left, t[2].outside))
            state(finding, fit, UNEXPLAINED, None)
            mixed = by_parts(self.site(e, recipe), got, list(tried.values()))
            if mixed is not None:
                state(finding, mixed[1], REPRODUCED, mixed[0])
        if broken and finding.verdict != UNEXPLAINED:
            finding.verdict, finding.reason = UNJUDGED, f"{broken} values are NaN or infinite, as its inputs are"
        elif broken:
            finding.notes.append(f"{broken} values are NaN or infinite")

    def again(self, e: Entry, recipe: Recipe) -> tuple[Site, Span, Fit]:
        """The stage under one recipe."""
        site = self.site(e, recipe)
        span = shown(e.values(), site.compute(), e)
        return site, span, compare(e.values(), span)

    def name_recipes(self, findings: Sequence[Finding]) -> None:
        """Calls every stage that the dump's recipe explains by its name."""
        best = self.recipe
        for f in findings:
            e = self.bench.dump.get(f.stage, f.layer, f.phase)
            if f.explained and e is not None and {arithmetic(self.site(e, best)), best} & self.fits.get(f.key, set()):
                f.recipe = best.name


def state(finding: Finding, fit: Fit, verdict: str, recipe: str | None) -> None:
    finding.verdict, finding.recipe = verdict, recipe
    finding.left, finding.predicted, finding.worst = fit.left, fit.allowed, fit.worst
    finding.outside, finding.equal, finding.size = fit.outside, fit.equal, fit.size


def shown(got: NDArray[np.float32], span: Span, e: Entry) -> Span:
    """The span in the dump's own frame: scores above the diagonal are nobody's business, a wider S holds zeros."""
    if "S" not in e.stage.letters:
        if got.shape != span.mid.shape:
            raise Unjudgeable(f"its shape is {got.shape}; from its inputs it must be {span.mid.shape}")
        return span
    S, width = span.mid.shape[2], got.shape[2]
    if width < S or got.shape[:2] != span.mid.shape[:2]:
        raise Unjudgeable(f"its shape is {got.shape}; from its inputs it must be {span.mid.shape}")
    if width > S:
        span = span.shaped(lambda v: np.pad(v, ((0, 0), (0, 0), (0, width - S))))
    return span


def notes_on(site: Site) -> list[str]:
    names = list(dict.fromkeys((layer, stage) for _, layer, stage, _ in site.recomputed))
    if not names:
        return []
    missing = ", ".join(s if layer == site.layer else f"{s} of {place(layer)}" for layer, s in names)
    used = ", ".join(dict.fromkeys(s if layer == site.layer else f"{s} of {place(layer)}" for _, layer, s in site.used))
    return [f"recomputed from {used or 'the tokens'}; missing: {missing}"]


def next_token(got: NDArray[np.float32], exact: NDArray[np.float64]) -> str:
    """The dump's first choice against float64's from the same input, with the gap in units of the logits' own noise."""
    mine, best = int(np.argmax(got)), int(np.argmax(exact))
    noise = float(np.sqrt(np.mean(np.square(got - exact))))
    second, first = np.sort(exact)[-2:]
    gap = f"{first - second:.3g}, " + (f"{(first - second) / noise:.2g} times the logits' noise" if noise else "no noise")
    if mine == best:
        return f"next token {mine}, as float64 has it from the same input (gap to the second: {gap})"
    rank = int(np.count_nonzero(exact > exact[mine])) + 1
    return f"next token {mine} is float64's number {rank} from the same input; float64 takes {best} (top-2 gap: {gap})"


def by_parts(
    site: Site, got: NDArray[np.float32], tried: list[tuple[Recipe, Span, Fit]]
) -> tuple[str, Fit] | None:
    """Q, K and V may have weights of different formats, and an engine may treat each by its own recipe."""
    if site.stage != "qkv_matmul":
        return None
    matrices, names, spans, at = site.matrices(), [], [], 0
    for m in matrices:
        part = slice(at, at := at + m.shape[0])
        for recipe, span, _ in tried:
            piece = span.shaped(lambda v, part=part: v[:, part])
            if compare(got[:, part], piece).good:
                names.append(f"{recipe.name} for {m.format}")
                spans.append(piece)
                break
        else:
            return None
    whole = Span(*(np.concatenate([getattr(s, end) for s in spans], 1) for end in ("mid", "lo", "hi")))
    return ", ".join(dict.fromkeys(names)), compare(got, whole)


def rotations_seen(bench: Bench) -> Iterator[tuple[Any, Any, Any]]:
    """(before, after, positions) of the rotations in the first layer that has them, in every phase."""
    layers = sorted({e.layer for e in bench.dump.entries if e.stage.name in ROPE and e.layer is not None})
    for layer in layers[:1]:
        for phase in bench.phases:
            for part, name in enumerate(ROPE):
                after, before = bench.dump.get(name, layer, phase), bench.dump.get("qkv_bias", layer, phase)
                if after is None or before is None or bench.positions(after) != bench.positions(before):
                    continue
                x, y = np.asarray(before.values(), np.float64), np.asarray(after.values(), np.float64)
                if np.isfinite(x).all() and np.isfinite(y).all():
                    pos_T = np.array(bench.positions(after), np.int32)
                    yield heads_of(bench.config, Span.point(x), part).mid, y, pos_T


def verify(
    dump: Dump, weights: Weights, *, against: Weights | None = None, done: Callable[[int], None] = lambda n: None
) -> Verification:
    """Judges every file of a dump by a model's weights (QTensors, as bind gives them).

    against: a second model that the engine may have run. done: told how many files are judged.
    Raises BadInput if the dump cannot be one of this model's shape.
    """
    from .verify_review import review

    check_shape(dump, weights)
    if against is not None:
        check_shape(dump, against)
    bench = Bench(dump, weights)
    bench.tokens, remarks = known_tokens(bench)
    bench.rotations, told = fitted(bench.rotations, list(rotations_seen(bench)))
    judge = Judge(bench)
    findings = []
    with np.errstate(all="ignore"):  # overflow is an answer here: what is not finite is judged as such
        for n, e in enumerate(dump.entries):
            findings.append(judge.judge(e))
            done(n + 1)
        judge.name_recipes(findings)
        second = None if against is None else Judge(Bench(dump, against, bench.tokens, rotations=bench.rotations))
        review(judge, findings, second)
    remarks += first_remarks(findings)
    recipe = judge.recipe
    operands = sorted({recipe.operand(p.format) for layer in weights.layers for p in (*layer.qkv, layer.ffn_down)} - {"F32"})
    turned = told and any(f.stage in ROPE and f.verdict in (EXACT, REPRODUCED) for f in findings)
    return Verification(findings, recipe, bench.tokens, remarks, operands, turned)


def check_shape(dump: Dump, weights: Weights) -> None:
    c = weights.config
    if dump.sizes is not None and dict(dump.sizes) != dict(c.sizes):
        odd = ", ".join(f"{k} {n} for {c.sizes.get(k)}" for k, n in dump.sizes.items() if c.sizes.get(k) != n)
        raise BadInput(f"{dump.path}: a dump of another model: {odd}; give the model that was run with -m")
    deepest = max((e.layer for e in dump.entries if e.layer is not None), default=0)
    if deepest >= c.num_hidden_layers:
        raise BadInput(f"{dump.path} has layer {deepest}; the model has layers 0 to {c.num_hidden_layers - 1}")


def first_remarks(findings: Sequence[Finding]) -> list[str]:
    """What must be said before any table."""
    remarks = []
    embedding = [f for f in findings if f.stage == "embedding" and f.verdict == UNEXPLAINED]
    if embedding:
        remarks.append(
            "the embedding already differs: this is another model's dump, or one of other tokens; what follows may mean little"
        )
    broken = next((f for f in findings if any("NaN" in n for n in f.notes) or "NaN" in f.reason), None)
    if broken is not None:
        step = f" of decode step {broken.phase}" if broken.phase else ""
        remarks.append(f"values that are NaN or infinite first appear in {broken.stage} of {place(broken.layer)}{step}")
    return remarks
