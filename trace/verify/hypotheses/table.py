"""Every hypothesis, and which of them reproduce a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ....errors import BadInput
from ..facts import Unjudgeable
from ..finding import Named
from ..fit import Fit, fit_of
from ..judge import FEW
from ..recipes.scaled import WHOLE
from ..site import Site, Values
from ..span import FLOAT32, Span
from . import (
    activations,
    adapters,
    attention,
    batch,
    caps,
    channels,
    decoders,
    dump,
    head,
    layers,
    masks,
    norms,
    packing,
    pieces,
    products,
    rope,
    rows,
    shards,
    vectors,
)
from .by_part import parts_of
from .hypothesis import Hypothesis
from .ways import Way, in_itself, ways

FILES = (
    adapters, attention, masks, rows, pieces, caps, channels, dump, shards, products, packing, decoders, activations,
    head, rope, norms, vectors, layers, batch,
)  # fmt: skip
ZEROS = "zeros"  # which any part may be
ALIKE = 2 * FLOAT32.u  # of the error that is left: less tells no mistake from another, and the earlier stage's is told
TABLE: tuple[Hypothesis, ...] = tuple(h for file in FILES for h in file.TABLE)


def explain(
    site: Site,
    got: Values,
    only: Collection[str] | None = None,
    fits: Callable[[Values, Span], Fit] = fit_of,
) -> list[Named]:
    """Every known mistake that reproduces the stage: in its own formula, or in that of an input which the dump lacks.

    Those about this kind of stage come before those that any stage may have (every value is 0.125 times ...).
    only: the names of those to try; None for all. fits: how well a span explains the stage.
    """
    named: list[tuple[bool, Named]] = []
    # A few positions show most mistakes not to be the one; not where they share a scale with the others.
    apart = len(site.pos) > 2 * FEW and site.recipe.quantiser not in WHOLE
    few = site.at_few(got, FEW) if apart else (site, got)
    for at, way in ways(site):
        for h in TABLE:
            if (at in h.stages or not h.stages) and (only is None or h.name in only):
                best = _best(way, h, site, got, few, fits)
                if best is not None:
                    detail, fit = best
                    known = Named(h.name, h.sentence.format(detail), at, fit.left, fit.allowed)
                    named.append((not h.stages, known))
    if not named and only is None:
        return _in_part(site, got, fits)
    return [known for _, known in sorted(named, key=lambda n: (n[0], max(n[1].left, ALIKE)))]


def _in_part(site: Site, got: Values, fits: Callable[[Values, Span], Fit]) -> list[Named]:
    """Mistakes that reproduce a part of the stage, where the rest is right."""
    parts, named = parts_of(site, got), list[Named]()
    if parts is None:
        return named
    for at, way in ways(site):
        for h in TABLE:
            if at in h.stages or h.name == ZEROS:
                try:
                    for name, whole in way(h, site, None):
                        for part, merged in parts.merged(got, whole) if whole.mid.shape == got.shape else ():
                            fit = fits(got, merged)
                            if fit.good:
                                said = f"{h.sentence.format(name[0])}, in {part.words} alone"
                                named.append(Named(h.name, said, at, fit.left, fit.allowed))
                except (Unjudgeable, BadInput):
                    continue
    return sorted(named, key=lambda n: max(n.left, ALIKE))


def _best(
    way: Way,
    h: Hypothesis,
    site: Site,
    got: Values,
    few: tuple[Site, Values],
    fits: Callable[[Values, Span], Fit],
) -> tuple[str, Fit] | None:
    """The variant of a mistake that explains the stage best, if one does, and how well."""
    best: tuple[str, Fit] | None = None
    try:
        wanted = None
        if few[0] is not site and h.by_row and h.stages and way is not in_itself:
            wanted = {name for name, span in way(h, few[0], None) if fit_of(few[1], span).good}
            if not wanted:
                return None
        for name, whole in way(h, site, wanted):
            if whole.mid.shape == got.shape:
                fit = fits(got, whole)
                if fit.good and (best is None or fit.left < best[1].left):
                    best = name[0], fit
    except (Unjudgeable, BadInput):
        return best
    return best
