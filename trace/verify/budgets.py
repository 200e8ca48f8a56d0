"""Budgets: where no recipe reproduces a stage, how much error a source of noise would make, predicted before it is
looked at.

A weaker word than a recipe, so it is believed of a kind of stage only, never of one stage among many: if the dump's
other products are reproduced to rounding, no budget excuses the one that is not. docs/budgets.md derives the
predictions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...engine.kernels import reference
from ...quant import q16
from ...quant.rms import ratio, rms
from .finding import Budget
from .formulas import ATTENTION, PRODUCTS, flat, input_of
from .leaning import MOST, leaning
from .recipes.matrix import FileMatrix, group_sums
from .site import Site
from .span import BFLOAT16, FLOAT16, Array

RATIO = (0.5, 1.5)  # observed over predicted RMS
ELEMENT = 8.0  # standard deviations that one element may be off
SHARE = 2 / 3  # of a kind that must be in want of a budget


@dataclass(frozen=True, slots=True)
class Noise:
    """A source of noise. variance: of each element of the stage. activations: of each activation of a product [T, I],
    where it is in these. weights: whether it is in the weights."""

    source: str
    variance: Array
    activations: Array | None = None
    weights: bool = False


def kind(stage: str) -> str:
    """Stages that share their noise."""
    return "products" if stage in PRODUCTS else stage


def budgets(site: Site, got: NDArray[np.float32], mid: Array) -> list[Budget]:
    """Every source whose prediction fits the error of the stage, in RMS and element by element, and as noise has no
    side."""
    error = np.asarray(got, np.float64) - mid
    if not np.isfinite(error).all():
        return []
    found = []
    for noise in sources(site, mid):
        sigma = np.sqrt(as_wide(noise.variance, mid)).reshape(mid.shape)
        times = ratio(rms(error), rms(sigma))
        fits = RATIO[0] <= times <= RATIO[1] and (np.abs(error) <= ELEMENT * sigma + 1e-30).all()
        if fits and not leans(site, noise, error, got):
            found.append(Budget(noise.source, ratio(rms(sigma), rms(mid)), times))
    return found


def leans(site: Site, noise: Noise, error: Array, got: NDArray[np.float32]) -> bool:
    """Whether the error of a product has a side, which the noise has not (leaning.py).

    Noise of the weights is each row's own. That of activations is one for all rows, and what they add of it is known:
    its variance times their sum. It may be the same at all positions.
    """
    ways = []
    x = flat(input_of(site)).mid if noise.weights or noise.activations is not None else None
    error_TO = None if x is None else error.reshape(len(x), -1)
    if noise.weights and error_TO is not None:
        ways.append(leaning(site, error_TO, got.reshape(error_TO.shape)))
    if noise.activations is not None and x is not None and error_TO is not None:
        all_rows_I = np.concatenate(
            [slab.sum(0, dtype=np.float64)[None] for m in site.matrices() for _, slab in m.slabs()]
        )
        shared_T = noise.activations @ np.square(all_rows_I.sum(0)) + noise.variance.reshape(error_TO.shape).sum(1)
        x_T = x.sum(1)
        ways.append(ratio(abs(float(x_T @ error_TO.sum(1))), float(np.abs(x_T) @ np.sqrt(shared_T))))
    return bool(ways) and min(ways) > MOST


def as_wide(scores_NTS: Array, mid: Array) -> Array:
    """In the frame of a file with more keys than its last position has (judge.shown); what is no score, as it is."""
    more = mid.shape[-1] - scores_NTS.shape[-1]
    return np.pad(scores_NTS, ((0, 0), (0, 0), (0, more))) if more and mid.ndim == 3 == scores_NTS.ndim else scores_NTS


def commonest(found: Iterable[list[Budget]]) -> dict[str, int]:
    """How many stages each source explains: one source is likelier than several."""
    return Counter(b.source for fits in found for b in fits)


def sources(site: Site, mid: Array) -> Iterator[Noise]:
    """Every source of noise that a stage may have."""
    if site.stage in PRODUCTS:
        yield from product_sources(site, mid)
    elif site.stage in ATTENTION:
        yield from attention_sources(site)


def product_sources(site: Site, mid: Array) -> Iterator[Noise]:
    x_TI = flat(input_of(site)).mid
    square_TI, size = np.square(x_TI), x_TI.shape[1]
    eights = {f"8-bit activations, blocks of {b}": np.square(step(x_TI, b)) / 12 for b in (32, 256) if size % b == 0}
    eights["8-bit activations, one step per position"] = np.square(step(x_TI, size)) / 12
    matrices = site.matrices()
    through = [both_sums(m, [*eights.values(), square_TI], square_TI) for m in matrices]
    finer = (127 / q16.LARGEST) ** 2
    for i, (name, eight_TI) in enumerate(eights.items()):
        eight_TO = np.concatenate([sums[i] for sums, _ in through], 1)
        yield Noise(name, eight_TO, eight_TI)
        yield Noise(name.replace("8-bit", "16-bit"), eight_TO * finer, eight_TI * finer)
    terms_TO = np.concatenate([sums[len(eights)] for sums, _ in through], 1)
    for f in (FLOAT16, BFLOAT16):
        both_TO = f.u**2 / 3 * (2 * terms_TO + np.square(mid).reshape(terms_TO.shape))
        yield Noise(f"operands and result in {f.name}", both_TO, f.u**2 / 3 * square_TI, weights=True)
    if all(m.facts.levels for m in matrices):
        other_TO = np.concatenate([w for _, w in through], 1)
        yield Noise("other weights than this model's, within half a step", other_TO, weights=True)


def both_sums(m: FileMatrix, activations: list[Array], square_TI: Array) -> tuple[list[Array], Array]:
    """sum_i v_i w_i^2 for each variance v of activations; sum_i x_i^2 step_i^2 / 12 for steps of the weights."""
    sums: list[list[Array]] = [[] for _ in activations]
    weights = []
    levels, group = m.facts.levels, m.facts.group
    for _, slab in m.slabs():
        w_OI = slab.astype(np.float64)
        if levels:
            starts = np.arange(0, w_OI.shape[1], group)
            spans = np.maximum.reduceat(w_OI, starts, axis=1) - np.minimum.reduceat(w_OI, starts, axis=1)
            weights.append(group_sums(square_TI, group) @ (np.square(spans / (levels - 1)) / 12).T)
        np.square(w_OI, out=w_OI)
        for into, v in zip(sums, activations, strict=True):
            into.append(v @ w_OI.T)
    return [np.concatenate(s, 1) for s in sums], np.concatenate(weights, 1) if weights else np.zeros(0)


def step(x_TI: Array, block: int) -> Array:
    """amax / 127 of each block, repeated for its elements."""
    amax = np.abs(x_TI.reshape(len(x_TI), -1, block)).max(-1)
    return np.repeat(amax / 127, block, axis=1)


def attention_sources(site: Site) -> Iterator[Noise]:
    see_T = site.see_T
    if site.stage == "attn_scores":
        a, b = site.input("q_post_rope").mid, site.so_far("k_post_rope").mid

        def variance(va: Array, vb: Array) -> Array:
            H = a.shape[-1]
            both = reference.attn_scores(va, np.square(b), see_T) + reference.attn_scores(np.square(a), vb, see_T)
            return both / np.sqrt(H)
    else:
        a, b = site.input("attn_softmax").mid, site.so_far(site.evidence.valued).mid
        a = a[:, :, : len(b)]

        def variance(va: Array, vb: Array) -> Array:
            return reference.attn_mix(va, np.square(b), see_T) + reference.attn_mix(np.square(a), vb, see_T)

    for f in (FLOAT16, BFLOAT16):
        yield Noise(
            f"keys, values and their partners in {f.name}", variance(*(f.u**2 / 3 * np.square(x) for x in (a, b)))
        )
        yield Noise(f"keys or values in {f.name}", variance(np.zeros_like(a), f.u**2 / 3 * np.square(b)))
    if b.shape[-1] % 32 == 0:
        rows = np.square(step(b.reshape(-1, b.shape[-1]), 32)).reshape(b.shape) / 12
        yield Noise("keys or values in 8 bits, blocks of 32", variance(np.zeros_like(a), rows))
