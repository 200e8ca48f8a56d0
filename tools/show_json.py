"""What `engine show --json` prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..trace.dump import Entry
from ..trace.show.figures import LayerFigures, RowFigures, layer_figures, row_figures
from ..trace.show.guess import Guess
from ..trace.show.histogram import histogram
from ..trace.show.names import Names
from ..trace.show.view import Line, View
from ..trace.stats import Statistics, statistics
from ..trace.store import phase_name
from .show_text import PEAKS


def about(source: str, e: Entry, names: Names) -> dict[str, Any]:
    """How each object begins."""
    return {
        "schema": "qwenref-show-v1",
        "source": source,
        "stage": e.stage.name,
        "phase": phase_name(e.phase),
        "axes": list(e.stage.letters),
        "tokens": list(names.ids),
        "text": None if names.spelling is None else list(map(names.text, names.ids)),
    }


def figures_as_json(views: Sequence[View], values: bool) -> dict[str, Any]:
    """One layer row by row, and with its values if they are asked for; of several a line each."""
    if len(views) > 1:
        return {"layers": [_layer(layer_figures(v)) for v in views]}
    (v,) = views
    spread = histogram(v.computed())
    report = {
        "layer": v.entry.layer,
        "shape": list(v.entry.shape),
        "part": {"heads": _ends(v.heads), "rows": _ends(v.rows), "columns": _ends(v.columns)},
        "statistics": _figures(statistics([v.computed()])),
        "rows": [_row(row_figures(v, line, PEAKS)) for line in v.lines()],
        "histogram": None if spread is None else asdict(spread),
    }
    return report | ({"values": v.values.tolist()} if values else {})


def lens_as_json(positions: Iterable[Sequence[Guess]], names: Names) -> dict[str, Any]:
    """What each layer says, position by position."""

    def layer(g: Guess) -> dict[str, Any]:
        top = [asdict(t) | {"text": names.text(t.id)} for t in g.top]
        return {"layer": g.layer, "rank": g.rank, "top": top}

    return {"lens": [{"position": p[0].position, "layers": list(map(layer, p))} for p in positions]}


def _ends(span: range | None) -> list[int] | None:
    return None if span is None else [span.start, span.stop]


def _figures(s: Statistics) -> dict[str, Any]:
    return s.as_json() | {"rms": s.rms}


def _at(line: Line) -> dict[str, Any]:
    return {"head": line.head, "row": line.row, "position": line.position}


def _row(f: RowFigures) -> dict[str, Any]:
    return _at(f.line) | _figures(f.statistics) | {"largest": [asdict(p) for p in f.largest]}


def _layer(f: LayerFigures) -> dict[str, Any]:
    worst = None if f.worst is None else _at(f.worst[0]) | asdict(f.worst[1])
    return {"layer": f.entry.layer} | _figures(f.statistics) | {"largest": worst, "massive": f.massive}
