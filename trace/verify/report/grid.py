"""Layers down and stages across, a cell for each: the map of every page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

from ...stages import STAGES

CELL, GAP, LEFT, TOP = 17, 2, 18, 82  # in its own units

Draw = Callable[[float, float], str]  # a cell whose corner is at x, y


def grid(cells: Mapping[tuple[int | None, str], Draw]) -> str:
    """Cells by (layer, stage); below them those of the whole model, and the embedding. One that is missing is empty."""
    names = [s.name for s in STAGES if s.scope == "layer" and any(name == s.name for _, name in cells)]
    whole = [(layer, s.name) for s in STAGES if s.scope != "layer" for layer in (0, None) if (layer, s.name) in cells]
    layers = sorted({layer for layer, name in cells if layer is not None and name in names})
    pitch = CELL + GAP
    width, height = LEFT + pitch * max(len(names), 15) + 52, TOP + pitch * (len(layers) + bool(whole)) + 12
    parts = [
        f'<div class="wide"><svg class="map" role="img" aria-label="layers and stages" viewBox="0 0 {width} {height}">'
    ]
    for i, name in enumerate(names):
        x = LEFT + i * pitch + CELL / 2 + 3
        parts.append(f'<text transform="translate({x:g} {TOP - 6}) rotate(-52)">{escape(name)}</text>')
    for j, layer in enumerate(layers):
        y = TOP + j * pitch
        parts.append(f'<text x="{LEFT - 5}" y="{y + 12}" text-anchor="end">{layer}</text>')
        for i, name in enumerate(names):
            draw, x = cells.get((layer, name)), LEFT + i * pitch
            empty = f'<rect class="none" x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2"/>'
            parts.append(empty if draw is None else draw(x, y))
    y = TOP + pitch * len(layers) + 6
    for i, key in enumerate(whole):
        x = LEFT + i * 5 * pitch
        parts += [cells[key](x, y), f'<text x="{x + CELL + 4}" y="{y + 12}">{escape(key[1])}</text>']
    return "".join([*parts, "</svg></div>"])


def cell(x: float, y: float, kind: str, mark: str = "", title: str = "", depth: float = 1.0) -> str:
    """A square. kind: its class in the frame's style; mark: a sign in it; depth: how strong its colour is."""
    tip = f"<title>{escape(title)}</title>" if title else ""
    sign = f'<text class="mark" x="{x + CELL / 2:g}" y="{y + 12:g}">{mark}</text>' if mark else ""
    box = f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{CELL}" height="{CELL}" rx="2" fill-opacity="{depth:.2f}"/>'
    return f"<g>{tip}{box}{sign}</g>"
