"""Taps that look: `Recorder` writes the stages of a forward pass, `Summary` counts what is in them
(engine/tap.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .stages import Stage, by_name
from .stats import Statistics, statistics
from .store import PROMPT


class Sink(Protocol):
    """Where stages go: a DumpWriter, or a DumpInMemory."""

    def put(
        self, name: str, layer: int | None, values: NDArray[np.floating], positions: Sequence[int], *, phase: int
    ) -> None: ...


ToHost = Callable[[Any], NDArray[np.floating]]


class _Looking:
    """A tap that brings every wanted stage to the host and shows it, with its layer, to `look`."""

    def __init__(self, plan: Plan, to_host: ToHost) -> None:
        self.plan, self.to_host = plan, to_host

    def layer(self, index: int) -> Callable[[str, Any], Any]:
        def at(stage: str, value: Any) -> Any:
            return self._show(stage, index, value)

        return at

    def whole(self, stage: str, value: Any) -> Any:
        return self._show(stage, None, value)

    def _show(self, name: str, layer: int | None, value: Any) -> Any:
        s = by_name(name)
        if self.plan.wants(s, layer):
            self.look(s, layer, self.to_host(value))
        return value

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        raise NotImplementedError


class Recorder(_Looking):
    """Writes each wanted stage as it comes by; holds nothing.

    positions: the absolute positions of the pass's T tokens. kept: those of them to write (a stage without T is written
    for the last position whatever it says).
    """

    def __init__(
        self,
        plan: Plan,
        to_host: ToHost,
        writer: Sink,
        positions: Sequence[int],
        kept: Sequence[int] | None = None,
        phase: int = PROMPT,
    ) -> None:
        super().__init__(plan, to_host)
        self.writer, self.positions, self.phase = writer, positions, phase
        self.kept = positions if kept is None else kept

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        if "T" not in s.letters:
            self.writer.put(s.name, layer, values, self.positions[-1:], phase=self.phase)
            return
        if len(self.kept) < len(self.positions):
            rows = [p - self.positions[0] for p in self.kept]
            values = np.take(values, rows, axis=s.letters.index("T"))
        self.writer.put(s.name, layer, values, self.kept, phase=self.phase)


@dataclass(frozen=True, slots=True)
class Row:
    """One stage's statistics: over every position of the pass (None where it has only the last), and over the last."""

    phase: int
    stage: Stage
    layer: int | None
    every: Statistics | None
    last: Statistics

    def anomalies(self) -> list[str]:
        return (self.every or self.last).anomalies() or self.last.anomalies()


SEEN = 32  # queries and keys of attention that a summary keeps


class Summary(_Looking):
    """Collects, stage by stage, statistics over all positions of a pass and over the last one alone.

    attention: by layer, the probabilities of the first queries over the first keys, mean of the heads.
    """

    def __init__(self, plan: Plan, to_host: ToHost, positions: Sequence[int], phase: int = PROMPT) -> None:
        super().__init__(plan, to_host)
        self.positions, self.phase = positions, phase
        self.rows: list[Row] = []
        self.attention: dict[int, tuple[tuple[float, ...], ...]] = {}

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        """Scores and probabilities count up to the query only: what stands after it is a fill, not a result."""
        if s.name == "attn_softmax" and layer is not None:
            mean_TS = values[:, :SEEN, :SEEN].astype(np.float64).mean(0)
            self.attention[layer] = tuple(map(tuple, mean_TS.tolist()))
        every: Statistics | None
        if "T" not in s.letters:
            every, last = None, statistics([values])
        elif "S" in s.letters:
            ends = [p + 1 for p in self.positions]
            every = statistics(values[:, t, :end] for t, end in enumerate(ends))
            last = statistics([values[:, -1]])
        else:
            every, last = statistics(values), statistics([values[-1]])
        self.rows.append(Row(self.phase, s, layer, every, last))
