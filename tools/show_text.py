"""What `engine show` prints, in 80 columns: values as NumPy has them, figures row by row and layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.cells import set_cell_size

from ..trace.show.figures import LayerFigures, RowFigures, row_figures
from ..trace.show.view import Line, View
from ..trace.stats import Statistics
from .terminal import one_line

WIDTH = 80
CELL = 10  # a number and the space before it
LABEL = 15  # what a row is called
EDGE = 3  # rows and columns at each end of what nobody chose
LONG = 12  # rows that are shown from end to end
PEAKS = 5

Named = Callable[[int], str]  # what stands at a position: its token, as text or as an id; "" where nobody knows
T = TypeVar("T")


def number(x: float | None) -> str:
    """Four digits, or three where an exponent leaves no room for them."""
    if x is None:
        return "-"
    text = f"{x:.4g}"
    return text if len(text) < CELL else f"{x:.3g}"


def ends(things: Sequence[T], most: int) -> list[T | None]:
    """All of them, or the first and the last with None between."""
    return list(things) if len(things) <= most else [*things[:EDGE], None, *things[-EDGE:]]


def header(v: View) -> str:
    """Which stage, of which shape, and which part of it."""
    e = v.entry
    axes = " x ".join(f"{n} {letter}" for n, letter in zip(e.shape, e.stage.letters, strict=True))
    chosen = [(v.heads, "heads", e.shape[e.stage.letters.index("T") == 0]) for _ in range(v.heads is not None)]
    chosen += [(v.rows, "rows", len(v.positions) if "T" in e.stage.letters else 1)]
    chosen += [(v.columns, f"{v.column_is}s", e.shape[-1])]
    parts = [
        f"{what} {span.start}:{span.stop}" for span, what, whole in chosen if span is not None and len(span) < whole
    ]
    return f"{e.label}  {axes}" + "".join(f", {p}" for p in parts)


def label(line: Line, named: Named) -> str:
    head = "" if line.head is None else f"h{line.head} "
    return set_cell_size(one_line(f"{head}{line.position:>4} {named(line.position)}"), LABEL)


def value_lines(v: View, named: Named, every_row: bool, every_column: bool) -> Iterator[str]:
    """The values; every: whether all are shown, which is so where the user chose them."""
    lines = list(v.lines())
    rows = list(lines) if every_row else ends(lines, LONG)
    room = (WIDTH - LABEL) // CELL
    columns = list(v.columns) if every_column else ends(v.columns, room)
    pitch = room if every_column else len(columns)
    for start in range(0, len(columns), pitch):
        block = columns[start : start + pitch]
        yield " " * LABEL + "".join("  ..." if c is None else f"{c:>{CELL}}" for c in block)
        for line in rows:
            yield (
                "  ..."
                if line is None
                else label(line, named)
                + "".join(
                    "  ..." if c is None else f"{number(float(line.values[c - v.columns.start])):>{CELL}}"
                    for c in block
                )
            )


def figures_of(s: Statistics) -> str:
    zeros = f"{s.zero / s.count:.1%}" if s.count else "-"
    numbers = "".join(f"{number(x):>{CELL}}" for x in (s.mean, s.std, s.rms, s.min, s.max))
    return f"{numbers}{zeros:>8}{s.nan + s.inf:>7}"


def row_lines(v: View, named: Named, every_row: bool) -> Iterator[str]:
    """Statistics of each row, and which columns are the largest."""
    lines = list(v.lines())
    found: list[RowFigures | None] = [
        None if line is None else row_figures(v, line, PEAKS) for line in (lines if every_row else ends(lines, LONG))
    ]
    titles = "".join(f"{t:>{CELL}}" for t in ("mean", "std", "rms", "min", "max"))
    yield f"{'':<{LABEL}}{titles}{'zero':>8}{'odd':>7}".rstrip()
    yield from ("  ..." if f is None else label(f.line, named) + figures_of(f.statistics) for f in found)
    yield ""
    yield f"largest {v.column_is}s"
    for f in found:
        peaks = () if f is None else f.largest
        yield (
            "  ..."
            if f is None
            else (label(f.line, named) + "".join(f"  {p.column}: {number(p.value)}" for p in peaks))
        )


def layer_lines(found: Sequence[LayerFigures], column_is: str) -> Iterator[str]:
    """A line for each layer."""
    yield f"{'layer':>5}{'rms':>11}{'max |x|':>11}  {'where':<34}{'massive':>8}{'odd':>7}"
    for f in found:
        where, size = "-", None
        if f.worst is not None:
            line, peak = f.worst
            head = "" if line.head is None else f"head {line.head}, "
            where, size = f"{head}position {line.position}, {column_is} {peak.column}", abs(peak.value)
        s = f.statistics
        layer = "-" if f.entry.layer is None else f.entry.layer
        yield f"{layer:>5} {number(s.rms):>10} {number(size):>10}  {where:<34}{f.massive:>8}{s.nan + s.inf:>7}"
