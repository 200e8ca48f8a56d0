"""Mistakes with LoRA adapters: left out, applied twice, by another scale, or without DoRA's lengths of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np

from ....engine.weights import Adapter, Dora
from ....quant.tensor import dequantize, take
from ..formulas import PRODUCTS, flat, input_of
from ..recipes.matrix import FileMatrix, matrix_of
from ..recipes.operations import rounded, weight
from ..recipes.products import adapted, of_product, of_rows, plain_product
from ..site import Site
from ..span import Array, Span, joined
from .hypothesis import Hypothesis, Several, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

EMBEDDING = "embedding"
STAGES = (EMBEDDING, *PRODUCTS)
Adapters = tuple[Adapter, ...]
Change = Callable[[Adapters], Adapters]
STEPS = 6  # of Gauss and Newton's, to a factor that gives these values


class Parts:
    """A stage's product or look-up, each matrix's without its adapters, which are added as asked: a matrix is decoded
    once."""

    def __init__(self, s: Site) -> None:
        self.site, self.looked_up = s, s.stage == EMBEDDING
        self.matrices = [matrix_of(s.evidence.weights.embed)] if self.looked_up else s.matrices()
        self.own = [m.adapters for m in self.matrices]
        if not any(self.own):
            return
        if self.looked_up:
            tokens = s.evidence.tokens
            assert tokens is not None  # nothing is computed without
            token_T = np.array([tokens[p] for p in s.pos])
            rows = dequantize(take(self.matrices[0].tensor, token_T))
            self.halves, self.plain = of_rows(token_T), [Span.point(weight(s.recipe, rows))]
        else:
            x = flat(input_of(s))
            self.halves, self.plain = of_product(x), [plain_product(s.recipe, x, m) for m in self.matrices]

    def changed(self, change: Change) -> Iterator[tuple[str, list[Adapters]]]:
        """The adapters changed: all; of several matrices, those of each alone; of several adapters, each alone."""
        if not any(self.own):
            return
        yield "the adapter", [change(own) for own in self.own]
        for n, m in enumerate(self.matrices) if len(self.own) > 1 else ():
            if m.adapters:
                others = [change(own) if i == n else own for i, own in enumerate(self.own)]
                yield f"the adapter of {module(m)}", others
        count = max(map(len, self.own))
        for i in range(count if count > 1 else 0):
            one = [(*own[:i], *change(own[i : i + 1]), *own[i + 1 :]) for own in self.own]
            yield f"adapter {i + 1} of {count}", one

    def sum(self, adapters: list[Adapters]) -> Span:
        """The stage with these."""
        r = self.site.recipe
        pairs = zip(self.plain, adapters, strict=True)
        y = rounded(r, joined([adapted(r, p, self.halves, a, self.looked_up) for p, a in pairs], 1))
        return y.shaped(lambda v: v[0]) if self.site.stage == "lm_head" else y


def module(m: FileMatrix) -> str:
    """q_proj ..., by the name of its adapter's tensor."""
    return str(m.adapters[0].down.name).partition(".lora_")[0].rpartition(".")[2]


@hypothesis("adapter-missing", "{} is not applied", *STAGES)
def adapter_missing(s: Site) -> Several:
    parts = Parts(s)
    for what, adapters in parts.changed(lambda adapters: ()):
        yield what, parts.sum(adapters)


@hypothesis("adapter-twice", "{} is applied twice", *STAGES)
def adapter_twice(s: Site) -> Several:
    parts = Parts(s)
    for what, adapters in parts.changed(lambda adapters: adapters * 2):
        yield what, parts.sum(adapters)


@hypothesis("adapter-other", "what {}", "qkv_matmul")
def adapter_other(s: Site) -> Several:
    """The slices of a fused product change places: those of one shape do, or one has both and the other none."""
    parts = Parts(s)
    for i, m in enumerate(parts.matrices):
        for j, other in enumerate(parts.matrices):
            if i != j and parts.own[i] and m.shape == other.shape:
                taken, swapped = list(parts.own), list(parts.own)
                taken[i], taken[j] = (), parts.own[i] + parts.own[j]
                yield f"the adapter of {'QKV'[i]} adds is added to {'QKV'[j]}, and not to its own", parts.sum(taken)
                if i < j and parts.own[j]:
                    swapped[i], swapped[j] = parts.own[j], parts.own[i]
                    yield f"the adapters of {'QKV'[i]} and {'QKV'[j]} add is added to the other", parts.sum(swapped)


@hypothesis("adapter-scaled", "{} what it should", *STAGES)
def adapter_scaled(s: Site) -> Several:
    """The factor is the one that fits the dump best, in squares."""
    parts, got = Parts(s), held(s)
    if got is None or not any(parts.own):
        return
    if any(a.dora is not None for own in parts.own for a in own):
        yield from _dora_scaled(parts, got)
        return
    right = parts.sum(parts.own).mid
    if got.shape != right.shape:
        return
    for what, bare in parts.changed(lambda adapters: ()):
        without = parts.sum(bare).mid
        part = right - without
        norm = float(np.square(part).sum())
        c = float(((got - without) * part).sum()) / norm if norm else 1.0
        if np.isfinite(c) and min(abs(c), abs(c - 1), abs(c - 2)) > 1e-3:
            # The factor is as sure as the squares say; where it is a little off, a step is rounded the other way.
            off = 4 * float(np.sqrt(np.square(got - without - c * part).mean() / norm)) + 2 * abs(c) * s.recipe.result.u
            spans = [parts.sum(dict(parts.changed(partial(times, factor=f)))[what]) for f in (c, c - off, c + off)]
            lo, hi = np.minimum.reduce([x.lo for x in spans]), np.maximum.reduce([x.hi for x in spans])
            said = f"{c:.4g}" if off < 1e-4 * abs(c) else f"about {c:.2g}"
            yield f"{what} adds {said} times{meaning(c, off, parts.matrices)}", Span(spans[0].mid, lo, hi)


