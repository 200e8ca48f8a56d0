"""Which rows of a pass's arrays are one prompt's: of a padded batch, of prompts packed together, of a chunk.

Told by what the dump has beside its stages: tokens, positions, an attention mask, lengths. A prompt is then judged as
if it had been alone: pads are no rows of it, and the first of its tokens stands at position 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """An axis of `of` prompts before that of `width` positions, pads among them; this prompt is number `row`."""

    row: int
    of: int
    width: int


@dataclass(frozen=True, slots=True)
class Rows:
    """One prompt's rows of a pass.

    batch: None where prompts, if several, lie one behind the other. width: positions that an array of the pass holds.
    take: which of them are this prompt's. positions: of those, absolute. ids: of those, if known.
    columns: how many columns of keys the pass adds, and so where the next pass's begin.
    sequence: (which, of how many) prompts, for logits of which each prompt has one row.
    odd: what is strange about them, for people. cut: whether rows behind these were left out.
    """

    batch: Batch | None
    width: int
    take: Ints
    positions: tuple[int, ...]
    ids: tuple[int, ...] | None = None
    sequence: tuple[int, int] = (0, 1)
    odd: str = ""
    cut: bool = False

    def until(self, end: int) -> Rows:
        """Without the rows from position `end` on."""
        n = sum(p < end for p in self.positions)
        ids = None if self.ids is None else self.ids[:n]
        return replace(self, take=self.take[:n], positions=self.positions[:n], ids=ids, cut=True)


def rows_of(facts: Mapping[str, Ints], width: int, prompts: int, past: int, row: int | None, where: str) -> Rows:
    """The rows of prompt `row` (None: there is only one).

    facts: tokens [T] or [B, T]; positions, attention_mask, seq_lens, cu_seqlens as engines have them. width, prompts:
    T and B as the stages' arrays have them. past: the position at which the pass begins, if nothing says so.
    Raises BadInput for several prompts without a row, and where rows cannot be told from pads.
    """
    tokens, mask, positions = (facts.get(k) for k in ("tokens", "attention_mask", "positions"))
    sides = [x.shape[0] for x in (tokens, mask) if x is not None and x.ndim == 2]
    B = max([*sides, prompts])
    if tokens is not None:
        width = tokens.shape[-1] if tokens.ndim == 2 else tokens.size
    elif positions is not None:
        width = positions.shape[-1]
    if B > 1 and any(n != B for n in sides):
        raise BadInput(f"{where}: tokens, attention_mask and arrays are of {sorted({*sides, prompts})} prompts")
    if B > 1 and (tokens is None or tokens.ndim == 2):
        return _padded(facts, width, B, past, _chosen(row, B, where), where)
    flat = {k: v.reshape(-1) for k, v in facts.items()}
    return _packed(flat, width, past, row, where)


def _chosen(row: int | None, of: int, where: str) -> int:
    if row is None and of > 1:
        raise BadInput(f"{where}: a batch of {of} prompts; say which is meant with --row 0, up to {of - 1}")
    if (row or 0) >= of:
        raise BadInput(f"{where}: --row {row}, where the batch has {of} prompts, from 0 to {of - 1}")
    return row or 0


def _padded(facts: Mapping[str, Ints], width: int, B: int, past: int, row: int, where: str) -> Rows:
    tokens, mask, positions = (facts.get(k) for k in ("tokens", "attention_mask", "positions"))
    ids_T = None if tokens is None else tokens[row]
    told_T = None if positions is None or positions.shape != (B, width) else positions[row]
    odd = ""
    if mask is not None and mask.shape[0] == B and mask.ndim == 2 and mask.shape[1] >= width:
        seen = mask[row] != 0
        kept = np.flatnonzero(seen[-width:])
        first = int(np.count_nonzero(seen[: mask.shape[1] - width]))
        if told_T is not None and len(kept) and not np.array_equal(told_T[kept], first + np.arange(len(kept))):
            held = told_T[kept]
            alone = f"{first} to {first + len(kept) - 1}"
            odd = f"the engine's positions of row {row} are {held[0]} to {held[-1]}, and {alone} of it alone"
    elif tokens is not None and (pads := _pads(tokens)) is not None:
        begin, end = pads[row]
        kept, first = np.arange(begin, end), past
    elif told_T is not None:
        kept = max(np.split(np.arange(width), np.flatnonzero(np.diff(told_T) != 1) + 1), key=len)
        first = int(told_T[kept[0]])
    else:
        raise BadInput(
            f"{where}: which of the {width} positions of row {row} are pads? Put attention_mask [{B}, {width}] or "
            "positions of the same shape into the dump"
        )
    if not len(kept):
        raise BadInput(f"{where}: row {row} holds pads only")
    ids = None if ids_T is None else tuple(map(int, ids_T[kept]))
    return Rows(Batch(row, B, width), width, kept, _run(first, len(kept)), ids, (row, B), odd)


def _pads(tokens: Ints) -> list[tuple[int, int]] | None:
    """(begin, end) of each row between its pads: the one id that fills the same side of rows, in some twice and in
    another not at all, and that stands nowhere else. None if no id would do, or several."""
    B, width = tokens.shape
    if width == 1:
        return [(0, 1)] * B
    found = []
    for side, turned in ((0, tokens), (1, tokens[:, ::-1])):
        for pad in np.unique(turned[:, 0]):
            runs = [int(np.argmax(np.append(r != pad, True))) for r in turned]
            clean = all(pad not in r[n:] for r, n in zip(turned, runs, strict=True))
            if clean and max(runs) > 1 and not all(runs) and max(runs) < width:
                found.append([(n, width) if side == 0 else (0, width - n) for n in runs])
    return found[0] if len(found) == 1 else None


def _packed(facts: Mapping[str, Ints], width: int, past: int, row: int | None, where: str) -> Rows:
    tokens, positions, lengths, ends = (facts.get(k) for k in ("tokens", "positions", "seq_lens", "cu_seqlens"))
    if positions is not None and positions.size != width:
        if positions.size % max(width, 1) or (positions.reshape(-1, width) != positions[:width]).any():
            raise BadInput(f"{where}: {positions.size} positions for {width} tokens")
        positions = positions[:width]  # of three axes of an image model, all the same for text
    starts = _starts(width, positions, lengths, ends, where)
    of = len(starts) - 1
    i = _chosen(row, of, where)
    take = np.arange(starts[i], starts[i + 1])
    if positions is not None:
        told = tuple(map(int, positions[take]))
    elif lengths is not None and len(lengths) == of:
        told = _run(int(lengths[i]) - len(take), len(take))
    else:
        told = _run(past, len(take))
    if any(b <= a for a, b in pairwise(told)) or (told and told[0] < 0):
        raise BadInput(f"{where}: positions {told[:8]} ... do not rise: say which prompts they are of with seq_lens")
    if told and told[-1] >= 1 << 31:
        raise BadInput(f"{where}: position {told[-1]}; they end at 2^31")
    ids = None if tokens is None else tuple(map(int, tokens[take]))
    return Rows(None, width, take, told, ids, (i, of))


def _starts(width: int, positions: Ints | None, lengths: Ints | None, ends: Ints | None, where: str) -> list[int]:
    """Where each prompt begins among the rows, and the end. Lengths are of a pass, or of all tokens so far."""
    if ends is not None:
        told = [int(n) for n in ends]
        if told[:1] != [0] or told[-1] != width or any(b <= a for a, b in pairwise(told)):
            raise BadInput(f"{where}: cu_seqlens {told[:8]} do not rise from 0 to the {width} rows of the pass")
        return told
    breaks = [] if positions is None else [int(i) + 1 for i in np.flatnonzero(np.diff(positions) != 1)]
    if lengths is None:
        return [0, *breaks, width]
    if len(lengths) == 1:
        return [0, width]
    if len(lengths) == width:
        return list(range(width + 1))
    if int(lengths.sum()) == width:
        return [0, *np.cumsum(lengths).tolist()]
    if len(breaks) + 1 == len(lengths):
        return [0, *breaks, width]
    raise BadInput(f"{where}: {len(lengths)} seq_lens for {width} rows: whose are they? Add positions or cu_seqlens")


def _run(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))
