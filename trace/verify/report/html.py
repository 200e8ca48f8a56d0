"""A verification as one HTML file: no network, readable on a phone, in the dark and without its one script."""

from __future__ import annotations

from collections import Counter
from html import escape
from math import log10, prod

from ...stages import STAGES
from ..finding import (
    BUDGET,
    EXACT,
    REPRODUCED,
    UNEXPLAINED,
    UNJUDGED,
    Finding,
    Picture,
    Verdict,
    Verification,
    WrongRow,
)
from .charts import attention, curves, histogram, scatter
from .paragraph import paragraph
from .text import (
    by_size,
    mistakes,
    named,
    number,
    places_of,
    plural,
    reason,
    sections,
    sentence,
    statement,
    worst_of,
)
from .words import words

CELL, GAP, LEFT, TOP = 17, 2, 18, 82  # of the heat map, in its own units
CARDS = 12  # groups of unexplained stages that are told at once; the others are folded
DRAWN = 24  # groups that have pictures
SCRIPT = """
const open = () => { for (let e = document.getElementById(location.hash.slice(1)); e; e = e.parentElement)
  if (e.tagName === 'DETAILS') e.open = true };
addEventListener('hashchange', open); open();
const key = s => { const n = parseFloat(s); return isNaN(n) ? s : n };
document.querySelectorAll('th').forEach((th, i) => { let up = 1; th.onclick = () => {
  const body = th.closest('table').tBodies[0], at = r => key(r.cells[i].textContent);
  [...body.rows].sort((a, b) => (at(a) > at(b) ? 1 : at(a) < at(b) ? -1 : 0) * up).forEach(r => body.append(r));
  up = -up } });
"""
LEGEND = (
    (EXACT, "bit-equal"),
    (REPRODUCED, "reproduced to rounding"),
    (BUDGET, "within a noise budget"),
    (UNEXPLAINED, "unexplained"),
    (UNJUDGED, "not judged"),
)
STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #5c6870; --paper: #fbfbf9; --card: #fff; --line: #dcdfdc;
  --exact: #0f766e; --reproduced: #7cc3b4; --budget: #e5b24a; --none: #eceeea; --unjudged: #b3bac0; --bad: #c81e3a;
  --onbad: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaec; --soft: #9aa6ae; --paper: #14181b; --card: #1c2226;
--line: #323a40;
  --exact: #2fb5a6; --reproduced: #1f6f66; --budget: #b98524; --none: #20272c; --unjudged: #56616a; --bad: #ff5c74;
  --onbad: #14181b } } * { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 92rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .6rem; text-wrap: balance }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
p, ul { margin: .4rem 0 } .soft { color: var(--soft); font-size: .9rem } code { font-size: .9em; overflow-wrap:
anywhere }
.status { border-left: .4rem solid var(--exact); padding: .2rem 0 .2rem .9rem } .status.bad { border-color: var(--bad) }
.status.none { border-color: var(--unjudged) }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; list-style: none; font-size: .85rem; color:
var(--soft) } .legend svg { width: .95rem; height: .95rem; vertical-align: -.15rem; margin-right: .35rem }
@media (min-width: 62rem) { .maps { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: start }
  .maps > div { flex: 1 1 28rem } .cards { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem;
  align-items: start } }
.said { max-width: 70rem } article:target, li:target { outline: 2px solid var(--bad) } th { cursor: pointer }