def _dora_scaled(parts: Parts, got: Array) -> Several:
    """As adapter_scaled; but DoRA's gain hangs on the scale, so the factor is looked for by Gauss and Newton, from what
    it is known to be, and from half and twice."""
    a = next(a for own in parts.own for a in own)
    for what, _ in parts.changed(lambda adapters: ()):

        def at(c: float, what: str = what) -> Span:
            return parts.sum(dict(parts.changed(partial(times, factor=c)))[what])

        best: tuple[float, float] | None = None
        for start in dict.fromkeys((*(c for c, _ in factors(a)), 0.5, 2.0)):
            c = start
            for _ in range(STEPS):
                mid = at(c).mid
                if mid.shape != got.shape:
                    return
                slope = (at(c * (1 + 1e-4)).mid - mid) / (c * 1e-4)
                norm = float(np.square(slope).sum())
                c += float(((got - mid) * slope).sum()) / norm if norm else 0.0
                if not np.isfinite(c) or abs(c) > 1e3:
                    break
            if np.isfinite(c):
                left = float(np.square(got - at(c).mid).mean())
                best = (left, c) if best is None or left < best[0] else best
        if best is not None and min(abs(best[1]), abs(best[1] - 1)) > 1e-3:
            left, c = best
            slope = (at(c * (1 + 1e-4)).mid - at(c).mid) / (c * 1e-4)
            size = float(np.square(slope).sum())
            off = 4 * sqrt(left / size) + 2 * abs(c) * parts.site.recipe.result.u if size else 0.0
            spans = [at(x) for x in (c, c - off, c + off)]
            lo, hi = np.minimum.reduce([x.lo for x in spans]), np.maximum.reduce([x.hi for x in spans])
            said = f"{c:.4g}" if off < 1e-4 * abs(c) else f"about {c:.2g}"
            yield f"{what} adds {said} times{meaning(c, off, parts.matrices)}", Span(spans[0].mid, lo, hi)


@hypothesis("dora-magnitude", "DoRA's magnitude is {}", *STAGES)
def dora_magnitude(s: Site) -> Several:
    """The lengths of rows (of an embedding, columns) that DoRA trains (Liu et al. 2024)."""
    parts = Parts(s)
    if not any(a.dora is not None for own in parts.own for a in own):
        return
    for words, change in (
        ("left out, as if {} were plain LoRA", lambda d: None),
        ("divided by the norm of W alone, not of W + scale B A, in {}", _by_w_alone),
        ("not divided by a norm, in {}", _by_nothing),
    ):
        for what, adapters in parts.changed(partial(_lengths, change=change)):
            yield words.format(what), parts.sum(adapters)


def _lengths(adapters: Adapters, change: Callable[[Dora], Dora | None]) -> Adapters:
    return tuple(a if a.dora is None else replace(a, dora=change(a.dora)) for a in adapters)


def _by_w_alone(d: Dora) -> Dora:
    return replace(d, squares=d.squares * np.array([[1.0], [0.0], [0.0]]))


def _by_nothing(d: Dora) -> Dora:
    return replace(d, squares=np.ones_like(d.squares) * np.array([[1.0], [0.0], [0.0]]))


def held(s: Site) -> Array | None:
    """What the dump has of the stage; of a product that has a bias, and that many engines do not show, by that."""
    mine = s.evidence.stored((s.phase, s.layer, s.stage))
    if mine is not None:
        return np.asarray(s.evidence.values(mine), np.float64)
    name = s.evidence.biased.get(s.stage)
    biased = None if name is None else s.evidence.stored((s.phase, s.layer, name))
    return (
        None if biased is None else s.evidence.values(biased) - s.gain(s.evidence.stage(biased.stage.name).weight or "")
    )


def times(adapters: Adapters, factor: float) -> Adapters:
    return tuple(replace(a, scale=a.scale * factor) for a in adapters)


def meaning(c: float, off: float, matrices: list[FileMatrix]) -> str:
    """What a factor is that may be so far off, if it is a known one."""
    known = factors(next(a for m in matrices for a in m.adapters))
    return next((f" ({words})" for value, words in known if abs(c - value) < 1e-3 * abs(value) + off), "")


def factors(a: Adapter) -> tuple[tuple[float, str], ...]:
    """Factors that mistakes are known to give, and in words."""
    r = a.down.shape[0]
    return (
        (1 / a.scale, "as if its scale were 1"),
        (sqrt(r), "as if by alpha / sqrt(r) in place of alpha / r"),
        (1 / sqrt(r), "as if by alpha / r in place of alpha / sqrt(r)"),
        (r, "as if alpha were not divided by r"),
    )
