"""engine diff --weights: the tensors of two model files, of any two containers, side by side."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from ..engine.aliases import resolve
from ..engine.files.diff_weights import LAYER, Row, exchanged, layers_moved, tensor_rows
from ..errors import BadInput
from .load import open_model
from .terminal import json_text, one_line

ORDER = ("identical bytes", "identical values", "differ", "shapes differ", "only in A", "only in B")


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
        for row, size in tensor_rows(one, two):
            rows.append(row)
            done += size
            show(done)
    for opened in (one, two):
        opened.check_unchanged()
    rows = exchanged(rows)
    moved = layers_moved(rows)
    if not any(row.a and row.b for row in rows):
        raise BadInput(f"{a} and {b} have no tensor in common")
    counts = {verdict: n for verdict in ORDER if (n := Counter(row.verdict for row in rows)[verdict])}
    mine, others = one.config.spelled(), two.config.spelled()
    settings = {
        field: [mine.get(field), others.get(field)]
        for field in mine | others
        if mine.get(field) != others.get(field) and field != "tie_word_embeddings"
    }
    if args.json:
        found = {"a": str(a), "b": str(b), "counts": counts, "config": settings, "layers_of_a": moved}
        print(json_text(found | {"tensors": list(map(asdict, rows))}))
    else:
        for line in describe(rows, counts, settings, moved):
            print(one_line(line))
    return 0 if set(counts) <= {"identical bytes", "identical values"} else 1


def describe(
    rows: list[Row], counts: dict[str, int], settings: dict[str, list[object]], moved: dict[int, int]
) -> Iterator[str]:
    """What is not identical, a line each, worst verdict last; layers that stand elsewhere in one; then the sums."""
    for row in sorted(rows, key=lambda row: (ORDER.index(row.verdict), row.relative_rms or 0)):
        if row.verdict.startswith("identical"):
            if row.note:
                yield f"{row.name}: {row.note}"
            continue
        if (at := LAYER.search(row.name)) and int(at[1]) in moved:
            continue
        said = " against ".join(filter(None, (row.a, row.b)))
        size = f": max |a-b| {row.max_abs:.3e}, relative RMS {row.relative_rms:.3e}" if row.max_abs is not None else ""
        yield f"{row.name} ({said}) {row.verdict}{size}{'; ' + row.note if row.note else ''}"
    if moved:
        said = ", ".join(f"{b} is A's {a}" for b, a in sorted(moved.items()))
        yield f"layers of B that are other layers of A: {said}"
    for field, (x, y) in settings.items():
        yield f"config: {field} is {x} in A, {y} in B"
    yield ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + f" ({len(rows)} tensors)"