figure { margin: .7rem 0 0 } .charts { display: flex; flex-wrap: wrap; gap: 0 1rem }
.charts > figure { flex: 1 1 15rem }
svg.chart { width: 100%; max-width: 40rem; height: auto; display: block } .axis { fill: none; stroke: var(--soft) }
.limit { fill: none; stroke: var(--exact) } .curve { fill: none; stroke: var(--bad); stroke-width: 1.5 }
.dot { fill: var(--bad) } .within { fill: var(--exact) } .beyond { fill: var(--bad) }
.heads { display: flex; gap: .6rem } .heads figure { flex: 1 } svg.head { width: 100%; border: 1px solid var(--line);
image-rendering: pixelated; display: block }
@media (max-width: 34rem) { svg.map text { font-size: 13px } svg.chart text { font-size: 11px } }
svg.map { width: 100%; max-width: 36rem; height: auto; display: block } svg text { fill: var(--soft); font: 10px
system-ui, sans-serif }
svg .exact { fill: var(--exact) } svg .reproduced { fill: var(--reproduced) } svg .budget { fill: var(--budget) }
svg .unjudged { fill: var(--unjudged) } svg .none { fill: var(--none) } svg .unexplained { fill: var(--bad) }
svg text.mark { fill: var(--onbad); font-weight: 700; text-anchor: middle }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem .9rem; margin:
.9rem 0 } article h3 { font-size: 1rem; margin: 0 0 .3rem } article ul { padding-left: 1.1rem }
.picture { width: 100%; height: auto; border: 1px solid var(--line); margin-top: .7rem; image-rendering: pixelated;
max-height: 22rem; display: block } .picture line { stroke: var(--line); vector-effect: non-scaling-stroke }
.ends { display: flex; justify-content: space-between; margin: .15rem 0 0; color: var(--soft); font-size: .8rem }
.strip { width: 100%; height: 1.1rem; display: block; margin-top: .7rem; border: 1px solid var(--line) }
.strip line { stroke: var(--line); vector-effect: non-scaling-stroke }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .82rem; width: 100% }
td, th { padding: .18rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
td.n { text-align: right; font-variant-numeric: tabular-nums } details { margin-top: 2rem } summary { cursor: pointer }
"""


def page(v: Verification, dump: str, model: str) -> str:
    """The report. dump, model: their names, for the head."""
    state = {0: "", 1: " bad", 2: " none"}[v.status]
    bad = by_size(v.findings)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(dump)}: {escape(sentence(v))}</title><style>{STYLE}</style></head><body>",
        f'<div class="status{state}"><h1>{escape(sentence(v))}</h1>',
        f'<p class="said">{escape(" ".join(paragraph(v)[1:]))}</p></div>',
        *(f"<p>{escape(said[:1].upper() + said[1:])}.</p>" for said in map(words, v.remarks)),
        f'<p class="soft">Dump <code>{escape(dump)}</code>, judged by <code>{escape(model)}</code>, '
        f"{tokens(v)}; every stage recomputed in float64 from the dump's own inputs.</p>",
        legend(),
    ]
    for title, findings in sections(v):
        heading = f"<h2>{escape(title)}: what is left, over what rounding allows</h2>"
        parts += [heading, f'<div class="maps"><div>{heat_map(findings)}</div><div>{curves(findings)}</div></div>']
    if bad:
        parts.append(f"<h2>{plural(len(bad), 'unexplained stage')}{', largest first' * (len(bad) > 1)}</h2>")
        common = (
            f"<li>{escape(said)}: {plural(len(fs), 'stage')} ({escape(places_of(fs))})</li>" for said, fs in mistakes(v)
        )
        cards = [card(group, v.tokens, n < DRAWN) for n, group in enumerate(groups(v))]
        parts += ["<ul>", *common, "</ul>", f'<div class="cards">{"".join(cards[:CARDS])}</div>']
        if more := cards[CARDS:]:
            said = f"{plural(len(more), 'more group')} of unexplained stages"
            parts.append(f'<details><summary>{said}</summary><div class="cards">{"".join(more)}</div></details>')
    weak = Counter((f.stage, f.budget.source) for f in v.findings if f.budget is not None)
    unjudged = Counter((f.stage, reason(f)) for f in v.findings if f.verdict == UNJUDGED)
    for title, counted in (("Within a noise budget only", weak), ("Not judged", unjudged)):
        if counted:
            items = (f"<li>{escape(s)} ({plural(n, 'place')}): {escape(why)}</li>" for (s, why), n in counted.items())
            parts += [f"<h2>{title}</h2><ul>", *items, "</ul>"]
    return "\n".join([*parts, table(v), f"<script>{SCRIPT}</script></body></html>"]) + "\n"


def tokens(v: Verification) -> str:
    if v.tokens is None:
        return "tokens unknown"
    shown = " ".join(map(str, v.tokens[:12]))
    return f"{plural(len(v.tokens), 'token')} ({shown}{' ...' if len(v.tokens) > 12 else ''})"


def legend() -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 17 17">{square(0, 0, verdict)}</svg>{escape(words)}</li>' for verdict, words in LEGEND
    )
    shades = (
        "The paler green is deeper the more of what rounding allows is used; the red, the further the error is beyond."
    )
    return f'<ul class="legend">{items}</ul><p class="soft">{shades}</p>'


def square(x: float, y: float, verdict: Verdict, title: str = "", depth: float = 1.0) -> str:
    """A cell. depth: how strong its colour is."""
    kind = {
        EXACT: "exact",
        REPRODUCED: "reproduced",
        BUDGET: "budget",
        UNEXPLAINED: "unexplained",
        UNJUDGED: "unjudged",
    }[verdict]
    mark = {UNEXPLAINED: "\N{MULTIPLICATION SIGN}", UNJUDGED: "?", BUDGET: "~"}.get(verdict, "")
    tip = f"<title>{escape(title)}</title>" if title else ""
    sign = f'<text class="mark" x="{x + CELL / 2:g}" y="{y + 12:g}">{mark}</text>' if mark else ""
    box = f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" rx="2" fill-opacity="{depth:.2f}"/>'
    return f"<g>{tip}{box}{sign}</g>"


def cell_of(x: float, y: float, f: Finding) -> str:
    """The cell of a finding; an unexplained one leads to its card."""
    drawn = square(x, y, f.verdict, statement(f)[0], depth(f))
    return f'<a href="#{anchor(f)}">{drawn}</a>' if f.verdict == UNEXPLAINED else drawn


def anchor(f: Finding) -> str:
    return escape(f"f-{f.phase}-{'all' if f.layer is None else f.layer}-{f.stage}")


def groups(v: Verification) -> list[list[Finding]]:
    """The unexplained, those of one cause and kind of stage together, largest first."""
    found: dict[tuple[str, str, bool], list[Finding]] = {}
    for f in by_size(v.findings):
        cause = f.hypotheses[0].sentence if f.hypotheses else ""
        found.setdefault((cause, f.stage, bool(f.phase)), []).append(f)
    return list(found.values())


def heat_map(findings: list[Finding]) -> str:
    """Layers down, stages across; below them the stages of the whole model, and the embedding."""
    cell = worst_of(findings)
    names = [s.name for s in STAGES if s.scope == "layer" and any(name == s.name for _, name in cell)]
    whole = [(layer, s.name) for s in STAGES if s.scope != "layer" for layer in (0, None) if (layer, s.name) in cell]
    layers = sorted({layer for layer, name in cell if layer is not None and name in names})
    pitch = CELL + GAP
    width, height = LEFT + pitch * max(len(names), 15) + 52, TOP + pitch * (len(layers) + bool(whole)) + 12
    parts = [f'<svg class="map" role="img" aria-label="layers and stages" viewBox="0 0 {width} {height}">']
    for i, name in enumerate(names):
        x = LEFT + i * pitch + CELL / 2 + 3
        parts.append(f'<text transform="translate({x:g} {TOP - 6}) rotate(-52)">{escape(name)}</text>')
    for j, layer in enumerate(layers):
        y = TOP + j * pitch
        parts.append(f'<text x="{LEFT - 5}" y="{y + 12}" text-anchor="end">{layer}</text>')
        for i, name in enumerate(names):
            f, x = cell.get((layer, name)), LEFT + i * pitch
            if f is not None:
                parts.append(cell_of(x, y, f))
            else:
                parts.append(f'<rect class="none" x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2"/>')
    y = TOP + pitch * len(layers) + 6
    for i, key in enumerate(whole):
        f, x = cell[key], LEFT + i * 5 * pitch
        parts.append(cell_of(x, y, f))
        parts.append(f'<text x="{x + CELL + 4}" y="{y + 12}">{escape(f.stage)}</text>')
    return "".join([*parts, "</svg>"])


def depth(f: Finding) -> float:
    """Reproduced: paler the less of its allowance it uses. Unexplained: stronger the more powers of ten it is
    beyond."""
    if f.verdict == REPRODUCED:
        return 0.45 + 0.55 * min(1.0, (f.worst or 0))
    if f.verdict == UNEXPLAINED and f.worst is not None:
        beyond = log10(max(f.worst, 1.0)) if f.worst != float("inf") else 12
        return 0.55 + 0.45 * min(1.0, beyond / 5)
    return 1.0


def card(group: list[Finding], tokens: tuple[int, ...] | None, drawn: bool) -> str:
    """One example with its pictures, and where else the same is found."""
    f, *others = group
    first, *rest = statement(f)
    items = "".join(f"<li>{escape(line)}</li>" for line in rest)
    head = (
        f'<article id="{anchor(f)}"><h3>{escape(named(f))}</h3>'
        + f"<p>{escape(first.split(': ', 1)[1])}</p><ul>{items}</ul>"
    )
    if f.where is not None and drawn:
        head += drawing(f.where.picture) + "".join(map(strip, f.where.rows or ()))
        if (s := f.where.samples) is not None:
            head += f'<div class="charts">{scatter(s)}{histogram(s)}</div>'
            head += "" if s.head is None else attention(s.head, tokens)
    if others:
        same = "".join(f'<li id="{anchor(x)}">{escape(statement(x)[0])}</li>' for x in others)
        title = f"{plural(len(others), 'more stage')} of this kind ({escape(places_of(others))})"
        head += f"<details><summary>{title}</summary><ul>{same}</ul></details>"
    return f"{head}</article>"


def sides(p: Picture) -> tuple[str, str, int, tuple[str, str]]:
    """What a picture's rows and columns are, in words; how many heads the columns are; the first's and last's names."""
    T, C = (p.shape[0], prod(p.shape[1:])) if len(p.shape) > 1 else (1, p.shape[0])
    down = f"{T} positions" if "T" in p.letters else "the last position"
    if p.letters == ("V",):
        return down, f"{C} tokens of the vocabulary", 1, ("token 0", f"token {C - 1}")
    if len(p.letters) < 3:
        return down, f"{C} channels", 1, ("channel 0", f"channel {C - 1}")
    heads, each = p.shape[1:]
    inside = "keys" if "S" in p.letters else "channels"
    return down, f"{heads} heads of {each} {inside}", heads, ("head 0", f"head {heads - 1}")


def drawing(p: Picture) -> str:
    """Where the error sits: one rectangle per run of equal cells in a row."""
    cells, (down, across, heads, (left, right)) = p.cells, sides(p)
    columns, rows = len(cells[0]), len(cells)
    high = max(1, round(columns / 3 / rows))
    parts = []
    for y, row in enumerate(cells):
        start = 0
        for x in range(1, columns + 1):
            if x == columns or row[x] != row[start]:
                if row[start]:
                    strength = 0.35 + 0.65 * min(1.0, row[start] / 6)
                    box = f'x="{start}" y="{y * high}" width="{x - start}" height="{high}"'
                    parts.append(f'<rect class="unexplained" {box} fill-opacity="{strength:.2f}"/>')
                start = x
    parts += (upright(columns * i / heads, rows * high) for i in range(1, heads))
    caption = f"Down: {down}. Across: {across}. Blank is within rounding; the redder, the further beyond."
    box = f'viewBox="0 0 {columns} {rows * high}" preserveAspectRatio="none" role="img"'
    return (
        f'<svg class="picture" {box} aria-label="{escape(caption)}">{"".join(parts)}</svg>'
        f'<p class="ends"><span>{escape(left)}</span><span>{escape(right)}</span></p>'
        f'<p class="soft">{escape(caption)}</p>'
    )


def upright(x: float, height: int) -> str:
    return f'<line x1="{x:g}" x2="{x:g}" y1="0" y2="{height}"/>'


def strip(r: WrongRow) -> str:
    """A row of the weights, block by block: the redder, the likelier it is the wrong one."""
    likely = r.likely
    boxes = (
        f'<rect class="unexplained" x="{i}" y="0" width="1" height="1" fill-opacity="{p:.2f}"/>'
        for i, p in enumerate(likely)
        if p >= 0.01
    )
    lines = (upright(i, 1) for i in range(1, len(likely)))
    box = f'viewBox="0 0 {len(likely)} 1" preserveAspectRatio="none" role="img"'
    caption = f"Row {r.row} of {r.matrix} in blocks of {r.size}: the redder, the likelier it is the wrong one."
    return (
        f'<svg class="strip" {box} aria-label="{escape(caption)}">{"".join(boxes)}{"".join(lines)}</svg>'
        f'<p class="ends"><span>block 0</span><span>block {len(likely) - 1}</span></p>'
        f'<p class="soft">{escape(caption)}</p>'
    )


def table(v: Verification) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("stage", "verdict", "recipe", "plain", "left", "allowed", "bit-equal"))
    rows = []
    for f in v.findings:
        equal = f"{f.fit.equal / f.fit.size:.2%}" if f.fit is not None and f.fit.size else "-"
        numbers = "".join(
            f'<td class="n">{n}</td>' for n in (number(f.observed), number(f.left), number(f.predicted), equal)
        )
        recipe = escape(f.budget.source if f.budget else f.recipe or "-")
        rows.append(f"<tr><td>{escape(named(f))}</td><td>{f.verdict}</td><td>{recipe}</td>{numbers}</tr>")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    title = "Every stage, in numbers (relative RMS)"
    return f'<details><summary>{title}</summary><div class="scroll">{body}</div></details>'
