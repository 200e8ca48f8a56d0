"""A dump in memory: what DumpWriter is on disk, for who reads it in the same process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .dump import Dump, Entry, ordered
from .stages import Key
from .store import PROMPT, file_name, stage_of


class DumpInMemory:
    """Takes stages, and makes a Dump of them. Values are kept as a file keeps them, in float32.

    name: what to call the dump in messages. sizes: the model's sizes by shape letter.
    """

    def __init__(self, name: str, sizes: Mapping[str, int]) -> None:
        self.path, self.sizes, self.entries = Path(name), dict(sizes), list[Entry]()
        self.kept: set[Key] = set()

    def put(
        self,
        name: str,
        layer: int | None,
        values: NDArray[np.floating],
        positions: Sequence[int],
        *,
        phase: int = PROMPT,
    ) -> None:
        """As DumpWriter.put."""
        s = stage_of(name, layer, values.shape, self.sizes, len(positions))
        with np.errstate(all="ignore"):  # of float64 that no float32 holds
            array = np.array(values, np.float32, order="C")
        array.flags.writeable = False
        self.kept.add((phase, layer, s.name))
        path = self.path / file_name(s, layer, phase)
        self.entries.append(Entry(path, s, layer, phase, array.shape, tuple(positions), s.capture, array=array))

    def dump(self, run: Mapping[str, Any]) -> Dump:
        """All that was put. run: facts, as of a manifest. Raises BadInput if that is nothing."""
        if not self.entries:
            raise BadInput(f"{self.path}: nothing was kept, so there is no dump")
        return Dump(self.path, dict(run), self.sizes, ordered(self.entries))
