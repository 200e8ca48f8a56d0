"""Two dumps side by side as one HTML file: how far each stage is apart, against the tolerance, and where."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from math import isfinite, log10

import numpy as np

from ...compare import place
from ...diff import Diff, Row
from ...plural import plural
from ...store import phase_name
from ..samples import head_of
from .charts import attention
from .frame import framed, spelled, table, unbroken
from .grid import cell, grid

CROSS = "\N{MULTIPLICATION SIGN}"
MAPPED = 4  # passes whose map is drawn; the table has all
CARDS = 12  # stages beyond the tolerance that have a card
LEGEND = (
    ("exact", "", "equal"),
    ("reproduced", "", "within the tolerance"),
    ("unexplained", CROSS, "beyond"),
)
COLUMNS = ("stage", "elements", "cosine", "RMS(A-B)", "relative", "max |A-B|", "at")


def page(d: Diff, a: str, b: str, tokens: Sequence[str] | None) -> str:
    """a, b: the names of the two. tokens: the text of the prompt's tokens, or their ids, if they are known."""
    beyond = sorted((r for r in d.stages if not within(d, r)), key=lambda r: -r.figures.relative)
    passes: dict[int, list[Row]] = {}
    for r in d.stages:
        passes.setdefault(r.a.phase, []).append(r)
    signs = "".join(
        f'<li><svg viewBox="0 0 17 17">{cell(0, 0, kind, mark)}</svg>{words}</li>' for kind, mark, words in LEGEND
    )
    first = d.first_beyond
    parts = [
        f'<div class="status{"" if d.within else " bad"}"><h1>{unbroken(d.sentence)}</h1></div>',
        f'<p class="soft">A <code>{escape(a)}</code>, B <code>{escape(b)}</code>; relative = RMS(A - B) / RMS(A)</p>',
        "" if tokens is None else f"<p>{plural(len(tokens), 'token')}: {spelled(tokens)}</p>",
        f'<ul class="legend">{signs}</ul>',
    ]
    if first is not None:
        link = f'<a href="#{anchor(first)}">{escape(first.a.label)}</a>'
        parts.append(f"<p>The first beyond the tolerance: {link}</p>")
    parts.append('<div class="maps">')
    for phase, rows in [*passes.items()][:MAPPED]:
        cells = {(r.a.layer, r.a.stage.name): partial(drawn, d=d, r=r) for r in rows}
        parts.append(f"<div><h2>{escape(phase_name(phase))}: error against the tolerance</h2>{grid(cells)}</div>")
    parts.append("</div>")
    if beyond:
        shown = [first, *(r for r in beyond if r is not first)]
        pictured = [r for r in shown[CARDS:] if r is not None and r.a.stage.name == "attn_softmax"]
        shown = [*shown[:CARDS], *pictured[:1]]  # the worst attention, to be looked at
        cards = "".join(card(d, r, tokens) for r in shown if r is not None)
        parts.append(f'<h2>The first, and the largest</h2><div class="cards">{cards}</div>')
    left = {"only in A": d.pairs.only_a, "only in B": d.pairs.only_b, "fed another token": d.pairs.apart}
    for title, labels in left.items():
        if labels:
            parts.append(f"<p>Not compared, {title}: {plural(len(labels), 'stage')}, {escape(labels[0])} first.</p>")
    return framed(f"{a} and {b}: {d.sentence}", "\n".join([*parts, numbers(d)]))


def within(d: Diff, r: Row) -> bool:
    return r.figures.relative <= d.tolerance


def anchor(r: Row) -> str:
    return escape(f"d-{r.a.label.replace('/', '-')}")


def drawn(x: float, y: float, d: Diff, r: Row) -> str:
    """A cell; one beyond the tolerance is stronger the further, and leads to its card or its row."""
    error = r.figures.relative
    said = f"{r.a.label}: " + ("equal" if r.figures.equal else f"relative {error:.3e}")
    if r.figures.equal:
        return cell(x, y, "exact", "", said)
    if within(d, r):
        return cell(x, y, "reproduced", "", said, 0.45 + 0.55 * (error / d.tolerance if d.tolerance else 1))
    powers = log10(error / d.tolerance) if isfinite(error) and d.tolerance else 5
    box = cell(x, y, "unexplained", CROSS, said, 0.55 + 0.45 * min(1.0, powers / 5))
    return f'<a href="#{anchor(r)}">{box}</a>'


def card(d: Diff, r: Row, tokens: Sequence[str] | None) -> str:
    """A stage's largest differences; of a stage of attention also the head with the largest."""
    f = r.figures
    lines = ((place(r.a, t.index, d.pairs.sizes), f"{t.a:.9g}", f"{t.b:.9g}", f"{t.size:.3e}") for t in f.top)
    odd = f"<p>{f.mismatched} elements are NaN or Inf on one side only.</p>" if f.mismatched else ""
    said = f"relative {f.relative:.3e}, RMS(A-B) {f.rms_diff:.3e} of {f.rms_a:.3e}, {f.elements:,} elements"
    largest = table(("largest at", "A", "B", "|A-B|"), lines)
    head = f'<article id="{anchor(r)}"><h3>{escape(r.a.label)}</h3><p>{said}</p>'
    return f"{head}{odd}{largest}{heads(r, tokens)}</article>"


@np.errstate(all="ignore")
def heads(r: Row, tokens: Sequence[str] | None) -> str:
    """The head with the largest difference, of a stage whose values are known by head, query and key; else nothing."""
    if r.a.stage.letters != ("N", "T", "S") or len(r.a.shape) != 3:
        return ""
    a, b = (e.values().astype(np.float64) for e in (r.a, r.b))
    T, S = a.shape[1:]
    seen = np.tri(T, S, S - T, dtype=bool)
    a, b = (np.where(seen, x, 0) for x in (a, b))
    error = np.where(a == b, 0, np.abs(a - b))
    return attention(head_of(a, b, np.where(np.isnan(error), np.inf, error)), tokens, ("A", "B"))


def numbers(d: Diff) -> str:
    """Every figure of each stage."""
    rows = []
    for r in d.stages:
        f = r.figures
        at = "equal" if f.equal else place(r.a, f.top[0].index, d.pairs.sizes) if f.top else "-"
        cosine = "-" if f.cosine is None else f"{f.cosine:.10f}"
        sizes = (f"{x:.3e}" for x in (f.rms_diff, f.relative, f.max_abs))
        rows.append((r.a.label, str(f.elements), cosine, *sizes, at))
    return f"<details open><summary>Every stage, in numbers</summary>{table(COLUMNS, rows, (0, 6))}</details>"
