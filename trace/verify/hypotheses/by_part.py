"""A known mistake in a part of a stage: at some positions, in some heads or columns; the rest is right.

Kernels are launched for too few rows, threads run ahead of others, a last tile has another path. Each element must lie
in the mistake's span in the part, and in the right one outside of it, so nothing is left open that was not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...stages import by_name
from ..facts import Unjudgeable
from ..fit import outside
from ..site import Site, Values
from ..span import Array, Span
from .attention import Mask
from .shards import AXES, which

MOST = 0.75  # of an axis's indices: what is wrong in more is not in a part
FEWEST = 8  # wrong values: fewer may be anything


@dataclass(frozen=True, slots=True)
class Part:
    """words: what it is called. inside: where it is, in the shape of the stage or in one that spreads to it."""

    words: str
    inside: Mask


@dataclass(frozen=True, slots=True)
class Parts:
    """The stage as it should be, which of its values are not, and the parts that hold all of those."""

    right: Span
    wrong: Mask
    parts: tuple[Part, ...]

    def merged(self, got: Values, mistake: Span) -> Iterator[tuple[Part, Span]]:
        """The stage, if it is the mistake's in a part and right beside it."""
        x, lo, hi = (np.asarray(v, np.float64)[self.wrong] for v in (got, mistake.lo, mistake.hi))
        if mistake.mid.shape == got.shape and ((x >= lo) & (x <= hi)).all():
            for part in self.parts:

                def one(theirs: Array, mine: Array, part: Part = part) -> Array:
                    return np.where(part.inside, theirs, mine)

                yield part, Span(*(one(getattr(mistake, end), getattr(self.right, end)) for end in ("mid", "lo", "hi")))


def parts_of(site: Site, got: Values) -> Parts | None:
    """None where the whole stage is wrong, or almost none of it."""
    try:
        right = site.compute()
    except Unjudgeable:
        return None
    if right.mid.shape != got.shape:
        return None
    wrong = outside(got, right)
    letters, found = by_name(site.stage).letters, []
    for axis, letter in enumerate(letters):
        hit = np.asarray(wrong.any(tuple(i for i in range(wrong.ndim) if i != axis))).reshape(-1)
        if letter in AXES and 0 < np.count_nonzero(hit) <= MOST * len(hit):
            shape = [-1 if i == axis else 1 for i in range(wrong.ndim)]
            found.append(Part(which(site, letter, hit), np.asarray(hit.reshape(shape))))
    return Parts(right, wrong, tuple(found)) if found and np.count_nonzero(wrong) >= FEWEST else None
