"""A part that is wrong: a rank, a tile, a head, a row, trailing columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...stages import by_name, layer_name
from ..formulas import PRODUCTS, flat, input_of, linear, weight_of
from ..recipes import operations
from ..site import Site
from ..span import FLOAT32, Array, Span, plus
from .attention import Mask
from .hypothesis import Hypothesis, Several, entering
from .masks import dumped, listed
from .products import through
from .vectors import BIAS, BIASES, biased, parts

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

RANKS = (2, 4, 8)
TILES = (4, 8, 16, 32, 64, 128, 256, 512)  # inputs that a kernel takes at a time
MOST_ROWS = 512  # positions among which another's row is sought
SHARES = (2, 4, 8, 16, 32)  # of the inputs, of which only the first is summed
SUMMED = ("attn_out", "ffn_out")  # of which each rank computes a share of the sum
AXES = {"T": "position", "N": "head", "K": "kv head", "H": "channel", "D": "column", "F": "column", "E": "column",
        "V": "token"}  # fmt: skip


@hypothesis("bias-rank", "the {}", *BIASES)
def bias_rank(s: Site) -> Several:
    """Of so many ranks, each with its heads of Q, K and V, or its columns; of what they sum, one adds the bias."""
    own, what = weight_of(s), f"{BIAS[s.stage]} is not split by rank"
    for ranks in RANKS:
        if s.evidence.stage(s.stage).inputs[0] in SUMMED:
            yield f"{BIAS[s.stage]} is added by each of {ranks} ranks", biased(s, own * ranks)
        elif not (s.config.num_key_value_heads if s.stage == "qkv_bias" else len(own)) % ranks:
            for told, bias in _split([own[columns] for _, columns in parts(s)], ranks):
                yield f"{what}: {told}", biased(s, bias)
            yield f"{what}: each of {ranks} ranks adds all of it", biased(s, own * ranks)


def _split(parts: Sequence[Array], ranks: int) -> Iterator[tuple[str, Array]]:
    """Biases of parts of which every rank has a share, and what ranks add if they take another's, or none."""
    shares = [np.split(part, ranks) for part in parts]
    for r in range(ranks):
        yield f"each of {ranks} ranks adds the part of rank {r}", np.concatenate([np.tile(p[r], ranks) for p in shares])
        alone = [[p if i == r else 0 * p for i, p in enumerate(share)] for share in shares]
        yield f"only rank {r} of {ranks} adds its part", np.concatenate([p for a in alone for p in a])


@hypothesis("rank-missing", "of {}", *SUMMED)
def rank_missing(s: Site) -> Several:
    """A share of the all-reduce is missing, or is all that there is."""
    x = flat(input_of(s))
    I = x.mid.shape[1]
    for ranks in RANKS:
        if I % ranks:
            continue
        rank_I = np.arange(I) // (I // ranks)
        for r in range(ranks):
            for words, kept_I in (("only rank {} is summed", rank_I == r), ("rank {} is not summed", rank_I != r)):
                if ranks > 2 or words.startswith("only"):
                    yield f"{ranks} ranks, {words.format(r)}", through(s, kept(x, kept_I))


@hypothesis("ranks-rounded", "the shares of {} are rounded each before they are summed: an all-reduce in 16 bits, "
            "which is rounding and no mistake", *SUMMED)  # fmt: skip
def ranks_rounded(s: Site) -> Several:
    x, r = flat(input_of(s)), s.recipe
    I = x.mid.shape[1]
    for ranks in RANKS if r.result is not FLOAT32 else ():
        if I % ranks:
            continue
        rank_I = np.arange(I) // (I // ranks)
        shares = [linear(s, kept(x, rank_I == rank), s.matrices()) for rank in range(ranks)]
        stored, whole = shares[0], shares[0]
        for share in shares[1:]:
            stored, whole = operations.add(r, stored, share), plus(whole, share)
        yield f"{ranks} ranks", stored
        yield f"{ranks} ranks", operations.rounded(r, whole)


