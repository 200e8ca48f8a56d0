"""Mistakes with the channels of heads: left out of the scores, rounded to 8 bits, turned and not turned back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ..recipes.ggml_cache import TURNED, TYPES, turned
from ..site import Site
from ..span import E4M3, E5M2, FLOAT32, Array
from .attention import scored
from .hypothesis import Hypothesis, Several, entering

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)


@hypothesis("scores-part", "the scores are of {} channels of a head", "attn_scores")
def scores_part(s: Site) -> Several:
    """A kernel whose head size is a constant, or that is launched for too few threads."""
    q, k, H = s.input("q_post_rope"), s.so_far("k_post_rope"), s.config.head_dim
    sizes = {H // 2, H // 4, *(n for n in (32, 64, 80, 96, 128) if n < H)} - {0, H}
    for n in sorted(sizes, reverse=True):
        for words, kept_H in (
            (f"the first {n} of {H}", np.arange(H) < n),
            (f"the last {n} of {H}", np.arange(H) >= H - n),
        ):
            part = partial(np.multiply, kept_H.astype(np.float64))
            for more, scale in (("", None), (f", times 1/sqrt({n})", n**-0.5)):
                yield words + more, scored(s, q.map(part), k.map(part), scale)


@hypothesis("scores-fp8", "{}, without a scale, before the scores are taken", "attn_scores")
def scores_fp8(s: Site) -> Several:
    q, k = s.input("q_post_rope"), s.so_far("k_post_rope")
    for f in (E4M3, E5M2):
        name, rounded = f.name, partial(cast, f.round, f.most)
        yield f"queries and keys are rounded to {name}", scored(s, q.map(rounded), k.map(rounded))
        yield f"queries are rounded to {name}", scored(s, q.map(rounded))
        yield f"keys are rounded to {name}", scored(s, k=k.map(rounded))


def cast(rounded: Callable[[Array], Array], most: float, x: Array) -> Array:
    return rounded(np.clip(x, -most, most))


@hypothesis("values-turned", "the values were turned (Hadamard, {} channels) to be held in few bits, and the "
            "result is not turned back", "attention")  # fmt: skip
def values_turned(s: Site) -> Several:
    """As the recipe holds them, or as ggml does a cache of few bits, which turns queries and keys too."""
    H, own = s.config.head_dim, s.recipe
    kinds = (kind + TURNED for kind in TYPES) if own.result is FLOAT32 and own.cache is None else ()
    for cache in (own.cache, *kinds):
        y = s.under(replace(own, cache=cache)).compute()
        for size in dict.fromkeys(n for n in (H & -H, 64, 32) if n > 1 and H % n == 0):
            yield str(size), turned(y, size)
