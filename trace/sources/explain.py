"""What each name of a source is taken for, as a map that a user can edit (`engine import --explain`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..stages import USUAL, Stage
from .array import Array
from .engines import FACT_RULES, OWN, engine_of
from .names import FACTS
from .places import PASS, RANK, held_by, name_of

Map = dict[str, str | list[str] | None]


def explained(arrays: Sequence[Array], stages: Mapping[str, Stage] = USUAL) -> tuple[Map, str]:
    """The map, a line for all layers, passes and ranks together, and whose names they are. None: not understood.
    stages: the model's."""
    engine = engine_of([name_of(a.name).inside for a in arrays])
    found: Map = {}
    for a in arrays:
        inside = name_of(a.name).inside
        rules = (*FACT_RULES, *engine.rules)
        match = next(((r, m) for r in rules if (m := r.name.fullmatch(inside))), None)
        given = match[0].targets if match else ()
        targets = [t if t in FACTS or engine is OWN else held_by(t, stages) for t in given]
        known = [t for t in targets if t is not None]
        held = None if len(known) < len(targets) else known[0] if len(known) == 1 else known or None
        found.setdefault(_general(a.name, inside, match[1] if match else None), held)
    return found, engine.name


def _general(name: str, inside: str, match: re.Match[str] | None) -> str:
    """The name with {layer}, {phase} and {rank} for the numbers in it."""
    if not name.endswith(inside):
        return name
    head = name.removesuffix(inside)
    head = PASS.sub(lambda m: _number(m, "phase"), RANK.sub(_rank, head))
    if match is not None and match.groupdict().get("layer"):
        start, end = match.span("layer")
        inside = f"{inside[:start]}{{layer}}{inside[end:]}"
    elif match is None:
        inside = re.sub(r"(?<![A-Za-z\d])\d+(?=[./_-])", "{layer}", inside, count=1)
    return head + inside


def _rank(m: re.Match[str]) -> str:
    return "TP{rank}_*/" if m["tp"] else _number(m, "rank")


def _number(m: re.Match[str], group: str) -> str:
    start, end = (n - m.start() for n in m.span(group))
    return f"{m[0][:start]}{{{group}}}{m[0][end:]}" if end > start else m[0]