@hypothesis("inputs-left-out", "the sum leaves out the last {}", *PRODUCTS)
def inputs_left_out(s: Site) -> Several:
    """What is no whole tile of the inputs, or the last tile."""
    x = flat(input_of(s))
    I = x.mid.shape[1]
    for n in sorted({I % size for size in TILES} | {*TILES}):
        if 0 < n < I:
            yield f"{n} of {I} inputs", through(s, kept(x, np.arange(I) < I - n))
    for share in SHARES:
        n = I - I // share
        if I % share == 0 and n not in TILES:
            yield f"{n} of {I} inputs", through(s, kept(x, np.arange(I) < I - n))


def kept(x: Span, kept_I: Mask) -> Span:
    return x.shaped(lambda v: np.where(kept_I, v, 0))


@hypothesis("part-zero", "{} 0")
def part_zero(s: Site) -> Several:
    """All values of some columns, heads or positions are 0, the rest is right."""
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape or not got.any():
        return
    letters = by_name(s.stage).letters
    for axis, letter in enumerate(letters):
        if letter in AXES:
            others = tuple(i for i in range(got.ndim) if i != axis)
            zero = np.asarray(~got.any(others) & span.mid.any(others))
            if zero.any() and not zero.all():
                shape = [-1 if i == axis else 1 for i in range(got.ndim)]
                yield which(s, letter, zero, "is", "are"), kept(span, np.asarray(~zero).reshape(shape))


@hypothesis("part-stale", "{}, not its own")
def part_stale(s: Site) -> Several:
    """One position holds the row of another."""
    got, span = dumped(s), s.compute()
    letters = by_name(s.stage).letters
    if got is None or "T" not in letters or got.shape != span.mid.shape or "S" in letters or len(s.pos) < 3:
        return
    T = letters.index("T")
    flat_TD, mine_TD = (np.moveaxis(v, T, 0).reshape(len(s.pos), -1) for v in (span.mid, got))
    norm_T = np.square(flat_TD).sum(1)
    away_TT = np.square(mine_TD).sum(1)[:, None] - 2 * mine_TD @ flat_TD.T + norm_T
    order = away_TT.argmin(1)
    wrong = np.flatnonzero(order != np.arange(len(order)))
    if 0 < len(wrong) <= len(order) // 2:
        said = [f"position {s.pos[t]} holds {s.pos[order[t]]}'s row" for t in wrong[:4].tolist()]
        yield ", ".join(said), span.shaped(lambda v: np.take(v, order, T))


@hypothesis("part-elsewhere", "{}")
def part_elsewhere(s: Site) -> Several:
    """Some heads or channels hold, bit for bit, what another layer, pass or position has there: a buffer that nobody
    wrote to."""
    got, letters = dumped(s), by_name(s.stage).letters
    if got is None or letters[0] != "T" or "S" in letters or not np.isfinite(got).all():
        return
    span = s.compute()
    if span.mid.shape != got.shape:
        return
    wrong = (got < span.lo) | (got > span.hi)
    for axis, letter in enumerate(letters[1:], 1):
        hit = np.asarray(wrong.any(tuple(i for i in range(wrong.ndim) if i != axis))).reshape(-1)
        if 1 < np.count_nonzero(hit) < len(hit):
            index = np.flatnonzero(hit)
            rows = np.take(got, index, axis).reshape(len(got), -1).astype(np.float32)
            found = [_held_elsewhere(s, row, index, axis) for row in rows]
            if all(found) and rows.any():
                where = " and ".join(dict.fromkeys(str(w) for w in found))
                shape = [-1 if i == axis else 1 for i in range(got.ndim)]
                part = np.asarray(hit.reshape(shape))
                ends = (np.where(part, got, end) for end in (span.mid, span.lo, span.hi))
                yield f"{which(s, letter, hit, 'holds', 'hold')} what {where} has there", Span(*ends)


