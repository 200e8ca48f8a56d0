"""A verification in plain values, for JSON and for tables; numbers that JSON does not know are None."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..finding import Finding, Verification, Where, WrongRow
from .paragraph import paragraph
from .text import engine_words, reason, sentence
from .words import words


def as_json(v: Verification) -> dict[str, Any]:
    """What `engine verify --json` prints."""
    return {
        "sentence": sentence(v),
        "paragraph": " ".join(paragraph(v)),
        "status": v.status,
        "recipe": v.recipe.name or None,
        "recipe_words": engine_words(v) or None,
        "tokens": None if v.tokens is None else list(v.tokens),
        "remarks": [words(r) for r in v.remarks],
        "counts": dict(Counter(f.verdict for f in v.findings)),
        "stages": [_stage(f) for f in v.findings],
    }


def figures(f: Finding) -> dict[str, Any]:
    """What is known of a stage, but for what needs words."""
    return {
        "phase": f.phase,
        "layer": f.layer,
        "stage": f.stage,
        "verdict": f.verdict,
        "recipe": f.recipe or None,
        "observed": finite(f.observed),
        "left": finite(f.left),
        "predicted": finite(f.predicted),
        "worst": finite(f.worst),
        "outside": f.outside,
        "equal": 0 if f.fit is None else f.fit.equal,
        "size": 0 if f.fit is None else f.fit.size,
    }


def row(f: Finding) -> dict[str, Any]:
    """`figures`, and a line of words for each thing that is said: a row of a table."""
    return figures(f) | {
        "budget": None if f.budget is None else f.budget.source,
        "reason": reason(f) or None,
        "notes": "; ".join(map(words, f.notes)) or None,
        "hypothesis": f.hypotheses[0].sentence if f.hypotheses else None,
    }


def _stage(f: Finding) -> dict[str, Any]:
    return figures(f) | {
        "budget": None if f.budget is None else {"source": f.budget.source, "ratio": f.budget.ratio},
        "reason": reason(f) or None,
        "notes": [words(n) for n in f.notes],
        "where": {} if f.where is None else _where(f.where),
        "hypotheses": [
            {
                "name": h.name,
                "sentence": h.sentence,
                "stage": h.at,
                "left": finite(h.left),
                "predicted": finite(h.allowed),
            }
            for h in f.hypotheses
        ],
    }


def _where(w: Where) -> dict[str, Any]:
    said: dict[str, Any] = {"outside": w.outside, "of": w.of, "worst": dict(w.worst)}
    said |= {name: {"count": a.count, "of": a.of, "which": list(a.which)} for name, a in w.axes.items()}
    return said if w.rows is None else said | {"blocks": [_row(r) for r in w.rows]}


def _row(r: WrongRow) -> dict[str, Any]:
    said: dict[str, Any] = {"row": r.row, "matrix": r.matrix, "format": r.format, "size": r.size}
    said |= {"block": r.block, "confidence": r.confidence, "likely": list(r.likely)}
    if r.number is not None:
        amount = {"change": r.number.change} if r.number.factor is None else {"factor": r.number.factor}
        said |= {"what": r.number.what, "columns": list(r.number.columns), **amount}
    return said


def finite(x: float | None) -> float | None:
    return None if x is None or not np.isfinite(x) else float(x)
