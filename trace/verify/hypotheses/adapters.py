"""Mistakes with LoRA adapters: left out, applied twice, or by another scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import sqrt

import numpy as np

from ....engine.weights import Adapter
from ..formulas import PRODUCTS
from ..recipes.matrix import Matrix
from ..site import Site
from ..span import Span
from .hypothesis import Hypothesis, Several, entering
from .products import through

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

Adapters = tuple[Adapter, ...]


def ways(s: Site, change: Callable[[Adapters], Adapters]) -> Iterator[tuple[str, list[Matrix]]]:
    """The stage's matrices with their adapters changed: all; of several matrices, those of each alone; of several
    adapters, each alone."""
    matrices = s.matrices()
    own = [m for m in matrices if m.adapters]
    if not own:
        return
    yield "the adapter", [replace(m, adapters=change(m.adapters)) for m in matrices]
    for m in own if len(matrices) > 1 else ():
        yield (
            f"the adapter of {module(m)}",
            [replace(n, adapters=change(n.adapters)) if n is m else n for n in matrices],
        )
    count = max(len(m.adapters) for m in own)
    for i in range(count if count > 1 else 0):
        kept = [(*m.adapters[:i], *change(m.adapters[i : i + 1]), *m.adapters[i + 1 :]) for m in matrices]
        yield f"adapter {i + 1} of {count}", [replace(m, adapters=a) for m, a in zip(matrices, kept, strict=True)]


def module(m: Matrix) -> str:
    """q_proj ..., by the name of its adapter's tensor."""
    return str(m.adapters[0].down.name).partition(".lora_")[0].rpartition(".")[2]


@hypothesis("adapter-missing", "{} is not applied", *PRODUCTS)
def adapter_missing(s: Site) -> Several:
    for what, matrices in ways(s, lambda adapters: ()):
        yield what, through(s, matrices=matrices)


@hypothesis("adapter-twice", "{} is applied twice", *PRODUCTS)
def adapter_twice(s: Site) -> Several:
    for what, matrices in ways(s, lambda adapters: adapters * 2):
        yield what, through(s, matrices=matrices)


@hypothesis("adapter-scaled", "{} what it should", *PRODUCTS)
def adapter_scaled(s: Site) -> Several:
    """The factor is the one that fits the dump best, in squares."""
    mine = s.evidence.stored((s.phase, s.layer, s.stage))
    if mine is None:
        return
    got, right = np.asarray(s.evidence.values(mine), np.float64), s.compute().mid
    if got.shape != right.shape:
        return
    for what, bare in ways(s, lambda adapters: ()):
        without = through(s, matrices=bare).mid
        part = right - without
        norm = float(np.square(part).sum())
        c = float(((got - without) * part).sum()) / norm if norm else 1.0
        if np.isfinite(c) and min(abs(c), abs(c - 1), abs(c - 2)) > 1e-3:
            # The factor is as sure as the squares say; where it is a little off, a step is rounded the other way.
            off = 4 * float(np.sqrt(np.square(got - without - c * part).mean() / norm)) + 2 * abs(c) * s.recipe.result.u
            spans = [through(s, matrices=dict(ways(s, partial(times, factor=f)))[what]) for f in (c, c - off, c + off)]
            lo, hi = np.minimum.reduce([x.lo for x in spans]), np.maximum.reduce([x.hi for x in spans])
            said = f"{c:.6g}" if off < 1e-4 * abs(c) else f"about {c:.2g}"
            yield f"{what} adds {said} times{meaning(c, off, s.matrices())}", Span(spans[0].mid, lo, hi)


def times(adapters: Adapters, factor: float) -> Adapters:
    return tuple(replace(a, scale=a.scale * factor) for a in adapters)


def meaning(c: float, off: float, matrices: list[Matrix]) -> str:
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