def _held_elsewhere(s: Site, row: NDArray[np.float32], index: NDArray[np.intp], axis: int) -> str | None:
    """Where else the dump has those numbers, at those indices of the same stage."""
    for e in s.evidence.dump.entries:
        if e.stage.name == s.stage and e.key != (s.phase, s.layer, s.stage):
            other = e.values()
            same = np.flatnonzero((np.take(other, index, axis).reshape(len(other), -1) == row).all(1))
            if len(same):
                step = f" of {f'decode step {e.phase}' if e.phase else 'the prompt'}" if e.phase != s.phase else ""
                return f"{layer_name(e.layer)}, position {s.evidence.positions(e)[int(same[0])]}{step}"
    return None


@hypothesis("residual-row", "{}", "post_attn_residual", "post_ffn_residual")
def residual_row(s: Site) -> Several:
    """Some positions' sums are of one summand of theirs and another position's other: of an engine that leaves out the
    positions whose logits nobody asked for, and takes different rows of the two."""
    got, T = dumped(s), len(s.pos)
    x, y = (s.input(name) for name in s.evidence.stage(s.stage).inputs)
    if got is None or got.shape != x.mid.shape or T < 2 or T > MOST_ROWS or not np.isfinite(got).all():
        return
    span = s.compute()
    wrong = np.flatnonzero(((got < span.lo) | (got > span.hi)).any(1)).tolist()
    for what, moved, fixed in (("residual", x, y), ("the block's output", y, x)):
        order = np.arange(T)
        for t in wrong:
            order[t] = int(np.square(got[t] - fixed.mid[t] - moved.mid).sum(1).argmin())
        if wrong and (order[wrong] != wrong).all():
            said = [f"position {s.pos[t]} gets that of position {s.pos[order[t]]}" for t in wrong[:4]]
            rows = moved.shaped(lambda v, order=order: np.take(v, order, 0))  # type: ignore[misc]
            yield (
                f"the {what.removeprefix('the ')} is another position's: {', '.join(said)}",
                operations.add(s.recipe, *((rows, fixed) if what == "residual" else (fixed, rows))),
            )


@hypothesis("part-factor", "a factor of {}")
def part_factor(s: Site) -> Several:
    """Some heads or positions are a multiple of what they should be, the rest is right."""
    got, span = dumped(s), s.compute()
    if got is None or got.shape != span.mid.shape or not np.isfinite(got).all():
        return
    u = max(s.recipe.result.u, operations.U)
    letters = by_name(s.stage).letters
    for axis, letter in enumerate(letters):
        if letter in ("T", "N", "K") and span.mid.shape[axis] > 1:
            others = tuple(i for i in range(got.ndim) if i != axis)
            norm = np.square(span.mid).sum(others, keepdims=True)
            times = np.divide((got * span.mid).sum(others, keepdims=True), norm, out=np.ones_like(norm), where=norm > 0)
            inside = ((got >= span.lo) & (got <= span.hi)).all(others, keepdims=True)
            times = np.where(inside, 1.0, times)
            wrong = np.asarray(times != 1).reshape(-1)
            if wrong.any() and not wrong.all():
                slack = np.where(inside, 0, 2 * u * np.abs(times * span.mid))
                ends = span.lo * times, span.hi * times
                lo, hi = np.minimum(*ends) - slack, np.maximum(*ends) + slack
                size = sorted({f"{t:.3g}" for t in times.reshape(-1)[wrong].tolist()}, key=float)
                sizes = size[0] if len(size) == 1 else f"{size[0]} to {size[-1]}"
                yield f"{sizes} in {which(s, letter, wrong)}", Span(span.mid * times, lo, hi)


def which(s: Site, letter: str, wrong: Mask, one: str = "", many: str = "") -> str:
    """`columns 448 to 511 are`."""
    numbers = np.flatnonzero(wrong).tolist()
    if letter == "T":
        numbers = [s.pos[n] for n in numbers]
    return f"{AXES[letter]}{'s' * (len(numbers) > 1)} {listed(numbers)} {many if len(numbers) > 1 else one}".strip()
