"""Two dumps, or two stage files, side by side: every stage that both have, and what keeps the rest from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .compare import Choice, Comparison, choice, compare, place
from .dump import Dump, Entry
from .pair import Known, Pairs, pair_dumps, pair_files
from .plural import plural
from .sources import reader_of

TOLERANCE, TOP = 1e-3, 10

Source = Dump | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Row:
    """A compared stage."""

    a: Entry
    b: Entry
    figures: Comparison
    choice: Choice | None

    def as_json(self, pairs: Pairs, tolerance: float) -> dict[str, Any]:
        f = self.figures
        row: dict[str, Any] = {
            "phase": self.a.phase,
            "layer": self.a.layer,
            "stage": self.a.stage.name,
            "elements": f.elements,
            "equal": f.equal,
            "cosine": f.cosine,
            "rms_a": f.rms_a,
            "rms_diff": f.rms_diff,
            "relative": f.relative if isfinite(f.relative) else None,
            "within": f.relative <= tolerance,
            "max_abs": f.max_abs,
            "max_at": place(self.a, f.top[0].index, pairs.sizes) if f.top else None,
            "mismatched": f.mismatched,
            "nan_both": f.nan_both,
            "top": [
                {"at": place(self.a, d.index, pairs.sizes), "index": d.index, "a": d.a, "b": d.b, "abs_diff": d.size}
                for d in f.top
            ],
        }
        if self.choice:
            c = self.choice
            row |= {"argmax_a": c.argmax_a, "argmax_b": c.argmax_b, "top5_overlap": c.top5_overlap, "kl": c.kl}
        return row


@dataclass(frozen=True, slots=True)
class Diff:
    """b held against the reference a. stages: compared, in order of execution. tolerance: the largest relative error,
    RMS(a - b) / RMS(a), of a stage that passes.
    """

    pairs: Pairs
    stages: tuple[Row, ...]
    tolerance: float

    @property
    def first_beyond(self) -> Row | None:
        """The first stage that differs by more than the tolerance."""
        return next((r for r in self.stages if not r.figures.relative <= self.tolerance), None)

    @property
    def within(self) -> bool:
        """Whether no stage is beyond the tolerance, and none was fed another token."""
        return self.first_beyond is None and not self.pairs.apart

    @property
    def tolerance_needed(self) -> float:
        """The least that every stage would have passed; infinite where none would do."""
        return max(r.figures.relative for r in self.stages)

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        beyond = sum(not r.figures.relative <= self.tolerance for r in self.stages)
        needed = self.tolerance_needed
        would = f"{needed:.3e} would have passed" if isfinite(needed) else "no tolerance would have passed"
        return (
            f"{plural(len(self.stages), 'stage')} compared, {beyond} beyond the tolerance {self.tolerance:g}; {would}"
        )

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary of plain values for each stage: what `engine diff --csv` writes, and a table takes."""
        return [{k: v for k, v in told.items() if k != "top"} for told in self.as_json()]

    def as_json(self) -> list[dict[str, Any]]:
        """`rows`, with the largest differences of each stage. NaN and infinity are None."""
        return [r.as_json(self.pairs, self.tolerance) for r in self.stages]

    def __str__(self) -> str:
        return self.sentence

    def __repr__(self) -> str:
        return f"<Diff: {self.sentence}>"


def diff(
    a: Source,
    b: Source,
    *,
    tolerance: float = TOLERANCE,
    top: int = TOP,
    known: Known = Known(),  # noqa: B008
) -> Diff:
    """Compares b with the reference a: two dumps, opened or by their paths, or two stage files.

    top: how many of the largest differences to keep of a stage. known: the model's sizes, which sources of other tools
    need, and which of their prompts is meant. Raises BadInput for what cannot be compared: nothing in
    common, other tokens, other capture points, other sizes.
    """
    if not 0 <= tolerance < float("inf"):
        raise BadInput(f"tolerance {tolerance}: give a number from 0 up; anything else would pass or fail all")
    if top < 1:
        raise BadInput(f"top {top}: give at least 1")
    x, y = (s if isinstance(s, Dump) else Path(s) for s in (a, b))
    for s in (x, y):
        if isinstance(s, Path) and not s.exists():
            raise BadInput(f"{s}: no such file or folder")
    files = [isinstance(s, Path) and not s.is_dir() and reader_of(s) is None for s in (x, y)]
    if files[0] != files[1]:
        raise BadInput(f"{_name(x)} and {_name(y)}: give two folders or two files")
    pairs = pair_files(x, y) if isinstance(x, Path) and isinstance(y, Path) and files[0] else pair_dumps(x, y, known)
    stages = (Row(p, q, compare(p, q, top), choice(p, q) if p.stage.name == "lm_head" else None) for p, q in pairs.both)
    return Diff(pairs, tuple(stages), tolerance)


def _name(s: Dump | Path) -> Path:
    return s.path if isinstance(s, Dump) else s
