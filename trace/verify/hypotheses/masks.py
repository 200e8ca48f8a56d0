"""Any mask: which keys each position saw is read off the dump's own probabilities, and then said in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....engine.kernels import reference
from ...plural import plural
from ..recipes import operations
from ..site import Site
from ..span import Span
from .attention import Mask, mixed, softmax_of, unmasked
from .hypothesis import Hypothesis, Several, entering
from .whole import masks

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

FILLED = (8, 16, 32, 64, 128, 256)  # places that a cache's size is a multiple of
BROAD = 1 / 32  # of a row's sum: less is not called a part of the soft-max, as rounding and masks have it


@hypothesis("mask-other", "the mask is another: {}", "attn_softmax")
def mask_other(s: Site) -> Several:
    """Every key with a probability in any head was seen, the others were not: the soft-max over these must be the
    dump's. Where a dump has no probabilities, those masks that explain its attention best."""
    got = dumped(s)
    full, key_S, pos_T1 = unmasked(s)
    if got is not None and got.shape != full.mid.shape:
        return
    own_TS = ~reference.hidden(s.see_T, len(key_S), s.evidence.window(s.layer))
    for seen_TS in masks(s) if got is None else [np.asarray((got > 0).any(0))]:
        words = described(seen_TS, own_TS, key_S, pos_T1, s.evidence.rows[s.phase][0])
        if words and seen_TS.any(1).all():
            span = softmax_of(s, full, seen_TS)
            # What our own mask hides is not in the dump; it is recomputed, to the roundings of a dot product.
            extra = span.mid * operations.U * 64 * np.abs(full.mid).max() * (seen_TS & ~own_TS).any()
            yield words, Span(span.mid, span.lo - extra, span.hi + extra)


@hypothesis("softmax-part", "each row is a part of the soft-max, from {}: keys that the dump lacks (pads, a sink) take "
            "the rest", "attn_softmax")  # fmt: skip
def softmax_part(s: Site) -> Several:
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape:
        return
    sum_NT1 = got.sum(-1, keepdims=True)
    if np.isfinite(sum_NT1).all() and (sum_NT1 < 1 + BROAD).all() and (sum_NT1 < 1 - BROAD).any():
        n = span.mid.shape[-1]
        slack = (n + 16) * operations.U + s.recipe.result.u * 2  # the sum is of values that were rounded
        lo, hi = span.lo * sum_NT1 * (1 - slack), span.hi * sum_NT1 * (1 + slack)
        yield f"{sum_NT1.min():.2g} to {sum_NT1.max():.2g}", Span(span.mid * sum_NT1, lo, hi)


@hypothesis("softmax-padded", "{} of zeros, of a cache that is filled up, are seen too", "attention")
def softmax_padded(s: Site) -> Several:
    at, v = s.at("attn_softmax"), s.so_far(s.evidence.valued)
    scores, S = at.input("attn_scores"), len(v.mid)
    seen_TS = ~reference.hidden(s.pos_T, S, s.evidence.window(s.layer))
    for n in sorted({-S % size for size in FILLED} - {0}):
        more = (0, 0), (0, n)
        wide = scores.shaped(lambda x, n=n: np.pad(x[:, :, :S], ((0, 0), (0, 0), (0, n))))  # type: ignore[misc]
        p = softmax_of(at, wide, np.pad(seen_TS, more, constant_values=True))
        yield plural(n, "key"), mixed(s, p=p, v=v.shaped(lambda x, n=n: np.pad(x, ((0, n), (0, 0), (0, 0)))))  # type: ignore[misc]


def dumped(s: Site) -> NDArray[np.float64] | None:
    """The dump's values of the stage itself; None where it has none."""
    mine = s.evidence.dump.get(s.stage, s.layer, s.phase)
    return None if mine is None else np.asarray(s.evidence.values(mine), np.float64)


