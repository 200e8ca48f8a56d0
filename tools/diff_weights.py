"""engine diff --weights: the tensors of two model files, of any two containers, side by side."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..engine.files import Checkpoint
from ..quant.errors import BadInput
from ..quant.label import mislabelled
from ..quant.tensor import QTensor, dequantize
from .load import open_model
from .models import resolve
from .terminal import one_line

SLAB = 1 << 22  # values compared at a time
ORDER = ("identical bytes", "identical values", "differ", "shapes differ", "only in A", "only in B")


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


def main(args: argparse.Namespace) -> int:
    """Prints what differs. Returns 0 if all values are the same, 1 if not; BadInput if nothing can be compared."""
    from .progress import progress

    if args.csv:
        raise BadInput("--csv is a table of stages; with --weights there is --json")
    if args.tolerance is not None or args.top is not None:
        raise BadInput("--tolerance and --top are about stages; weights are the same, or every difference is told")
    a, b = resolve(args.a), resolve(args.b)
    one, two = open_model(str(a)), open_model(str(b))
    total = sum(w.data.size for w in one.tensors.values())
    rows = []
    with progress("comparing", total, "bytes") as show:
        done = 0
        for row, size in compare(one, two):
            rows.append(row)
            done += size
            show(done)
    if not any(row.a and row.b for row in rows):
        raise BadInput(f"{a} and {b} have no tensor in common")
    counts = {verdict: n for verdict in ORDER if (n := Counter(row.verdict for row in rows)[verdict])}
    settings = {
        field: [value, other]
        for field, value in asdict(one.config).items()
        if (other := getattr(two.config, field)) != value and field != "tie_word_embeddings"
    }
    if args.json:
        print(
            json.dumps(
                {"a": str(a), "b": str(b), "counts": counts, "config": settings, "tensors": list(map(plain, rows))}
            )
        )
    else:
        for line in describe(rows, counts, settings):
            print(one_line(line))
    return 0 if set(counts) <= {"identical bytes", "identical values"} else 1


def compare(one: Checkpoint, two: Checkpoint) -> Iterator[tuple[Row, int]]:
    """A row for each tensor of either file, matched by its role, with the bytes of A that it took."""
    a, b = by_role(one), by_role(two)
    for name in (*a, *(name for name in b if name not in a)):
        if name not in b or name not in a:
            verdict, x = ("only in A", a[name]) if name in a else ("only in B", b[name])
            said = label(x)
            yield Row(name, verdict, *((said, None) if name in a else (None, said))), x.data.size if name in a else 0
        else:
            yield compare_tensor(name, a[name], b[name]), a[name].data.size


def by_role(model: Checkpoint) -> dict[str, QTensor]:
    """Tensors by Hugging Face's names. A tied model's head is its embedding, whether the file repeats it or not."""
    a = model.config.architecture
    embed, head = a.whole["embed"].hf, a.whole["lm_head"].hf
    found = {a.renamed(name, "hf") or name: w for name, w in model.tensors.items()}
    if model.config.tie_word_embeddings and embed in found:
        found[head] = found[embed]
    return found


def label(w: QTensor) -> str:
    return f"{w.format} {list(w.shape)}"


def compare_tensor(name: str, x: QTensor, y: QTensor) -> Row:
    """Bytes first; then values, a slab at a time, in float64 where they differ."""
    a, b, notes = label(x), label(y), []
    for which, w in (("A", x), ("B", y)):
        if likely := mislabelled(w):
            notes.append(f"{which} looks like {likely} labelled {w.format}")
    if x.shape != y.shape and x.shape == y.shape[::-1] and x.format == y.format and x.data.size == y.data.size:
        notes.append("the same memory, labelled [out, in] and [in, out]")
        y = replace(y, shape=x.shape)
    if x.shape != y.shape:
        return Row(name, "shapes differ", a, b, note="; ".join(notes))
    if x.format == y.format and np.array_equal(x.data, y.data):
        return Row(name, "identical bytes", a, b, 0.0, 0.0, note="; ".join(notes))
    if not math.prod(x.shape):
        return Row(name, "identical values", a, b, 0.0, 0.0, note="no values")
    x, y = (replace(w, shape=w.shape or (1,)) for w in (x, y))  # a single value is a row of one
    largest, square, scale, unlike, incomparable = 0.0, 0.0, 0.0, 0, 0
    step = max(1, SLAB * x.shape[0] // math.prod(x.shape))
    for start in range(0, x.shape[0], step):
        stop = min(start + step, x.shape[0])
        u, v = dequantize(x, start, stop), dequantize(y, start, stop)
        other = ~((u == v) | (np.isnan(u) & np.isnan(v)))
        scale += float(np.sum(np.square(u[np.isfinite(u)], dtype=np.float64)))
        if other.any():
            unlike += int(np.count_nonzero(other))
            p, q = u[other].astype(np.float64), v[other].astype(np.float64)
            finite = np.isfinite(p) & np.isfinite(q)
            incomparable += int(np.count_nonzero(~finite))
            gap = np.abs(p - q)[finite]
            largest = max(largest, float(gap.max(initial=0)))
            square += float(np.sum(np.square(gap)))
    if not unlike:
        return Row(name, "identical values", a, b, 0.0, 0.0, note="; ".join(notes))
    if incomparable:
        notes.append(f"{incomparable} NaN or infinite against another value")
        return Row(name, "differ", a, b, math.nan, math.nan, unlike, "; ".join(notes))
    relative = math.sqrt(square / scale) if scale else math.inf
    return Row(name, "differ", a, b, largest, relative, unlike, "; ".join(notes))


def plain(row: Row) -> dict[str, object]:
    """For JSON, which has no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}


def describe(rows: list[Row], counts: dict[str, int], settings: dict[str, list[object]]) -> Iterator[str]:
    """What is not identical, a line each, worst verdict last; then the sums."""
    for row in sorted(rows, key=lambda row: (ORDER.index(row.verdict), row.relative_rms or 0)):
        if row.verdict.startswith("identical"):
            if row.note:
                yield f"{row.name}: {row.note}"
            continue
        said = " against ".join(filter(None, (row.a, row.b)))
        size = f": max |a-b| {row.max_abs:.3e}, relative RMS {row.relative_rms:.3e}" if row.max_abs is not None else ""
        yield f"{row.name} ({said}) {row.verdict}{size}{'; ' + row.note if row.note else ''}"
    for field, (x, y) in settings.items():
        yield f"config: {field} is {x} in A, {y} in B"
    yield ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + f" ({len(rows)} tensors)"
