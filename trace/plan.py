"""What to trace: stages, layers, positions and decode steps, understood and checked before a model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import BadInput
from .stages import STAGES, Stage, by_name

Ranges = tuple[range, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for.

    stages: in order of execution, each once. layers: those asked for, None for all; the whole model's stages ignore it.
    positions: positions of the prompt to keep, None for all, () for the last one; a decode step's one position is
    always kept, and so is a stage that exists for the last position only (lm_head).
    decode_steps: greedy steps to take, and trace, after the prompt.
    """

    stages: tuple[Stage, ...]
    layers: Ranges | None = None
    positions: Ranges | None = None
    decode_steps: int = 0

    def wants(self, s: Stage, layer: int | None) -> bool:
        """Whether the stage of that layer (None: of the whole model) is to be kept."""
        mine = any(s.name == own.name for own in self.stages)  # a model's stages may have other inputs than the table's
        return mine and (layer is None or self.layers is None or any(layer in r for r in self.layers))

    def check(self, layers: int, prompt: int | None = None) -> None:
        """Raises BadInput if a model of so many layers, or a prompt of that length, cannot give what is asked for."""
        if self.layers and (last := max(r[-1] for r in self.layers)) >= layers:
            raise BadInput(f"layer {last} is past the last: the model has 0 to {layers - 1} (0..{layers}, or `all`)")
        if prompt and self.positions and (last := max(r[-1] for r in self.positions)) >= prompt:
            raise BadInput(f"position {last} is past the last: the prompt has positions 0 to {prompt - 1}")

    def within(self, has: Mapping[str, Stage]) -> Plan:
        """The plan for a model that has these stages. Raises BadInput that names one that it has not, unless all were
        asked for."""
        if self.stages != STAGES and (none := [s.name for s in self.stages if s.name not in has]):
            raise BadInput(f"this model has no stage {none[0]}; its stages are {', '.join(has)}")
        return replace(self, stages=tuple(s for s in self.stages if s.name in has))

    def expected(self, layers: int) -> Iterator[tuple[Stage, int | None]]:
        """Every stage and layer that one forward pass of a model of so many layers must yield."""
        for s in self.stages:
            where: Iterable[int | None] = {"whole": (None,), "first": (0,), "layer": range(layers)}[s.scope]
            yield from ((s, layer) for layer in where if self.wants(s, layer))

    def kept(self, prompt: int) -> list[int]:
        """The positions of a prompt of that length which the plan keeps, ascending."""
        if self.positions is None:
            return list(range(prompt))
        return sorted({p for r in self.positions for p in r}) or [prompt - 1]


def plan(stages: str, layers: str = "all", positions: str = "all", decode_steps: int = 0) -> Plan:
    """The plan that the words of a command line mean. Raises BadInput that names the word and what would do."""
    chosen = parse_stages(stages)
    ranges = None if layers.strip().lower() == "all" else parse_ranges(layers, "layers")
    if ranges is not None and not any(0 in r for r in ranges):
        asked = [s.name for s in chosen if s.scope == "first"]
        if asked and stages.strip().lower() != "all":
            raise BadInput(f"{asked[0]} belongs to layer 0, which the layers {layers} leave out")
    if decode_steps < 0:
        raise BadInput(f"{decode_steps} decode steps: the count cannot be negative")
    word = positions.strip().lower()
    where = None if word == "all" else () if word == "last" else parse_ranges(positions, "positions")
    return Plan(chosen, ranges, where, decode_steps)


def parse_stages(text: str) -> tuple[Stage, ...]:
    """`all`, or a comma list of stages or aliases in any case; spaces round a name are ignored."""
    if not text.strip():
        raise BadInput(f"no stage is named; name some of {', '.join(s.name for s in STAGES)}, or `all`")
    if text.strip().lower() == "all":
        return STAGES
    words = text.split(",")
    if not all(w.strip() for w in words):
        raise BadInput(f"empty stage name in {text!r}")
    if any(w.strip().lower() == "all" for w in words):
        raise BadInput(f"{text!r:.80}: `all` stands alone; leave the other stages away")
    chosen = [by_name(w) for w in words]
    return tuple(s for s in STAGES if s in chosen)


def parse_ranges(text: str, what: str) -> Ranges:
    """`3`, `0..4` (the end is not included) or a comma list of both. what: "layers" or "positions", for the message."""
    ranges = []
    for word in text.split(","):
        m = re.fullmatch(r"\s*(\d{1,10})\s*(?:\.\.\s*(\d{1,10})\s*)?", word, re.ASCII)
        if m is None:
            raise BadInput(
                f"{what} {text!r:.80}: {word.strip()!r:.80} is neither a number nor START..END; "
                "give 0..4, 3, 0,5,27 or `all`"
            )
        start = int(m[1])
        end = start + 1 if m[2] is None else int(m[2])
        if end <= start:
            raise BadInput(f"{what} {text!r:.80}: {word.strip()} is empty; END is not included and must be above START")
        if end > 0xFFFFFFFF:
            raise BadInput(f"{what} {text!r:.80}: {word.strip()} is past what an APRT file can number")
        ranges.append(range(start, end))
    return tuple(ranges)


def spell_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in the spelling that `parse_ranges` reads: `0..7`, `3`, `0..2,5`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1]:
            runs[-1][1] = n + 1
        else:
            runs.append([n, n + 1])
    return ",".join(str(a) if b == a + 1 else f"{a}..{b}" for a, b in runs)
