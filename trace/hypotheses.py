"""Hypotheses: known mistakes, each a small function that recomputes a stage as an engine with that mistake would.

One is reported when it reproduces the dump down to rounding, under the dump's own recipe. To add one: a function under
@hypothesis in one of the hypotheses_*.py files, and a mistake that it explains (tests/plants.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..quant.errors import BadInput
from .recipes_floats import Span
from .verify_bench import Unjudgeable
from .verify_fit import Fit, compare
from .verify_site import Site

Several = Iterator[tuple[str, Span]]
Variants = Span | None | Several
Recompute = TypeVar("Recompute", bound=Callable[[Site], Variants])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """name: short, stable, for programs. sentence: for people; {} takes the variant that fitted.

    stages: those that it is about. recompute: a site -> its Span under the mistake, several with what varies, or None.
    """

    name: str
    sentence: str
    stages: tuple[str, ...]
    recompute: Callable[[Site], Variants]

    def variants(self, site: Site) -> Iterator[tuple[str, Span]]:
        found = self.recompute(site)
        if isinstance(found, Span):
            yield "", found
        elif found is not None:
            yield from found


TABLE: list[Hypothesis] = []


def hypothesis(name: str, sentence: str, *stages: str) -> Callable[[Recompute], Recompute]:
    """Enters a function into the table."""

    def enter(f: Recompute) -> Recompute:
        TABLE.append(Hypothesis(name, sentence, stages, f))
        return f

    return enter


def table() -> list[Hypothesis]:
    """All of them, in the order of the files."""
    from . import hypotheses_attention, hypotheses_dump, hypotheses_products, hypotheses_rope, hypotheses_vectors  # noqa: F401

    return TABLE


@dataclass(frozen=True, slots=True)
class Named:
    """A hypothesis that reproduces a stage. at: the stage that the mistake is in, which the dump may lack."""

    name: str
    sentence: str
    at: str
    left: float
    allowed: float


def explain(site: Site, got: NDArray[np.floating[Any]], only: Collection[str] | None = None) -> list[Named]:
    """Every known mistake that reproduces the stage: in its own formula, or in that of an input which the dump lacks.

    Those about this kind of stage come before those that any stage may have (every value is 0.125 times ...).
    only: the names of those to try; None for all.
    """
    named: list[tuple[bool, Named]] = []
    here = (site.phase, site.layer)
    lacking = dict.fromkeys(stage for phase, layer, stage, _ in site.recomputed if (phase, layer) == here)
    for at in (site.stage, *lacking):
        for h in table():
            if (at in h.stages or not h.stages) and (only is None or h.name in only):
                best = _best(h, site, at, got)
                if best is not None:
                    detail, fit = best
                    known = Named(h.name, h.sentence.format(detail), at, fit.left, fit.allowed)
                    named.append((not h.stages, known))
    return [known for _, known in sorted(named, key=lambda n: (n[0], n[1].left))]


def _best(h: Hypothesis, site: Site, at: str, got: NDArray[np.floating[Any]]) -> tuple[str, Fit] | None:
    best: tuple[str, Fit] | None = None
    try:
        for detail, span in h.variants(site.at(at)):
            whole = span if at == site.stage else site.having(**{at: span}).compute()
            if whole.mid.shape == got.shape:
                fit = compare(got, whole)
                if fit.good and (best is None or fit.left < best[1].left):
                    best = detail, fit
    except (Unjudgeable, BadInput):
        return best
    return best
