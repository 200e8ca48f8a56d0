"""Every hypothesis, and which of them reproduce a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....errors import BadInput
from ..facts import Unjudgeable
from ..finding import Named
from ..fit import Fit, compare
from ..site import Site
from ..span import Span
from . import adapters, attention, caps, dump, head, masks, norms, products, rope, rows, shards, vectors
from .hypothesis import Hypothesis

FILES = (adapters, attention, masks, rows, caps, dump, shards, products, head, rope, norms, vectors)
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
    here = (site.phase, site.layer)
    lacking = dict.fromkeys(stage for phase, layer, stage, _ in site.recomputed if (phase, layer) == here)
    for at in (site.stage, *lacking):
        for h in TABLE:
            if (at in h.stages or not h.stages) and (only is None or h.name in only):
                best = _best(h, site, at, got, fits)
                if best is not None:
                    detail, fit = best
                    known = Named(h.name, h.sentence.format(detail), at, fit.left, fit.allowed)
                    named.append((not h.stages, known))
    return [known for _, known in sorted(named, key=lambda n: (n[0], n[1].left))]


def _best(
    h: Hypothesis,
    site: Site,
    at: str,
    got: NDArray[np.floating[Any]],
    fits: Callable[[NDArray[np.floating[Any]], Span], Fit],
) -> tuple[str, Fit] | None:
    best: tuple[str, Fit] | None = None
    try:
        for detail, span in h.variants(site.at(at)):
            whole = span if at == site.stage else site.having(**{at: span}).compute()
            if whole.mid.shape == got.shape:
                fit = fits(got, whole)
                if fit.good and (best is None or fit.left < best[1].left):
                    best = detail, fit
    except (Unjudgeable, BadInput):
        return best
    return best
