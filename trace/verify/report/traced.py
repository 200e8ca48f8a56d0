"""A traced pass as one HTML file: how large every stage is, what is in it, and what attention looks at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from math import log10
from typing import NamedTuple

from ...plural import plural
from ...recorder import Row, Summary
from ...store import phase_name
from .charts import one_head
from .frame import framed, spelled, table
from .grid import cell, grid

DECADES = 3  # from the strongest colour to the palest
MAPPED = 4  # passes whose map is drawn; the table has all
COLUMNS = ("stage", "RMS", "mean", "std", "min", "max", "NaN", "Inf", "zero")


class Candidate(NamedTuple):
    """A token that may come next."""

    text: str
    logit: float


def page(name: str, summaries: Sequence[Summary], tokens: Sequence[str], next_: Sequence[Sequence[Candidate]]) -> str:
    """name: what was run. tokens: the text of each token of the prompt, or its id. next_: the likeliest after each
    pass."""
    rows = [r for s in summaries for r in s.rows]
    odd = [r for r in rows if r.anomalies()]
    found = f"{len(odd)} with what no healthy stage shows" if odd else "none has NaN or Inf, or is constant"
    steps = f" and {plural(len(summaries) - 1, 'step')}" if len(summaries) > 1 else ""
    head = f"{plural(len(rows), 'stage')} of the prompt{steps}: {found}"
    parts = [
        f'<div class="status{" bad" if odd else ""}"><h1>{escape(head)}</h1></div>',
        f'<p class="soft"><code>{escape(name)}</code></p>',
        f"<p>{plural(len(tokens), 'token')}: {spelled(tokens)}</p>",
    ]
    if odd:
        items = (f"<li>{escape(where(r))}: {escape(', '.join(r.anomalies()))}</li>" for r in odd[:24])
        parts.append(f"<ul>{''.join(items)}</ul>" + (f"<p>and {len(odd) - 24} more</p>" if len(odd) > 24 else ""))
    for s in summaries[:MAPPED]:
        title = f"<h2>{escape(phase_name(s.phase))}: RMS of every stage</h2>"
        parts.append(f'<div class="maps"><div>{title}{size_map(s.rows)}</div><div>{looks(s, tokens)}</div></div>')
    shades = f"The paler, the smaller beside the largest of the same stage, by powers of ten up to {DECADES}."
    parts.append(f'<p class="soft">{shades} A red cell with a cross holds NaN, Inf, zeros only or one value only.</p>')
    return framed(f"{name}: {head}", "\n".join([*parts, guesses(next_), numbers(rows)]))


def looks(s: Summary, tokens: Sequence[str]) -> str:
    """What the prompt's attention looks at, a picture for each layer; "" for a step, and where it was not looked at."""
    if not s.attention or s.phase:
        return ""
    maps = "".join(one_head(f"layer {layer}", rows) for layer, rows in sorted(s.attention.items()))
    keys = len(next(iter(s.attention.values()))[0])
    said = f"Mean of the heads. Down: queries from position {s.positions[0]}; across: {plural(keys, 'key')} from 0 on"
    named = f"{said}, {spelled(tokens[:keys])}."
    return f'<h2>What attention looks at</h2><p class="soft">{named}</p><div class="heads many">{maps}</div>'


def where(r: Row) -> str:
    return f"{phase_name(r.phase)} {'' if r.layer is None else f'layer {r.layer} '}{r.stage.name}"


def size_map(rows: Sequence[Row]) -> str:
    """RMS of each stage of each layer, the colour by its power of ten beside the stage's largest."""
    largest: dict[str, float] = {}
    for r in rows:
        largest[r.stage.name] = max((r.every or r.last).rms or 0.0, largest.get(r.stage.name, 0.0))

    def drawn(x: float, y: float, r: Row) -> str:
        size = (r.every or r.last).rms
        said = f"{where(r)}: RMS {'-' if size is None else f'{size:.4g}'}"
        if wrong := r.anomalies():
            return cell(x, y, "unexplained", "\N{MULTIPLICATION SIGN}", f"{said}; {', '.join(wrong)}")
        below = log10(largest[r.stage.name] / size) if size else DECADES
        return cell(x, y, "exact", "", said, max(0.15, 1 - below / DECADES))

    return grid({(r.layer, r.stage.name): partial(drawn, r=r) for r in rows})


def guesses(next_: Sequence[Sequence[Candidate]]) -> str:
    rows = ((phase_name(n), repr(g.text), f"{g.logit:.4f}") for n, choices in enumerate(next_) for g in choices)
    return f"<h2>What comes next</h2>{table(('after', 'token', 'logit'), rows, (0, 1))}"


def numbers(rows: Sequence[Row]) -> str:
    """Every stage's statistics."""
    lines = []
    for r in rows:
        s = r.every or r.last
        figures = ("-" if x is None else f"{x:.6g}" for x in (s.rms, s.mean, s.std, s.min, s.max))
        lines.append((where(r), *figures, *map(str, (s.nan, s.inf, s.zero))))
    note = "Finite values, in float64; scores and probabilities up to the query's own key."
    title = "<summary>Every stage, in numbers</summary>"
    return f'<details open>{title}<p class="soft">{note}</p>{table(COLUMNS, lines)}</details>'
