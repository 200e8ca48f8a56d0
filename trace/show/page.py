"""A part of a stage as one HTML file: attention with its tokens, channels, layers, rows; in the report's frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ..verify.report.frame import framed, table
from .attention import attention
from .caption import sizes, title
from .curves import channels, depth, spread
from .figures import LayerFigures, layer_figures, row_figures
from .guess import Guess
from .names import Names
from .view import View

TABLE = 200  # rows
STYLE = """td.guess { background: color-mix(in srgb, var(--exact) calc(var(--p) * 70%), transparent); max-width: 9rem;
  overflow: hidden; text-overflow: ellipsis }
svg.tokens { width: 100%; height: auto; display: block } svg.tokens text { font-size: .72px }
.attention { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)) }
.mean { stroke: var(--exact) }
"""


def stage_page(source: str, v: View, layers: Sequence[View], names: Names) -> str:
    """A stage of one layer. layers: the same part of every layer that is there, for what changes with depth."""
    parts = [head(source, v, names, v.entry.layer)]
    if "S" in v.entry.stage.letters:
        parts.append(attention(v, names))
    else:
        parts += ['<div class="charts">', channels(v), depth(layers), spread(v), "</div>"]
    return page(source, v, [*parts, row_table(v, names)])


def layers_page(source: str, layers: Sequence[View], names: Names) -> str:
    """A stage of several layers."""
    v = layers[0]
    return page(source, v, [head(source, v, names), f'<div class="charts">{depth(layers)}</div>', layer_table(layers)])


def lens_page(source: str, positions: Sequence[Sequence[Guess]], v: View, names: Names) -> str:
    """What each layer says at each position."""
    top = "".join(f"<th>{escape(f'{p[0].position} {names.at(p[0].position)}')}</th>" for p in positions)
    rows = "".join(
        f'<tr><td class="n">{"-" if of_layer[0].layer is None else of_layer[0].layer}</td>'
        f"{''.join(guessed(g, names) for g in of_layer)}</tr>"
        for of_layer in zip(*positions, strict=True)
    )
    said = "Down: the layers. Across: positions. A cell is what final norm and head make of the layer's residual: the "
    said += "likeliest next token, the stronger its colour the more probable it is."
    table = f'<div class="scroll"><table><thead><tr><th>layer</th>{top}</tr></thead><tbody>{rows}</tbody></table></div>'
    return page(source, v, [head(source, v, names), "<h2>Logit lens</h2>", f'<p class="soft">{said}</p>', table])


def page(source: str, v: View, parts: Iterable[str]) -> str:
    return framed(f"{source}: {v.entry.stage.name}", "\n".join(parts), STYLE)


def head(source: str, v: View, names: Names, layer: int | None = None) -> str:
    """layer: which one is shown, None for several and for the whole model."""
    return (
        f'<div class="status"><h1>{escape(title(v.entry, layer))}</h1></div>'
        f'<p class="soft"><code>{escape(source)}</code>, {escape(sizes(v, names))}</p>'
    )


def row_table(v: View, names: Names) -> str:
    """Statistics of each row."""
    lines = list(v.lines())
    rows = []
    for f in (row_figures(v, line, 3) for line in lines[:TABLE]):
        at, of_head = f.line.position, "" if f.line.head is None else f"head {f.line.head}, "
        s = f.statistics
        most = ", ".join(f"{p.column}: {p.value:.4g}" for p in f.largest)
        rows.append(
            [
                f"{of_head}{at} {names.at(at)}",
                *(fine(x) for x in (s.mean, s.std, s.rms, s.min, s.max)),
                str(s.nan + s.inf),
                most,
            ]
        )
    cut = f" (the first {TABLE} of {len(lines)})" * (len(lines) > TABLE)
    titles = ("row", "mean", "std", "rms", "min", "max", "NaN/inf", f"largest {v.column_is}s")
    return f"<details><summary>Every row, in numbers{cut}</summary>{table(titles, rows, (0, 7))}</details>"


def layer_table(layers: Sequence[View]) -> str:
    def row(f: LayerFigures) -> list[str]:
        where = "-" if f.worst is None else f"position {f.worst[0].position}, {f.worst[1].column}"
        s = f.statistics
        size = None if f.worst is None else abs(f.worst[1].value)
        return [str(f.entry.layer), fine(s.rms), fine(size), where, str(f.massive), str(s.nan + s.inf)]

    titles = ("layer", "rms", "max |x|", f"position, {layers[0].column_is}", "massive", "NaN/inf")
    return table(titles, [row(layer_figures(v)) for v in layers])


def fine(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def guessed(g: Guess, names: Names) -> str:
    if not g.top:
        return "<td>not finite</td>"
    tip = "\n".join(f"{t.probability:.1%} {t.id} {names.spelled(t.id)}" for t in g.top)
    best = g.top[0]
    text = names.spelled(best.id) or str(best.id)
    return f'<td class="guess" style="--p:{best.probability:.3f}" title="{escape(tip)}">{escape(text)}</td>'
