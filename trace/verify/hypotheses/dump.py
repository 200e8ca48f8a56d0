"""Mistakes of the dump rather than the engine: the wrong capture point, layer, position or layout; simple factors."""

from __future__ import annotations

from functools import partial

import numpy as np

from ...plural import plural
from ...stages import layer_name
from ..evidence import begin
from ..facts import Unjudgeable
from ..site import Site
from ..span import FLOAT32, Array, Span
from .hypothesis import Hypothesis, Several, Variants, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

FEW = 48  # values that show nothing of a curve


@hypothesis("other-file", "the file is the same, bit for bit, as {}")
def other_file(s: Site) -> Several:
    mine = s.evidence.dump.get(s.stage, s.layer, s.phase)
    if mine is None:
        return
    values = mine.values().reshape(-1)
    if values.size < 2 or not values.any():
        return
    for e in s.evidence.begun[begin(mine)]:
        if e.key != mine.key and np.array_equal(e.values().reshape(-1), values):
            phase = "" if e.phase == s.phase else f" of phase {e.phase}"
            yield f"{e.stage.name} of {layer_name(e.layer)}{phase}", Span.point(mine.values())


@hypothesis("other-stage", "the file holds {}, not what it is named after")
def other_stage(s: Site) -> Several:
    try:
        mine = s.having(**{s.stage: s.compute()})
    except Unjudgeable:
        return
    own = s.evidence.stage(s.stage)
    for name, other in s.evidence.stages.items():
        if name != s.stage and (other.letters, other.scope) == (own.letters, own.scope):
            try:
                yield name, mine.at(name).compute()
            except Unjudgeable:
                continue


@hypothesis("zeros", "every value is 0")
def zeros(s: Site) -> Variants:
    return Span.point(np.zeros_like(s.compute().mid))


@hypothesis("factor", "every value is {} times what it should be")
def factor(s: Site) -> Several:
    mine = s.evidence.dump.get(s.stage, s.layer, s.phase)
    span = s.compute()
    if mine is None or mine.shape != span.mid.shape:
        return
    got, mid = np.asarray(s.evidence.values(mine), np.float64), span.mid
    norm = float(np.square(mid).sum())
    alpha = float((got * mid).sum()) / norm if norm else 1.0
    if (
        np.isfinite(alpha)
        and abs(alpha) > 1e-12
        and abs(alpha - 1) > 1e-3
        and alike(got, span, alpha, s.recipe.result.u)
    ):
        slack = (2 if s.recipe.result.u > FLOAT32.u else 8) * s.recipe.result.u * np.abs(alpha * mid)
        ends = sorted((span.lo * alpha, span.hi * alpha), key=lambda v: float(v.sum()))
        lo, hi = np.minimum(*ends), np.maximum(*ends)
        yield f"{alpha:.6g}", Span(alpha * mid, lo - slack, hi + slack)


def alike(got: Array, span: Span, alpha: float, u: float) -> bool:
    """Whether values of every size show the factor: a soft-cap, a clamp or a curve bends the large ones more.

    The medians of the ratio, of a quarter of the values each, scatter by their rounding over the root of their count.
    """
    size = np.abs(span.mid)
    ordered = np.argsort(size, axis=None)[size.size // 4 :]
    if len(ordered) < FEW:
        return True
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (got / (alpha * span.mid)).reshape(-1)
        room = (np.maximum(span.radius, u * size) / size).reshape(-1)
    thirds = [part for part in np.array_split(ordered, 3) if np.isfinite(ratio[part]).all()]
    return all(abs(float(np.median(ratio[p])) - 1) <= 8 * float(np.median(room[p])) / np.sqrt(len(p)) for p in thirds)


@hypothesis("positions-shifted", "the rows are those {} in the prompt")
def positions_shifted(s: Site) -> Several:
    letters = s.evidence.stage(s.stage).letters
    if "T" in letters and len(s.pos) > 2:
        span, axis = s.compute(), letters.index("T")
        for n in range(-3, 4):
            if n and abs(n) < len(s.pos) - 1:
                yield (
                    f"{plural(abs(n), 'position')} {'later' if n < 0 else 'earlier'}",
                    span.shaped(partial(np.roll, shift=n, axis=axis)),
                )


@hypothesis(
    "layout",
    "the values are laid out {}, not position by position",
    "q_norm",
    "k_norm",
    "q_post_rope",
    "k_post_rope",
    "attention",
    by_row=False,
)
def layout(s: Site) -> Several:
    span = s.compute()
    shape = span.mid.shape
    yield "head by head [N, T, H]", span.shaped(lambda v: v.swapaxes(0, 1).reshape(shape))
    yield "[T, H, N]", span.shaped(lambda v: v.swapaxes(1, 2).reshape(shape))