def described(
    seen_TS: Mask, own_TS: Mask, key_S: NDArray[np.integer], pos_T1: NDArray[np.integer], held: int = 0
) -> str:
    """A mask in words; nothing where it is the model's own. held: keys of the passes before."""
    if np.array_equal(seen_TS, own_TS):
        return ""
    causal_TS = key_S <= pos_T1
    if np.array_equal(seen_TS, np.broadcast_to(seen_TS[:1], seen_TS.shape)) and not (seen_TS <= causal_TS).all():
        hidden = np.flatnonzero(~seen_TS[0]).tolist()
        return "the causal mask is missing" + (f", {keys(hidden)} are hidden from all" if hidden else "")
    if own_TS.all() and np.array_equal(seen_TS, causal_TS):
        return "it is causal, and this model's attention is not"
    for start in range(1, len(key_S)):
        if np.array_equal(seen_TS, own_TS & (key_S >= start)):
            return f"the first {start} key{'s are' if start > 1 else ' is'} hidden from all"
    span_T = (pos_T1[:, 0] - seen_TS.argmax(1)) + 1
    size = int(span_T.max())
    if np.array_equal(seen_TS, causal_TS & (key_S > pos_T1 - size)):
        return f"a window of {plural(size, 'position')}, where this layer has {window_words(own_TS, causal_TS, pos_T1)}"
    if held and np.array_equal(seen_TS, key_S <= pos_T1 - held):
        return (
            f"this pass is masked as if the cache were empty, so that its first row sees key 0 alone: the upper left "
            f"corner, {plural(held, 'key')} too few"
        )
    if held and len(pos_T1) == 1 and np.array_equal(seen_TS[0], key_S < seen_TS.sum()) and (seen_TS <= causal_TS).all():
        return f"only the first {plural(int(seen_TS.sum()), 'key')} {'is' if seen_TS.sum() == 1 else 'are'} seen"
    for shift in range(-len(key_S), len(key_S)):
        if shift and np.array_equal(seen_TS, key_S <= pos_T1 + shift):
            return (
                f"each position sees {plural(abs(shift), 'key')} too {'many' if shift > 0 else 'few'}: a wrong corner"
            )
    first_T = seen_TS.argmax(1)
    if np.array_equal(seen_TS, causal_TS & (key_S >= first_T[:, None])) and (np.diff(first_T) >= 0).all():
        starts = sorted(set(first_T.tolist()))
        return f"documents or chunks that do not see each other begin at positions {listed(starts)}"
    own = key_S == pos_T1
    never_S = (own_TS & ~own).any(0) & ~(seen_TS & ~own).any(0)
    if np.array_equal(seen_TS, own_TS & (~never_S | own)):
        hidden = np.flatnonzero(never_S).tolist()
        return f"{keys(hidden)} {'are' if len(hidden) > 1 else 'is'} hidden from the positions behind"
    row = int((seen_TS != own_TS).any(1).argmax())
    return f"position {pos_T1[row, 0]} sees {keys(np.flatnonzero(seen_TS[row]).tolist())}"


def window_words(own_TS: Mask, causal_TS: Mask, pos_T1: NDArray[np.integer]) -> str:
    if np.array_equal(own_TS, causal_TS):
        return "none"
    return f"one of {int((pos_T1[:, 0] - own_TS.argmax(1)).max()) + 1}"


def keys(numbers: list[int]) -> str:
    return f"key{'s' * (len(numbers) > 1)} {listed(numbers)}"


def listed(numbers: list[int]) -> str:
    """Ascending numbers in words, runs as such: `0 to 3, 7`."""
    starts = [n for n in numbers if n - 1 not in numbers]
    stops = [n for n in numbers if n + 1 not in numbers]
    runs = [f"{a} to {b}" if a < b else f"{a}" for a, b in zip(starts, stops, strict=True)]
    return ", ".join(runs[:4]) + (" ..." if len(runs) > 4 else "")
