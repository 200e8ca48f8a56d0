"""The report for a terminal."""

from __future__ import annotations

from collections import Counter

from ...plural import plural
from ..finding import UNEXPLAINED, UNJUDGED, Verification
from .paragraph import paragraph
from .text import apart, by_size, grid, mistakes, named, places_of, reason, sections, statement
from .words import words

SHOWN = 12  # unexplained stages that are told one by one


def text(v: Verification) -> str:
    """The report for a terminal."""
    return "\n".join(lines_of(v))


def lines_of(v: Verification) -> list[str]:
    """The report line by line. Names of files and tensors are as they are: whoever prints them makes them safe."""
    lines = paragraph(v)
    lines += [f"Note: {words(r)}." for r in v.remarks]
    for title, findings in sections(v):
        lines += ["", *grid(title, findings)]
    bad = by_size(v.findings)
    if common := mistakes(v):
        lines += ["", *(f"{plural(len(fs), 'stage')} explained by: {said} ({places_of(fs)})" for said, fs in common)]
    if bad:
        told = apart(v)[:SHOWN]
        few = f"; {len(told)} of {len(bad)}, for the others see --json or --html" if len(told) < len(bad) else ""
        lines += ["", f"Unexplained, largest first{few}:"]
        for f in told:
            first, *rest = statement(f)
            lines += [first, *(f"    {line}" for line in rest)]
    weak = Counter((f.stage, f.budget.source) for f in v.findings if f.budget is not None)
    lines += [""] * bool(weak) + [f"Within budget: {s} in {plural(n, 'place')}: {why}" for (s, why), n in weak.items()]
    unjudged = Counter((f.stage, reason(f)) for f in v.findings if f.verdict == UNJUDGED)
    lines += [""] * bool(unjudged) + [
        f"Not judged: {s} in {plural(n, 'place')}: {why}" for (s, why), n in unjudged.items()
    ]
    heads = [f for f in v.findings if f.stage == "lm_head" and f.verdict != UNEXPLAINED]
    lines += [""] * bool(heads) + [f"{named(f)}: {words(note)}" for f in heads for note in f.notes]
    said = Counter((f.stage, words(n)) for f in v.findings if f.explained and f.stage != "lm_head" for n in f.notes)
    return lines + [""] * bool(said) + [f"{s} ({plural(n, 'place')}): {note}" for (s, note), n in said.items()]
