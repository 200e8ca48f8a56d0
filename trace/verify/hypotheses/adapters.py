"""Mistakes with LoRA adapters: left out, applied twice, or by another scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np

from ....engine.weights import Adapter
from ..formulas import PRODUCTS, flat, input_of
from ..recipes.matrix import FileMatrix
from ..recipes.operations import rounded
from ..recipes.products import adapted, plain_product
from ..site import Site
from ..span import Array, Span, joined
from .hypothesis import Hypothesis, Several, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

Adapters = tuple[Adapter, ...]
Change = Callable[[Adapters], Adapters]


class Parts:
    """A stage's product, each matrix's without its adapters, which are added as asked: a matrix is decoded once."""

    def __init__(self, s: Site) -> None:
        self.site, self.x, self.matrices = s, flat(input_of(s)), s.matrices()
        self.own = [m.adapters for m in self.matrices]
        self.plain = [plain_product(s.recipe, self.x, m) for m in self.matrices] if any(self.own) else []

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
        y = rounded(r, joined([adapted(r, p, self.x, a) for p, a in zip(self.plain, adapters, strict=True)], 1))
        return y.shaped(lambda v: v[0]) if self.site.stage == "lm_head" else y


def module(m: FileMatrix) -> str:
    """q_proj ..., by the name of its adapter's tensor."""
    return str(m.adapters[0].down.name).partition(".lora_")[0].rpartition(".")[2]


@hypothesis("adapter-missing", "{} is not applied", *PRODUCTS)
def adapter_missing(s: Site) -> Several:
    parts = Parts(s)
    for what, adapters in parts.changed(lambda adapters: ()):
        yield what, parts.sum(adapters)


@hypothesis("adapter-twice", "{} is applied twice", *PRODUCTS)
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


@hypothesis("adapter-scaled", "{} what it should", *PRODUCTS)
def adapter_scaled(s: Site) -> Several:
    """The factor is the one that fits the dump best, in squares."""
    parts, got = Parts(s), held(s)
    if got is None or not any(parts.own):
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
    a = next(a for m in matrices for a in m.adapters)
    r = a.down.shape[0]
    known = (
        (1 / a.scale, "as if its scale were 1"),
        (sqrt(r), "as if by alpha / sqrt(r) in place of alpha / r"),
        (1 / sqrt(r), "as if by alpha / r in place of alpha / sqrt(r)"),
        (r, "as if alpha were not divided by r"),
    )
    return next((f" ({words})" for value, words in known if abs(c - value) < 1e-3 * abs(value) + off), "")
