"""The tensors of two models, of any two containers, matched by their roles: which differ, by how much, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...quant.label import mislabelled
from ...quant.tensor import QTensor, format_of
from ..config import Config
from . import Checkpoint
from .diff_causes import NOISE, WHOLE, Others, cause_of, distance, rows_of, transposed

LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor. max_abs and relative_rms (the difference over A) are NaN where a NaN or infinity meets another
    value."""

    name: str
    verdict: str
    a: str | None = None
    b: str | None = None
    max_abs: float | None = None
    relative_rms: float | None = None
    unlike: int = 0  # values that differ
    note: str = ""
    holds: str | None = None  # the tensor of A that B's is


def tensor_rows(one: Checkpoint, two: Checkpoint) -> Iterator[tuple[Row, int]]:
    """A row for each tensor of either file, matched by its role, with the bytes of A that it took."""
    a, b = by_role(one), by_role(two)
    others = Others(a)
    for name in (*a, *(name for name in b if name not in a)):
        if name not in b or name not in a:
            verdict, x = ("only in A", a[name]) if name in a else ("only in B", b[name])
            said = label(x)
            yield Row(name, verdict, *((said, None) if name in a else (None, said))), x.data.size if name in a else 0
        else:
            yield compare_tensor(name, a[name], b[name], one.config, others), a[name].data.size


def by_role(model: Checkpoint) -> dict[str, QTensor]:
    """Tensors by Hugging Face's names. A tied model's head is its embedding, whether the file repeats it or not."""
    a = model.config.architecture
    embed, head = a.whole["embed"].hf, a.whole["lm_head"].hf
    sizes = model.config.sizes
    found = {a.renamed(name, "hf") or name: a.in_order(w, "hf", sizes) for name, w in model.tensors.items()}
    if model.config.tie_word_embeddings and embed in found:
        found[head] = found[embed]
    return found


def label(w: QTensor) -> str:
    return f"{w.format} {list(w.shape)}"


def compare_tensor(name: str, x: QTensor, y: QTensor, c: Config | None = None, others: Others | None = None) -> Row:
    """Bytes first; then values, in float64 where they differ; then, with the rest of A to look at, why they do."""
    a, b, notes = label(x), label(y), []
    for which, w in (("A", x), ("B", y)):
        if likely := mislabelled(w):
            notes.append(f"{which} looks like {likely} labelled {w.format}")
    if not math.prod(x.shape) and x.shape == y.shape:
        return Row(name, "identical values", a, b, 0.0, 0.0, note="no values")
    x, y = (replace(w, shape=w.shape or (1,)) for w in (x, y))  # a single value is a row of one
    with np.errstate(all="ignore"):  # NaN, infinities and what overflows are counted
        if x.shape != y.shape:
            if x.shape != y.shape[::-1]:
                return Row(name, "shapes differ", a, b, note="; ".join(notes))
            y, turned = turn(x, y)
            notes.append(turned)
            if x.shape != y.shape:
                return Row(name, "shapes differ", a, b, note="; ".join(filter(None, notes)))
        if x.format == y.format and np.array_equal(x.data, y.data):
            return Row(name, "identical bytes", a, b, 0.0, 0.0, note="; ".join(notes))
        raw = distance(rows_of(x), y)
        if not raw.unlike:
            return Row(name, "identical values", a, b, 0.0, 0.0, note="; ".join(notes))
        if raw.incomparable:
            notes.append(f"{raw.incomparable} NaN or infinite against another value")
            return Row(name, "differ", a, b, math.nan, math.nan, raw.unlike, "; ".join(notes))
        found = cause_of(name, x, y, raw, c, others) if c and others else None
        if found:
            notes.append(f"B holds {found[0].sentence}{nearly(found[1])}")
        other = found[0].other if found else None
        return Row(name, "differ", a, b, raw.largest, raw.relative, raw.unlike, "; ".join(notes), other)


def turn(x: QTensor, y: QTensor) -> tuple[QTensor, str]:
    """B of swapped axes: with A's shape if it is the same memory under another label, and what is to be said of it."""
    fits = y.shape[0] % format_of(y.format).block == 0
    same = replace(y, shape=x.shape)
    if fits and distance(rows_of(x), same).relative <= NOISE:
        return same, "the same memory, labelled [out, in] and [in, out]"
    left = distance(transposed(x), y, WHOLE)
    if not left.incomparable and left.relative <= NOISE:
        return y, f"B holds the transpose of A's{nearly(left.relative if left.unlike else 0)}"
    return y, ""


def nearly(left: float) -> str:
    return ", exactly" if not left else f", but for a relative RMS of {left:.2e}"


def exchanged(rows: list[Row]) -> list[Row]:
    """The rows, with a word where two tensors of A stand in each other's place."""
    holds = {row.name: row.holds for row in rows}
    mutual = {name for name, other in holds.items() if other and holds.get(other) == name}
    return [replace(row, note=f"{row.note}: the two are exchanged") if row.name in mutual else row for row in rows]


def layers_moved(rows: list[Row]) -> dict[int, int]:
    """layer of B: the layer of A that it is, where all that differs in it says so."""
    told: dict[int, set[int | None]] = {}
    for row in rows:
        at = LAYER.search(row.name)
        if at and not row.verdict.startswith("identical"):
            of = LAYER.search(row.holds or "")
            same = of and row.holds == row.name[: at.start(1)] + of[1] + row.name[at.end(1) :]
            told.setdefault(int(at[1]), set()).add(int(of[1]) if of and same else None)
    return {b: a for b, (a, *more) in ((b, tuple(s)) for b, s in told.items()) if a is not None and not more}
