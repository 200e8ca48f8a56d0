"""Which findings of a verification are told: --stage, --layer, --phase. All of the dump is judged all the same, since
every stage tells what the engine computes with."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import BadInput
from ..trace.plan import Ranges, parse_ranges, parse_stages
from ..trace.verify.report.report import Report


@dataclass(frozen=True, slots=True)
class Choice:
    """stages, layers: None for all. phases: 0 for the prompt, n for decode step n; None for all."""

    stages: tuple[str, ...] | None
    layers: Ranges | None
    phases: Ranges | None

    def holds(self, stage: str, layer: int | None, phase: int) -> bool:
        return (
            (self.stages is None or stage in self.stages)
            and (self.layers is None or (layer is not None and any(layer in r for r in self.layers)))
            and (self.phases is None or any(phase in r for r in self.phases))
        )

    def check(self, dump: str, places: Sequence[tuple[str, int | None, int]]) -> None:
        """Raises BadInput where none of these stages, layers and phases is chosen."""
        if not places or any(self.holds(*place) for place in places):
            return
        stages = ", ".join(dict.fromkeys(stage for stage, _, _ in places))
        layers = sorted({layer for _, layer, _ in places if layer is not None})
        steps = len({phase for _, _, phase in places} - {0})
        there = f"layers {layers[0]} to {layers[-1]}" if layers else "no layers"
        raise BadInput(
            f"{dump}: --stage, --layer and --phase leave nothing; it has {stages}; {there}; decode steps: {steps}"
        )

    def of(self, report: Report) -> Report:
        """The report of the chosen findings. Raises BadInput where it has none."""
        self.check(str(report.dump), [(f.stage, f.layer, f.phase) for f in report.findings])
        return replace(report, findings=tuple(f for f in report.findings if self.holds(f.stage, f.layer, f.phase)))


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to tell (all is judged; the exit status is of what is told)")
    group.add_argument("--stage", metavar="NAMES", help="a comma list of stages")
    group.add_argument("--layer", metavar="RANGE", help="0..4, 3 or a comma list; leaves the whole model's stages out")
    group.add_argument("--phase", metavar="WHICH", help="prompt, decode, or decode steps by number: 1, 2..5")


def chosen(args: argparse.Namespace) -> Choice:
    """What the arguments ask for. Raises BadInput."""
    return Choice(
        stages=None if args.stage is None else tuple(s.name for s in parse_stages(args.stage)),
        layers=None if args.layer is None else parse_ranges(args.layer, "layers"),
        phases=None if args.phase is None else _phases(args.phase),
    )


def _phases(word: str) -> Ranges:
    word = word.strip().lower()
    if word == "prompt":
        return (range(0, 1),)
    if word == "decode":
        return (range(1, 1 << 32),)
    if not re.fullmatch(r"[\d.,\s]+", word):
        raise BadInput(f"--phase {word!r:.80}: give prompt, decode, or the numbers of decode steps: 1, 2..5")
    return parse_ranges(word, "decode steps")
