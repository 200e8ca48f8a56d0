"""A table in the width of a terminal: names, then figures; a row without any says why, on as many lines as it takes"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from .columns import WIDTH
from .terminal import one_line

LEAST = 12  # of a column of names, or of text


@dataclass(frozen=True, slots=True)
class Column:
    """text: to the left, and cut where the line ends; else a figure, to the right."""

    head: str
    text: bool = False


def table(
    names: Sequence[Mapping[str, str]], rows: Sequence[tuple[str, ...] | str], columns: Sequence[Column]
) -> list[str]:
    """Its lines. names: of each row, by head. rows: a cell for each column, or the one line of what failed.

    A name that all rows share is told once, above. Long names keep their ends, which tell them apart.
    """
    shared = {head: name for head, name in names[0].items() if len(names) > 1 and {n[head] for n in names} == {name}}
    heads = [head for head in names[0] if head not in shared]
    cells = [[row[i] for row in rows if not isinstance(row, str)] for i in range(len(columns))]
    wide = [max([len(c.head), *map(len, mine)]) for c, mine in zip(columns, cells, strict=True)]
    left = WIDTH - sum(w + 2 for w, c in zip(wide, columns, strict=True) if not c.text)
    left -= sum(2 + LEAST for c in columns if c.text)
    longest = [max(len(head), *(len(one_line(n[head])) for n in names)) for head in heads]
    room = _shared_out(longest, left - 2 * (len(heads) - 1))
    lines = [one_line(f"{head}: {name}") for head, name in shared.items()]
    lines.append(
        _line([_fit(h, w) for h, w in zip(heads, room, strict=True)], [c.head for c in columns], wide, columns)
    )
    for named, row in zip(names, rows, strict=True):
        first = [_fit(one_line(named[head]), w) for head, w in zip(heads, room, strict=True)]
        if isinstance(row, str):
            said = "  ".join([*first, one_line(row)])
            lines += wrap(said, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        else:
            lines.append(_line(first, [one_line(cell) for cell in row], wide, columns))
    return lines


def _shared_out(longest: Sequence[int], room: int) -> list[int]:
    """Room for each column of names: all it wants if there is so much, else what those that want less leave."""
    widths, left = dict.fromkeys(range(len(longest)), 0), room
    for rank, i in enumerate(sorted(widths, key=lambda i: longest[i])):
        widths[i] = min(longest[i], max(LEAST, left // (len(longest) - rank)))
        left -= widths[i]
    return list(widths.values())


def _fit(name: str, width: int) -> str:
    return f"{name:{width}}" if len(name) <= width else f"…{name[1 - width :]}"


def _line(first: Sequence[str], cells: Sequence[str], wide: Sequence[int], columns: Sequence[Column]) -> str:
    said = [cell if c.text else f"{cell:>{w}}" for cell, w, c in zip(cells, wide, columns, strict=True)]
    line = "  ".join([*first, *said]).rstrip()
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
