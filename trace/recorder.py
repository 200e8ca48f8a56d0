"""Taps that look: `Recorder` writes the stages of a forward pass, `Summary` counts what is in them
(engine/tap.py).

A prompt may come in several passes of the page (engine/chunks.py): whoever runs them says before each which positions
it has (`now`). What is written and counted is the same as of one pass.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .stages import Stage, by_name
from .stats import Counter, Statistics, statistics
from .store import PROMPT, Whole


class Sink(Protocol):
    """Where stages go: a DumpWriter, or a DumpInMemory."""

    def put(
        self,
        name: str,
        layer: int | None,
        values: NDArray[np.floating],
        positions: Sequence[int],
        *,
        phase: int,
        whole: Whole | None = None,
    ) -> None: ...


ToHost = Callable[[Any], NDArray[np.floating]]


class _Looking:
    """A tap that brings every wanted stage to the host and shows it, with its layer, to `look`.

    positions: absolute, of the phase's tokens. now: those of the pass that runs.
    """

    def __init__(self, plan: Plan, to_host: ToHost, positions: Sequence[int]) -> None:
        self.plan, self.to_host, self.positions, self.now = plan, to_host, positions, positions

    @property
    def at_the_end(self) -> bool:
        """Whether the pass has the phase's last position."""
        return self.now[-1] == self.positions[-1]

    def wants(self, s: Stage, layer: int | None) -> bool:
        return self.plan.wants(s, layer) and ("T" in s.letters or self.at_the_end)

    def layer(self, index: int) -> Callable[[str, Any], Any]:
        def at(stage: str, value: Any) -> Any:
            return self._show(stage, index, value)

        return at

    def whole(self, stage: str, value: Any) -> Any:
        return self._show(stage, None, value)

    def _show(self, name: str, layer: int | None, value: Any) -> Any:
        s = by_name(name)
        if self.wants(s, layer):
            self.look(s, layer, self.to_host(value))
        return value

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        raise NotImplementedError


class Recorder(_Looking):
    """Writes each wanted stage as it comes by; holds nothing.

    kept: those of the positions to write, ascending (a stage without T is written for the last position whatever it
    says).
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
        super().__init__(plan, to_host, positions)
        self.writer, self.phase = writer, phase
        self.of = Whole(positions if kept is None else kept, positions[-1] + 1)

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        if "T" not in s.letters:
            self.writer.put(s.name, layer, values, self.now[-1:], phase=self.phase)
            return
        kept = self.of.positions
        mine = kept[bisect_left(kept, self.now[0]) : bisect_right(kept, self.now[-1])]
        if not mine:
            return
        if len(mine) < len(self.now):
            values = np.take(values, [p - self.now[0] for p in mine], axis=s.letters.index("T"))
        self.writer.put(s.name, layer, values, mine, phase=self.phase, whole=self.of)


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

    def __init__(
        self, plan: Plan, to_host: ToHost, positions: Sequence[int], phase: int = PROMPT, causal: bool = True
    ) -> None:
        super().__init__(plan, to_host, positions)
        self.phase, self.causal = phase, causal
        self.rows: list[Row] = []
        self.attention: dict[int, tuple[tuple[float, ...], ...]] = {}
        self._every: dict[tuple[str, int | None], Counter] = {}

    def look(self, s: Stage, layer: int | None, values: NDArray[np.floating]) -> None:
        """Scores and probabilities count up to the query only: what stands after it is a fill, not a result, where
        attention is causal."""
        if s.name == "attn_softmax" and layer is not None:
            self._see(layer, values)
        if "T" not in s.letters:
            self.rows.append(Row(self.phase, s, layer, None, statistics([values])))
            return
        every = self._every.setdefault((s.name, layer), Counter())
        if "S" in s.letters:
            every.add(values[:, t, : p + 1 if self.causal else None] for t, p in enumerate(self.now))
            last_row = values[:, -1]
        else:
            every.add(values)
            last_row = values[-1]
        if self.at_the_end:
            self.rows.append(Row(self.phase, s, layer, every.result(), statistics([last_row])))

    def _see(self, layer: int, probs_NTS: NDArray[np.floating]) -> None:
        """Keys that a query's pass does not know yet get what the page gives them, 0."""
        rows, keys = min(SEEN, len(self.positions)), min(SEEN, self.positions[-1] + 1)
        seen = self.attention.get(layer, ())
        mean_TS = probs_NTS[:, : rows - len(seen), :keys].astype(np.float64).mean(0)
        padded_TS = np.pad(mean_TS, ((0, 0), (0, keys - mean_TS.shape[1])))
        self.attention[layer] = (*seen, *map(tuple, padded_TS.tolist()))
