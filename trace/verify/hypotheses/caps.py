"""What bends or cuts values: soft-caps, clamps, log-n scaling; a cache that is read without its scale."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..recipes import operations
from ..recipes.scaled import FP8, INT8
from ..site import Site
from ..span import E4M3, FLOAT32, Array, Span
from .attention import attended
from .hypothesis import Hypothesis, Several, entering
from .masks import dumped
from .whole import whole_of

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

CAPS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 100.0)
TRAINED = (512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)  # positions that log-n scaling counts from


def bent(s: Site, span: Span, size: Array | float = 1.0, steps: int = 3) -> Span:
    """The span times a size, to `steps` roundings of the engine's format: made of a value that was stored."""
    slack = steps * s.recipe.result.u * np.abs(span.mid * size)
    ends = span.lo * size, span.hi * size
    return operations.rounded(s.recipe, Span(span.mid * size, np.minimum(*ends) - slack, np.maximum(*ends) + slack))


def capped(cap: float, x: Array) -> Array:
    return cap * np.tanh(x / cap)


@hypothesis("soft-cap", "a soft-cap bends the values: {0} tanh(x / {0})", "attn_scores", "lm_head")
def soft_cap(s: Site) -> Several:
    span = s.compute()
    for cap in CAPS:
        yield f"{cap:g}", bent(s, span.map(partial(capped, cap)))


@hypothesis("clamp", "the values are clamped to {}")
def clamp(s: Site) -> Several:
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape or not np.isfinite(got).all():
        return
    top, low = float(got.max()), float(got.min())
    above, below = np.count_nonzero(span.lo > top), np.count_nonzero(span.hi < low)
    if above > 1 or below > 1:
        least, most = (low if below > 1 else -np.inf), (top if above > 1 else np.inf)
        shown = np.count_nonzero(got == most) > 1 or np.count_nonzero(got == least) > 1
        if shown and least < most:  # all values alike were not clamped
            yield f"{least:g} to {most:g}", span.map(lambda v: np.clip(v, least, most))


@hypothesis("log-n", "the scores are multiplied by log(position) / log({})", "attn_scores")
def log_n(s: Site) -> Several:
    span = s.compute()
    for length in sorted({*TRAINED, s.config.max_position_embeddings}):
        for first in (1, 2):
            with np.errstate(divide="ignore"):
                size_T1 = (np.log(s.pos_T + np.float64(first)) / np.log(length))[:, None]
            yield f"{length}", bent(s, span, size_T1)
            yield f"{length}, where that is more than 1", bent(s, span, np.maximum(size_T1, 1))


@hypothesis("cache-scale", "the cache is read without its scale, which is {}: 1.0 stands for it", "attn_scores",
            "attention")  # fmt: skip
def cache_scale(s: Site) -> Several:
    x = s.so_far("k_post_rope" if s.stage == "attn_scores" else s.evidence.valued).mid
    for top, nearest in ((FP8, E4M3.round), (INT8, np.rint)):
        own = scale_of(x, top)
        if own:
            yield f"{own:.3g}", bent(s, s.compute(), 1 / own)
        if s.stage == "attention" and own and whole_of(s) is not None:
            keys = s.so_far("k_post_rope").mid
            of_keys = scale_of(keys, top)
            for divided in (np.divide, by_reciprocal) if of_keys else ():
                k, v = (Span.point(nearest(divided(x, size))) for x, size in ((keys, of_keys), (x, own)))
                yield f"{of_keys:.3g} for keys and {own:.3g} for values", attended(s, k, v)


def scale_of(x: Array, top: float) -> float:
    """Of a tensor in 8 bits."""
    return float(np.float32(float(np.abs(x).max()) / top))


def by_reciprocal(x: Array, size: float) -> Array:
    """x / size as engines have it that keep 1 / size in float32."""
    return FLOAT32.round(x * np.float64(np.float32(1) / np.float32(size)))
