"""What `engine show` prints, in 80 columns: values as NumPy has them, figures row by row and layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import TypeVar

from rich.cells import cell_len, set_cell_size

from ..trace.show.figures import LayerFigures, RowFigures, row_figures
from ..trace.show.guess import Guess
from ..trace.show.histogram import Histogram
from ..trace.show.names import Names
from ..trace.show.view import Line, View
from ..trace.stats import Statistics
from .terminal import one_line

WIDTH = 80
CELL = 10  # a number and the space before it
LABEL = 15  # what a row is called
EDGE = 3  # rows and columns at each end of what nobody chose
BAR = 40  # of the tallest bin
LONG = 12  # rows that are shown from end to end
PEAKS = 5

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
    length = dict(zip(e.stage.letters, e.shape, strict=True))
    spans = [(f"{v.column_is}s", v.columns, e.shape[-1]), ("rows", v.rows, length.get("T", 1))]
    if v.heads is not None:
        spans.append(("heads", v.heads, length.get("N") or length["K"]))
    return f"{e.label}  {axes}" + "".join(
        f", {what} {span.start}:{span.stop}" for what, span, whole in reversed(spans) if len(span) < whole
    )


def label(line: Line, names: Names) -> str:
    head = "" if line.head is None else f"h{line.head} "
    return set_cell_size(one_line(f"{head}{line.position:>4} {names.at(line.position)}"), LABEL)


def value_lines(v: View, names: Names, every_row: bool, every_column: bool) -> Iterator[str]:
    """The values; every: whether all are shown, which is so where the user chose them."""
    lines = list(v.lines())
    rows = list(lines) if every_row else ends(lines, LONG)
    room = (WIDTH - LABEL) // CELL
    columns = list(v.columns) if every_column else ends(v.columns, room)
    pitch = room if every_column else len(columns)
    for start in range(0, len(columns), pitch):
        block = columns[start : start + pitch]
        yield " " * LABEL + "".join("  ..." if c is None else f"{c:>{CELL}}" for c in block)
        yield from ("  ..." if line is None else label(line, names) + cells(v, line, block) for line in rows)


def cells(v: View, line: Line, columns: Sequence[int | None]) -> str:
    first = v.columns.start
    return "".join("  ..." if c is None else f"{number(float(line.values[c - first])):>{CELL}}" for c in columns)


def figures_of(s: Statistics) -> str:
    zeros = f"{s.zero / s.count:.1%}" if s.count else "-"
    numbers = "".join(f"{number(x):>{CELL}}" for x in (s.mean, s.std, s.rms, s.min, s.max))
    return f"{numbers}{zeros:>7}{s.nan + s.inf:>8}"


def row_lines(v: View, names: Names, every_row: bool) -> Iterator[str]:
    """Statistics of each row, and which columns are the largest."""
    lines = list(v.lines())
    shown = lines if every_row else ends(lines, LONG)
    found = [None if line is None else row_figures(v, line, PEAKS) for line in shown]
    titles = "".join(f"{t:>{CELL}}" for t in ("mean", "std", "rms", "min", "max"))
    yield f"{'':<{LABEL}}{titles}{'zero':>7}{'NaN/inf':>8}"
    yield from ("  ..." if f is None else label(f.line, names) + figures_of(f.statistics) for f in found)
    yield ""
    yield f"largest {v.column_is}s"
    yield from ("  ..." if f is None else peaks_of(f, v.column_is, names) for f in found)


def peaks_of(f: RowFigures, column_is: str, names: Names) -> str:
    """As many as fit the line, and one in any case."""
    text = label(f.line, names)
    for p in f.largest:
        name = {"key": names.at, "token": names.spelled}.get(column_is, lambda column: "")(p.column)
        more = one_line(f"  {' '.join(filter(None, (str(p.column), name)))}: {number(p.value)}")
        if p is not f.largest[0] and cell_len(text + more) > WIDTH:
            break
        text += more
    return text


def histogram_lines(h: Histogram, block: str) -> Iterator[str]:
    """A bar for each bin; block: what bars are made of."""
    bins = [(f"below {number(h.edges[0])}", h.below)] * bool(h.below)
    bins += [(f"{number(a)} .. {number(b)}", n) for a, b, n in zip(h.edges, h.edges[1:], h.counts, strict=False)]
    bins += [(f"{number(h.edges[-1])} and above", h.above)] * bool(h.above)
    tallest = max(n for _, n in bins)
    for name, n in bins:
        yield f"{name:>24}{n:>11}  {block * ceil(BAR * n / tallest)}".rstrip()


def layer_lines(found: Sequence[LayerFigures], column_is: str) -> Iterator[str]:
    """A line for each layer."""
    yield f"{'layer':>5}{'rms':>11}{'max |x|':>11}  {'where':<34}{'massive':>7}{'NaN/inf':>9}"
    for f in found:
        where, size = "-", None
        if f.worst is not None:
            line, peak = f.worst
            head = "" if line.head is None else f"head {line.head}, "
            where, size = f"{head}position {line.position}, {column_is} {peak.column}", abs(peak.value)
        s = f.statistics
        layer = "-" if f.entry.layer is None else f.entry.layer
        yield f"{layer:>5} {number(s.rms):>10} {number(size):>10}  {where:<34}{f.massive:>7}{s.nan + s.inf:>9}"


def lens_lines(guesses: Sequence[Guess], names: Names) -> Iterator[str]:
    """What each layer says at one position, as many tokens as fit the line."""
    first, last = guesses[0], guesses[-1]
    answer = f"{last.top[0].id} {names.spelled(last.top[0].id)}".rstrip() if last.top else "nothing"
    yield one_line(f"position {first.position} {names.at(first.position)}: rank is of {answer}, the last line's choice")
    yield f"{'layer':>5}{'rank':>8}  likeliest next tokens"
    for g in guesses:
        text = f"{'-' if g.layer is None else g.layer:>5}{'-' if g.rank is None else g.rank:>8}"
        text += "" if g.top else "  not finite"
        for t in g.top:
            more = one_line(f"  {t.probability:6.1%} {names.spelled(t.id) or t.id}")
            if t is not g.top[0] and cell_len(text + more) > WIDTH:
                break
            text += more
        yield text
