"""Where an error sits, in words: positions, heads, channels; and which of the weights would explain it."""

from __future__ import annotations

from typing import Any

SURE = 0.95  # of a block, before it is named without a doubt
ENOUGH = 128  # positions that decide between the blocks of a row, as measured on the 0.5B (docs/budgets.md)


def place_of(where: dict[str, Any]) -> list[str]:
    """Where the error sits, in words."""
    parts = []
    for axis in ("positions", "heads", "kv heads", "keys", "channels", "tokens"):
        if axis in where:
            n, of, which = (where[axis][k] for k in ("count", "of", "which"))
            if n == of:
                parts.append(f"all {of} {axis}")
            else:
                parts.append(f"{n} of {of} {axis} ({', '.join(map(str, which))}{', ...' if n > len(which) else ''})")
    lines = ["where: " + ", ".join(parts)] if parts else []
    return lines + [block_words(b) for b in where.get("blocks", ())]


def surely(b: dict[str, Any]) -> str:
    return f", block {b['block']}," if b["confidence"] >= SURE else ""


def block_words(b: dict[str, Any]) -> str:
    """Which weights are wrong, as far as the positions can tell."""
    row = f"weights: row {b['row']} of {b['matrix']} ({b['format']})"
    if b["block"] is None:
        return f"{row}; one position cannot say which block of it: dump {ENOUGH} positions or more"
    start = b["block"] * b["size"]
    block = f"block {b['block']} (columns {start} to {start + b['size'] - 1})"
    if b["confidence"] < SURE:
        return (
            f"{row}; so few positions do not say which block: perhaps {block}, {b['confidence']:.0%} likely; "
            f"dump {ENOUGH} positions or more"
        )
    return f"{row}, {block}" + (f": {_amount(b)}" if "what" in b else "")


def _amount(b: dict[str, Any]) -> str:
    """Which number of the block is wrong, and by how much."""
    first, last = b["columns"]
    if b["what"] == "weight":
        return f"the weight of column {first} is off by {b['change']:+.3g}, all others are right"
    if b["what"].startswith("group"):
        number = b["what"].removeprefix("group").removeprefix("'s ")
        subject = f"the {number or 'share'} of columns {first} to {last}"
    else:
        subject = "it" if b["what"] == "block" else f"its {b['what']}"
    return (
        f"{subject} is lost" if abs(b["factor"]) < 1e-4 else f"{subject} counts {b['factor']:.4g} times what it should"
    )
