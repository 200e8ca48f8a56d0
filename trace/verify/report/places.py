"""Where an error sits, in words: positions, heads, channels; and which of the weights would explain it."""

from __future__ import annotations

from ..finding import Where, WrongNumber, WrongRow

FIRST = 3  # indices of a part that is no run
PART = 0.9  # of an axis: an error in more of it is in all of it
SURE = 0.95  # of a block, before it is named without a doubt
ENOUGH = 128  # positions that decide between the blocks of a row, as measured on the 0.5B (docs/budgets.md)


def where_words(where: Where) -> list[str]:
    """Where the error sits, a line each."""
    parts = []
    for name in ("positions", "heads", "kv heads", "keys", "channels", "tokens"):
        axis = where.axes.get(name)
        if axis is None:
            continue
        if axis.of == 1:
            parts.append(f"the only {name.removesuffix('s')}")
        elif axis.count == axis.of:
            parts.append(f"all {axis.of} {name}")
        else:
            more = ", ..." if axis.count > len(axis.which) else ""
            parts.append(f"{axis.count} of {axis.of} {name} ({', '.join(map(str, axis.which))}{more})")
    lines = ["where: " + ", ".join(parts)] if parts else []
    return lines + [row_words(r) for r in where.rows or ()]


def part_words(where: Where) -> str:
    """In which part of the stage all of the error sits, if in a part: `positions 1 to 8`, `256 of 512 channels`."""
    said = []
    for name, axis in where.axes.items():
        if axis.count <= PART * axis.of and name != "keys":
            run = axis.count > 1 and axis.which == tuple(range(axis.which[0], axis.which[0] + axis.count))
            one, last = name.removesuffix("s"), axis.which[-1]
            if axis.count == 1:
                said.append(f"{one} {last}")
            elif run:
                said.append(f"{name} {axis.which[0]} to {last}")
            else:
                more = ", ..." if axis.count > FIRST else ""
                said.append(f"{axis.count} of {axis.of} {name} ({', '.join(map(str, axis.which[:FIRST]))}{more})")
    return ", ".join(said)


def surely(r: WrongRow) -> str:
    return f", block {r.block}," if r.confidence >= SURE else ""


def row_words(r: WrongRow) -> str:
    """Which weights are wrong, as far as the positions can tell."""
    row = f"weights: row {r.row} of {r.matrix} ({r.format})"
    if r.block is None:
        return f"{row}; one position cannot say which block of it: dump {ENOUGH} positions or more"
    start = r.block * r.size
    block = f"block {r.block} (columns {start} to {start + r.size - 1})"
    if r.confidence < SURE:
        return (
            f"{row}; so few positions do not say which block: perhaps {block}, {r.confidence:.0%} likely; "
            f"dump {ENOUGH} positions or more"
        )
    return f"{row}, {block}" + (f": {_amount(r.number)}" if r.number else "")


def _amount(n: WrongNumber) -> str:
    """Which number of the block is wrong, and by how much."""
    first, last = n.columns
    if n.factor is None:
        return f"the weight of column {first} is off by {n.change:+.3g}, all others are right"
    if n.what.startswith("group"):
        number = n.what.removeprefix("group").removeprefix("'s ")
        subject = f"the {number or 'share'} of columns {first} to {last}"
    else:
        subject = "it" if n.what == "block" else f"its {n.what}"
    return f"{subject} is lost" if abs(n.factor) < 1e-4 else f"{subject} counts {n.factor:.4g} times what it should"
