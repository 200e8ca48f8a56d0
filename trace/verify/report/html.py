"""A verification as one HTML file: no network, readable on a phone, in the dark and without its one script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from html import escape
from math import log10, prod

from ...plural import plural
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
from .frame import framed, spelled
from .grid import cell, grid
from .paragraph import paragraph
from .text import (
    by_size,
    mistakes,
    named,
    number,
    places_of,
    reason,
    sections,
    sentence,
    statement,
    worst_of,
)
from .words import words

KINDS = {
    EXACT: "exact",
    REPRODUCED: "reproduced",
    BUDGET: "budget",
    UNEXPLAINED: "unexplained",
    UNJUDGED: "unjudged",
}
MARKS = {UNEXPLAINED: "\N{MULTIPLICATION SIGN}", UNJUDGED: "?", BUDGET: "~"}
CARDS = 12  # groups of unexplained stages that are told at once; the others are folded
DRAWN = 24  # groups that have pictures
LEGEND = (
    (EXACT, "bit-equal"),
    (REPRODUCED, "reproduced to rounding"),
    (BUDGET, "within a noise budget"),
    (UNEXPLAINED, "unexplained"),
    (UNJUDGED, "not judged"),
)


def page(v: Verification, dump: str, model: str, texts: Sequence[str] | None = None) -> str:
    """The report. dump, model: their names, for the head; texts: its tokens' text, if it is known."""
    state = {0: "", 1: " bad", 2: " none"}[v.status]
    bad = by_size(v.findings)
    parts = [
        f'<div class="status{state}"><h1>{escape(sentence(v))}</h1>',
        f'<p class="said">{escape(" ".join(paragraph(v)[1:]))}</p></div>',
        *(f"<p>{escape(said[:1].upper() + said[1:])}.</p>" for said in map(words, v.remarks)),
        f'<p class="soft">Dump <code>{escape(dump)}</code>, judged by <code>{escape(model)}</code>, '
        f"{tokens(v, texts)}; every stage recomputed in float64 from the dump's own inputs.</p>",
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
        cards = [card(group, texts or v.tokens, n < DRAWN) for n, group in enumerate(groups(v))]
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
    return framed(f"{dump}: {sentence(v)}", "\n".join([*parts, table(v)]))


def tokens(v: Verification, texts: Sequence[str] | None) -> str:
    """Markup."""
    if v.tokens is None:
        return "tokens unknown"
    if texts:
        return f"{plural(len(v.tokens), 'token')}: {spelled(texts)}"
    shown = " ".join(map(str, v.tokens[:12]))
    return f"{plural(len(v.tokens), 'token')} ({shown}{' ...' if len(v.tokens) > 12 else ''})"


def legend() -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 17 17">{square(0, 0, verdict)}</svg>{escape(words)}</li>' for verdict, words in LEGEND
    )
    shades = (
        "A reproduced cell is stronger the more of what rounding allows is used; a red one, the further it is beyond."
    )
    return f'<ul class="legend">{items}</ul><p class="soft">{shades}</p>'


def square(x: float, y: float, verdict: Verdict, title: str = "", depth: float = 1.0) -> str:
    """A cell. depth: how strong its colour is."""
    return cell(x, y, KINDS[verdict], MARKS.get(verdict, ""), title, depth)


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
    """The worst finding of each stage of each layer."""
    return grid({key: partial(cell_of, f=f) for key, f in worst_of(findings).items()})


def depth(f: Finding) -> float:
    """Reproduced: paler the less of its allowance it uses. Unexplained: stronger the more powers of ten it is
    beyond."""
    if f.verdict == REPRODUCED:
        return 0.45 + 0.55 * min(1.0, (f.worst or 0))
    if f.verdict == UNEXPLAINED and f.worst is not None:
        beyond = log10(max(f.worst, 1.0)) if f.worst != float("inf") else 12
        return 0.55 + 0.45 * min(1.0, beyond / 5)
    return 1.0


def card(group: list[Finding], tokens: Sequence[object] | None, drawn: bool) -> str:
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
    down = plural(T, "position") if "T" in p.letters else "the last position"
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
    head = "".join(f"<th>{h}</th>" for h in ("stage", "verdict", "recipe"))
    head += "".join(f'<th class="n">{h}</th>' for h in ("plain", "left", "allowed", "bit-equal"))
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
