"""The frame of every page: one file, no network, for a phone and in the dark, and whole without its script."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from html import escape
from re import sub

TOKENS = 200  # that are spelled out

SCRIPT = """
const open = () => { for (let e = document.getElementById(location.hash.slice(1)); e; e = e.parentElement)
  if (e.tagName === 'DETAILS') e.open = true };
addEventListener('hashchange', open); open();
const key = s => { const n = parseFloat(s); return isNaN(n) ? s : n };
document.querySelectorAll('.scroll, .wide').forEach(box => {
  const mark = () => box.classList.toggle('more', box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
  box.addEventListener('scroll', mark); addEventListener('resize', mark); addEventListener('toggle', mark, true);
  mark() });
document.querySelectorAll('th').forEach(th => { let up = 1; th.onclick = () => {
  const body = th.closest('table').tBodies[0], at = r => key(r.cells[th.cellIndex].textContent);
  [...body.rows].sort((a, b) => (at(a) > at(b) ? 1 : at(a) < at(b) ? -1 : 0) * up).forEach(r => body.append(r));
  up = -up } });
"""
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
.token { white-space: pre; background: var(--none); border-radius: .2rem; padding: 0 .1rem }
svg.chart { width: 100%; max-width: 40rem; height: auto; display: block } .axis { fill: none; stroke: var(--soft) }
.limit { fill: none; stroke: var(--exact) } .curve { fill: none; stroke: var(--bad); stroke-width: 1.5 }
.dot { fill: var(--bad) } .within { fill: var(--exact) } .beyond { fill: var(--bad) }
.heads { display: flex; gap: .6rem } .heads figure { flex: 1 } .many { flex-wrap: wrap }
.many figure { flex: 0 0 5.5rem; margin: 0 } svg.head { width: 100%; border: 1px solid var(--line);
image-rendering: pixelated; display: block }
@media (max-width: 34rem) { .wide { overflow-x: auto }
  svg.map { min-width: 30rem } svg.chart text { font-size: 11px }
  :is(body, details) > .scroll :is(td, th):first-child { position: sticky; left: 0;
  background: var(--paper) } }
svg.map { width: 100%; max-width: 36rem; height: auto; display: block } svg text { fill: var(--soft); font: 10px
system-ui, sans-serif }
svg .exact { fill: var(--exact) } svg .reproduced { fill: var(--reproduced) } svg .budget { fill: var(--budget) }
svg .unjudged { fill: var(--unjudged) } svg .none { fill: var(--none) } svg .unexplained { fill: var(--bad) }
svg text.mark { fill: var(--onbad); font-weight: 700; text-anchor: middle }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem .9rem; margin:
.9rem 0 } article h3 { font-size: 1rem; margin: 0 0 .3rem } article ul { padding-left: 1.1rem }
  .whole { white-space: nowrap }
.picture { width: 100%; height: auto; border: 1px solid var(--line); margin-top: .7rem; image-rendering: pixelated;
max-height: 22rem; display: block } .picture line { stroke: var(--line); vector-effect: non-scaling-stroke }
.ends { display: flex; justify-content: space-between; margin: .15rem 0 0; color: var(--soft); font-size: .8rem }
.strip { width: 100%; height: 1.1rem; display: block; margin-top: .7rem; border: 1px solid var(--line) }
.strip line { stroke: var(--line); vector-effect: non-scaling-stroke }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .82rem; width: 100% }
td, th { padding: .18rem .5rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
td.n, th.n { text-align: right } td.n { font-variant-numeric: tabular-nums }
.more { mask-image: linear-gradient(to left, transparent, #000 3rem) }
details { margin-top: 2rem } summary { cursor: pointer }
"""


def framed(title: str, body: str, style: str = "") -> str:
    """The page. title: as it is; body: markup; style: what the page has besides."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>",
        body,
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: Container[int] = (0,)) -> str:
    """A table; its script sorts it. rows: as they are; text: the columns that hold no numbers."""
    heads = (f"<th>{escape(c)}</th>" if i in text else f'<th class="n">{escape(c)}</th>' for i, c in enumerate(columns))
    head = "".join(heads)
    lines = []
    for row in rows:
        cells = (f"<td>{escape(c)}</td>" if i in text else f'<td class="n">{escape(c)}</td>' for i, c in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="scroll">{body}</div>'


def unbroken(text: str) -> str:
    """The text's markup, in which no line ends inside a number as 4.4e-02: browsers break behind its hyphen."""
    return sub(r"\S*e-\d+", r'<span class="whole">\g<0></span>', escape(text))


def spelled(tokens: Sequence[object]) -> str:
    """Tokens, each with its borders; a line feed is shown as a sign."""
    few = [str(t).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}") for t in tokens[:TOKENS]]
    return " ".join(f'<code class="token">{escape(t)}</code>' for t in few) + (" ..." if len(tokens) > TOKENS else "")
