"""Attention as a map for each head, with the tokens beside it."""

from __future__ import annotations

from html import escape

import numpy as np

from ..stages import of_kind
from .names import Names
from .view import View

KEYS = 48  # queries and keys of a map; others are chosen with --rows and --columns
HEADS = 16  # maps
LETTER = 0.45  # how wide one is, in cells
FAINT = 0.25  # a largest probability below this would leave all of a map hardly seen
CELL_REM, SMALL_REM = 2.2, 0.8  # how large a cell may become, and how small where there is room


def attention(v: View, names: Names) -> str:
    """A map for each head: queries down, keys across, both by their tokens."""
    rows, columns = v.rows[-KEYS:], v.columns[-KEYS:]
    cut = len(rows) < len(v.rows) or len(columns) < len(v.columns)
    heads = (v.heads or range(1))[:HEADS]
    said = "Down: queries. Across: keys. The stronger the colour, the more of its attention a query gives."
    if v.entry.stage.name not in of_kind("soft-max"):
        said = "Down: queries. Across: keys. The stronger the colour, the larger the score among those of its query."
    said += f" The last {len(rows)} queries and {len(columns)} keys of what was chosen." * cut
    said += f" The first {len(heads)} heads of {len(v.heads or (0,))}." * (len(heads) < len(v.heads or (0,)))
    full = full_colour(v, heads, rows, columns)
    said += f" The full colour is {full:.2g}." * (full < 1)
    maps = "".join(head_map(v, h, rows, columns, names, full) for h in heads)
    least = f"--least: {max(22, SMALL_REM * len(columns)):.0f}rem"
    return f'<p class="soft">{said}</p><div class="attention" style="{least}">{maps}</div>'


def full_colour(v: View, heads: range, rows: range, columns: range) -> float:
    """The probability with the strongest colour: 1, but where the keys that are shown share little of a long prompt's
    attention the largest of theirs, one for all maps."""
    if v.entry.stage.name not in of_kind("soft-max"):
        return 1.0
    shown = np.asarray(v.by_head)[: len(heads), len(v.rows) - len(rows) :, len(v.columns) - len(columns) :]
    largest = float(np.max(shown, initial=0.0, where=np.isfinite(shown)))
    return largest if 0 < largest < FAINT else 1.0


def head_map(v: View, h: int, rows: range, columns: range, names: Names, full: float) -> str:
    """Queries and keys by their tokens, or their positions."""
    said = {p: short(names.at(p) or str(p)) for p in {*columns, *(v.positions[r] for r in rows)}}
    pad = 0.8 + LETTER * max(map(len, said.values()))  # for the tokens
    of_head = v.by_head[h - (v.heads or range(1)).start]
    parts = []
    for y, r in enumerate(rows):
        at = v.positions[r]
        computed = [c for c in columns if c <= at]
        line = {c: float(of_head[r - v.rows.start, c - v.columns.start]) for c in computed}
        shade = shades(v, line, full)
        parts.append(f'<text x="{pad - 0.3:g}" y="{y + pad + 0.75:g}" text-anchor="end">{escape(said[at])}</text>')
        for c, value in line.items():
            tip = escape(f"{at} {names.at(at)} -> {c} {names.at(c)}: {value:.4g}")
            box = f'x="{pad + c - columns.start:g}" y="{y + pad:g}" width="1" height="1"'
            parts.append(f'<rect class="within" {box} fill-opacity="{shade[c]:.2f}"><title>{tip}</title></rect>')
    for x, c in enumerate(columns):
        turned = f'transform="translate({x + pad + 0.75:g} {pad - 0.3:g}) rotate(-90)"'
        parts.append(f"<text {turned}>{escape(said[c])}</text>")
    wide, high = len(columns) + pad + 0.5, len(rows) + pad + 0.5
    box = f'viewBox="0 0 {wide:g} {high:g}" style="max-width: {CELL_REM * wide:.1f}rem" role="img"'
    return (
        f'<figure><svg class="tokens" {box} aria-label="head {h}">{"".join(parts)}</svg>'
        f'<figcaption class="soft">head {h}</figcaption></figure>'
    )


def shades(v: View, line: dict[int, float], full: float) -> dict[int, float]:
    """How strong each key's colour is: probabilities beside the full colour's, scores between a query's least and
    greatest."""
    finite = [x for x in line.values() if np.isfinite(x)]
    probable = v.entry.stage.name in of_kind("soft-max")
    low, high = (0.0, full) if probable else (min(finite, default=0.0), max(finite, default=1.0))
    span = high - low or 1.0
    return {c: min(1.0, max(0.0, (x - low) / span)) if np.isfinite(x) else 0.0 for c, x in line.items()}


def short(text: str) -> str:
    return text if len(text) < 14 else f"{text[:12]}…"
