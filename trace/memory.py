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
from .store import PROMPT, Whole, file_name, stage_of


class DumpInMemory:
    """Takes stages, and makes a Dump of them. Values are kept as a file keeps them, in float32.

    name: what to call the dump in messages. sizes: the model's sizes by shape letter.
    """

    def __init__(self, name: str, sizes: Mapping[str, int]) -> None:
        self.path, self.sizes, self.entries = Path(name), dict(sizes), list[Entry]()
        self.kept: set[Key] = set()
        self._growing: dict[Key, tuple[NDArray[np.float32], int]] = {}  # and how many of its rows have come

    def put(
        self,
        name: str,
        layer: int | None,
        values: NDArray[np.floating],
        positions: Sequence[int],
        *,
        phase: int = PROMPT,
        whole: Whole | None = None,
    ) -> None:
        """As DumpWriter.put."""
        s = stage_of(name, layer, values.shape, self.sizes, len(positions))
        key = (phase, layer, s.name)
        with np.errstate(all="ignore"):  # of float64 that no float32 holds
            if whole is None or whole.shape(s, self.sizes) == values.shape:
                array = np.array(values, np.float32, order="C")
            else:
                array, done = self._growing.get(key) or (np.zeros(whole.shape(s, self.sizes), np.float32), 0)
                whole.check(s, positions, done)
                end = done + len(positions)
                if "S" in s.letters:
                    array[:, done:end, : values.shape[2]] = values
                else:
                    array[done:end] = values
                self._growing[key] = array, end
                if end < len(whole.positions):
                    return
                del self._growing[key]
                positions = whole.positions
        array.flags.writeable = False
        self.kept.add(key)
        path = self.path / file_name(s, layer, phase)
        self.entries.append(Entry(path, s, layer, phase, array.shape, tuple(positions), s.capture, array=array))

    def dump(self, run: Mapping[str, Any]) -> Dump:
        """All that was put. run: facts, as of a manifest. Raises BadInput if that is nothing."""
        if not self.entries:
            raise BadInput(f"{self.path}: nothing was kept, so there is no dump")
        return Dump(self.path, dict(run), self.sizes, ordered(self.entries))
