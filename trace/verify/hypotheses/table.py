"""Every hypothesis, and which of them reproduce a stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import BadInput
from ..arithmetic import involved
from ..facts import Unjudgeable
from ..finding import Named
from ..fit import Fit, compare
from ..formulas import ROPE
from ..site import Site
from ..span import FLOAT32, Span, joined
from . import adapters, attention, caps, dump, head, masks, norms, products, rope, rows, shards, vectors
from .hypothesis import Hypothesis

FILES = (adapters, attention, masks, rows, caps, dump, shards, products, head, rope, norms, vectors)
ALIKE = 2 * FLOAT32.u  # of the error that is left: less tells no mistake from another, and the earlier stage's is told
Way = Callable[[Hypothesis], Iterator[tuple[str, Span]]]
TABLE: tuple[Hypothesis, ...] = tuple(h for file in FILES for h in file.TABLE)


def explain(
    site: Site,
    got: NDArray[np.floating[Any]],
    only: Collection[str] | None = None,
    fits: Callable[[NDArray[np.floating[Any]], Span], Fit] = compare,
) -> list[Named]:
    """Every known mistake that reproduces the stage: in its own formula, or in that of an input which the dump lacks.

    Those about this kind of stage come before those that any stage may have (every value is 0.125 times ...).
    only: the names of those to try; None for all. fits: how well a span explains the stage.
    """
    named: list[tuple[bool, Named]] = []
    for at, made in ways(site):
        for h in TABLE:
            if (at in h.stages or not h.stages) and (only is None or h.name in only):
                best = _best(made(h), got, fits)
                if best is not None:
                    detail, fit = best
                    known = Named(h.name, h.sentence.format(detail), at, fit.left, fit.allowed)
                    named.append((not h.stages, known))
    return [known for _, known in sorted(named, key=lambda n: (n[0], max(n[1].left, ALIKE)))]


def ways(site: Site) -> Iterator[tuple[str, Way]]:
    """The stages in which a mistake may be that shows in this one, and what it makes of this one: in the stage itself,
    or in one on the way to it that the dump lacks. Queries and keys are turned by one table, so that a mistake in it is
    in both."""
    yield site.stage, lambda h: h.variants(site)
    here = (site.phase, site.layer, site.stage)
    lacking = [stage.name for layer, stage in involved(site.evidence, here) if layer == site.layer][1:]
    if set(ROPE) <= set(lacking):
        yield ROPE[0], lambda h: turned(h, site)
    for at in reversed(lacking):
        yield at, partial(made_up, at, site)


def made_up(at: str, site: Site, h: Hypothesis) -> Iterator[tuple[str, Span]]:
    """The site, if another stage is made by a mistake."""
    for detail, span in h.variants(site.at(at)):
        yield detail, site.having(**{at: span}).compute()


def turned(h: Hypothesis, site: Site) -> Iterator[tuple[str, Span]]:
    """The site, if queries and keys are both turned by a mistake: in this phase, in all so far, or in all steps."""
    q, k = ROPE
    before = [site.at(k, pos=rows, phase=phase) for phase, rows in site.evidence.rows.items() if phase < site.phase]
    earlier = [dict(numbered(h.variants(at))) for at in before]
    keys = dict(numbered(h.variants(site.at(k))))
    for name, span in numbered(h.variants(site.at(q))):
        if name in keys:
            yield name[0], site.having(**{q: span, k: keys[name]}).compute()
            for first in range(min(2, len(before))):
                if all(name in each for each in earlier[first:]):
                    right, wrong = [at.value() for at in before[:first]], [each[name] for each in earlier[first:]]
                    every = joined([*right, *wrong, keys[name]], 0)
                    yield name[0], site.having(**{q: span, f"all {k}": every}).compute()


def numbered(variants: Iterator[tuple[str, Span]]) -> Iterator[tuple[tuple[str, int], Span]]:
    """Variants by their detail, and by how many of the same detail came before."""
    met = Counter[str]()
    for detail, span in variants:
        yield (detail, met[detail]), span
        met[detail] += 1


def _best(
    variants: Iterator[tuple[str, Span]],
    got: NDArray[np.floating[Any]],
    fits: Callable[[NDArray[np.floating[Any]], Span], Fit],
) -> tuple[str, Fit] | None:
    best: tuple[str, Fit] | None = None
    try:
        for detail, whole in variants:
            if whole.mid.shape == got.shape:
                fit = fits(got, whole)
                if fit.good and (best is None or fit.left < best[1].left):
                    best = detail, fit
    except (Unjudgeable, BadInput):
        return best
    return best
