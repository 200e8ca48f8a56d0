"""The statistics of a traced pass (engine trace --payload), as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..trace.recorder import Summary
from ..trace.stats import Statistics
from ..trace.store import phase_name
from .columns import WIDTH, count, hanging

NOTE = "finite values, float64; std is the population's (divided by n); scores and probabilities up to the query's key"
CELL = 10  # a number and the space before it


def as_json(summaries: Iterable[Summary]) -> dict[str, Any]:
    """`all` (null for a stage that exists at the last position only), `last` and `anomalies` of every stage."""
    stages = [
        {
            "phase": phase_name(r.phase),
            "layer": r.layer,
            "stage": r.stage.name,
            "all": None if r.every is None else r.every.as_json(),
            "last": r.last.as_json(),
            "anomalies": r.anomalies(),
        }
        for s in summaries
        for r in s.rows
    ]
    return {"note": NOTE, "stages": stages}


def as_text(summaries: Iterable[Summary]) -> str:
    """A table per pass and layer; stages with an anomaly are marked."""
    lines, flagged, heading = [*hanging("", NOTE)], 0, ""
    titles = "".join(f"{t:>{CELL}}" for t in ("mean", "std", "min", "max")) + f"{'NaN':>5}{'Inf':>5}{'zero':>7}"
    for r in (r for s in summaries for r in s.rows):
        where = f"{phase_name(r.phase)}, {'whole model' if r.layer is None else f'layer {r.layer}'}"
        if where != heading:
            heading = where
            lines += ["", f"{where:<{WIDTH - len(titles)}}{titles}"]
        wrong = r.anomalies()
        flagged += bool(wrong)
        if r.every is not None:
            lines.append(f"{r.stage.name:<19}all {_figures(r.every)}")
        lines.append(f"{r.stage.name if r.every is None else '':<19}last{_figures(r.last)}")
        lines += [f"    <-- {r.stage.name}: {', '.join(wrong)}"] * bool(wrong)
    return "\n".join([*lines, "", f"stages with anomalies (NaN, Inf, all zero, constant): {flagged}", ""])


def _figures(s: Statistics) -> str:
    cells = "".join(f"{_number(x):>{CELL}}" for x in (s.mean, s.std, s.min, s.max))
    return f"{cells}{count(s.nan, 4):>5}{count(s.inf, 4):>5}{count(s.zero, 6):>7}"


def _number(x: float | None) -> str:
    """Four digits, or as many as there is room for."""
    if x is None:
        return "-"
    return next((text for digits in (4, 3, 2) if len(text := f"{x:.{digits}g}") < CELL), f"{x:.1g}")
