"""The statistics of a traced pass (engine trace --payload), as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..trace.recorder import Summary
from ..trace.stats import Statistics
from ..trace.store import phase_name

NOTE = "finite values, float64; std is the population's (divided by n); scores and probabilities up to the query's key"


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
    lines, flagged, heading = [NOTE], 0, ""
    for r in (r for s in summaries for r in s.rows):
        where = f"{phase_name(r.phase)}, {'whole model' if r.layer is None else f'layer {r.layer}'}"
        if where != heading:
            heading = where
            lines.append(f"\n{where:<24}{'mean':>11}{'std':>11}{'min':>11}{'max':>11}{'NaN':>7}{'Inf':>7}{'zero':>9}")
        wrong = r.anomalies()
        flagged += bool(wrong)
        mark = f"  <-- {', '.join(wrong)}" if wrong else ""
        if r.every is not None:
            lines.append(f"{r.stage.name:<18} all  {_figures(r.every)}{mark}")
        lines.append(f"{r.stage.name if r.every is None else '':<18} last {_figures(r.last)}{'' if r.every else mark}")
    return "\n".join([*lines, "", f"stages with anomalies (NaN, Inf, all zero, constant): {flagged}", ""])


def _figures(s: Statistics) -> str:
    cells = "".join("          -" if x is None else f"{x:>11.4g}" for x in (s.mean, s.std, s.min, s.max))
    return f"{cells}{s.nan:>7}{s.inf:>7}{s.zero:>9}"
