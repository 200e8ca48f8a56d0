"""The pictures of a report beside its maps: inline SVG, a function each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite, log10

from ...plural import plural
from ..finding import UNEXPLAINED, Finding
from ..samples import EDGES, Head, Rows, Samples

WIDE, HIGH, EDGE = 300, 150, 30  # of a chart, in its own units
CURVES = 6  # stages drawn against layers
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")


def chart(caption: str, inside: Sequence[str]) -> str:
    box = f'<svg class="chart" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(caption)}">'
    return f'<figure>{box}{"".join(inside)}</svg><figcaption class="soft">{escape(caption)}</figcaption></figure>'


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def frame() -> str:
    return f'<path class="axis" d="M{EDGE} 8V{HIGH - EDGE}H{WIDE - 8}"/>'


def curves(findings: Sequence[Finding]) -> str:
    """Worst error over what rounding allows against layer, of the stages that are wrong somewhere; "" where none is."""
    stages = list(dict.fromkeys(f.stage for f in findings if f.verdict == UNEXPLAINED and f.layer is not None))[:CURVES]
    points: dict[str, dict[int, float]] = {s: {} for s in stages}
    for f in findings:
        if f.stage in points and f.layer is not None and f.worst is not None:
            y = log10(min(max(f.worst, 1e-2), 1e12)) if isfinite(f.worst) else 12.0
            points[f.stage][f.layer] = max(y, points[f.stage].get(f.layer, y))
    layers = [layer for line in points.values() for layer in line]
    if not layers:
        return ""
    last, top = max(*layers, 1), max(1.0, *(y for line in points.values() for y in line.values()))

    def place(layer: int, y: float) -> tuple[float, float]:
        return EDGE + (WIDE - EDGE - 12) * layer / last, HIGH - EDGE - (HIGH - EDGE - 12) * (y + 2) / (top + 2)

    _, limit = place(0, 0.0)
    parts = [
        frame(),
        f'<path class="limit" d="M{EDGE} {limit:.1f}H{WIDE - 8}"/>',
        label(EDGE - 3, limit + 3, "1", "end"),
    ]
    parts += [
        label(EDGE - 3, 15, f"1e{top:.0f}", "end"),
        label(EDGE, HIGH - 16, "0"),
        label(WIDE - 8, HIGH - 16, f"{last}", "end"),
    ]
    for i, (stage, line) in enumerate(points.items()):
        spots = [place(layer, y) for layer, y in sorted(line.items())]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(
            f'<path class="curve" stroke-dasharray="{DASHES[i]}" d="{path}"><title>{escape(stage)}</title></path>'
        )
        parts += (f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in spots)
        parts.append(label(EDGE + i * 90, HIGH - 4, stage) if i < 3 else "")
    named = ", ".join(stages)
    return chart(f"Largest error over what rounding allows (1: the limit), by layer: {named}.", parts)


def scatter(s: Samples) -> str:
    if not s.pairs:
        return ""
    values = [x for pair in s.pairs for x in pair]
    low, high = min(values), max(values)
    span = high - low or 1.0
    wide, high_ = WIDE - EDGE - 12, HIGH - EDGE - 12

    def place(expected: float, found: float) -> tuple[float, float]:
        return EDGE + wide * ((expected - low) / span), HIGH - EDGE - high_ * ((found - low) / span)

    (x0, y0), (x1, y1) = place(low, low), place(high, high)
    parts = [frame(), f'<path class="limit" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>']
    parts += (f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>' for x, y in (place(*p) for p in s.pairs))
    parts += [label(EDGE, HIGH - 16, f"{low:.3g}"), label(WIDE - 8, HIGH - 16, f"{high:.3g}", "end")]
    return chart(
        f"Found (up) against expected (right), {plural(len(s.pairs), 'value')}; on the line they agree.", parts
    )


def histogram(s: Samples) -> str:
    top, step = max(s.counts), (WIDE - EDGE - 12) / len(s.counts)
    if not top:
        return ""
    names, parts = [f"{e:g}".replace("10000", "1e4") for e in EDGES], [frame()]
    for i, n in enumerate(s.counts):
        tall = (HIGH - EDGE - 22) * log10(1 + n) / log10(1 + top)
        kind = "within" if i < len(EDGES) and EDGES[i] <= 1 else "beyond"
        counted = plural(n, "value")
        parts.append(
            f'<rect class="{kind}" x="{EDGE + i * step:.1f}" y="{HIGH - EDGE - tall:.1f}" width="{step - 2:.1f}" '
            f'height="{tall:.1f}"><title>{counted}</title></rect>'
        )
        parts.append(label(EDGE + (i + 1) * step, HIGH - 16, names[i], "middle") if i < len(names) else "")
    return chart(
        "Values by error in units of what rounding allows (heights are logarithms); right of 1 is wrong.", parts
    )


def attention(h: Head, tokens: Sequence[object] | None, names: tuple[str, str] = ("found", "expected")) -> str:
    """The worst head: found, expected, difference. tokens: of the prompt, as text or as ids; names: of the two."""
    apart = tuple(
        tuple(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(h.found, h.expected, strict=True)
    )
    both = [x for rows in (h.found, h.expected) for row in rows for x in row if isfinite(x)]
    low, high = min(both, default=0.0), max(both, default=1.0)
    worst = max((x for row in apart for x in row if isfinite(x)), default=0.0)
    shown = ((names[0], h.found, low, high), (names[1], h.expected, low, high), ("difference", apart, 0.0, worst))
    maps = "".join(_map(name, rows, a, b) for name, rows, a, b in shown)
    keys = [] if tokens is None else list(tokens[h.first_key : h.first_key + len(h.found[0])])
    said = f" Keys: tokens {' '.join(map(str, keys))}." if keys else ""
    where = f"queries from {h.first_query} down, keys from {h.first_key} across; difference up to {worst:.3g}."
    return f'<div class="heads">{maps}</div><p class="soft">{escape(f"Head {h.head}: {where}{said}")}</p>'


def one_head(name: str, rows: Rows) -> str:
    """Probabilities [queries][keys], from 0 to 1."""
    return _map(name, rows, 0.0, 1.0)


def _map(name: str, rows: Rows, low: float, high: float) -> str:
    kind = "beyond" if name == "difference" else "within"
    cells = (
        f'<rect class="{kind}" x="{x}" y="{y}" width="1" height="1" fill-opacity="{_shade(v, low, high):.2f}"/>'
        for y, row in enumerate(rows)
        for x, v in enumerate(row)
        if _shade(v, low, high) >= 0.01
    )
    box = f'viewBox="0 0 {len(rows[0])} {len(rows)}" role="img" aria-label="{name}"'
    return (
        f'<figure><svg class="head" {box}>{"".join(cells)}</svg><figcaption class="soft">{name}</figcaption></figure>'
    )


def _shade(v: float, low: float, high: float) -> float:
    return 0.0 if not isfinite(v) or high <= low else min(1.0, max(0.0, (v - low) / (high - low)))
