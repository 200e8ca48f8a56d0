"""A dump: every stage that an engine has left, in order of execution, with what is known of it.

`sources` opens one, whatever it lies in. Values are mapped and not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from . import aprt
from .plural import plural
from .stages import Key, Stage, by_name, execution_order, layer_name
from .store import MANIFEST, PROMPT, file_name, phase_name


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage of a dump: a file, or an array.

    phase: 0 for the prompt, n for decode step n. layer: None for the whole model.
    shape: as the stage's letters; flat where neither a manifest nor a model says more.
    positions: absolute, one per T (one in all where the stage has no T); None where nothing says so.
    capture: the capture point's facts (stages.py); None where nothing says so.
    array: the values, where they are in memory; then `path` only names them.
    read: makes the values of what lies in the file, where that is no APRT file.
    """

    path: Path
    stage: Stage
    layer: int | None
    phase: int
    shape: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    capture: Mapping[str, str] | None = None
    sha256: str | None = None
    array: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    read: Callable[[], NDArray[np.float32]] | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> Key:
        return self.phase, self.layer, self.stage.name

    @property
    def label(self) -> str:
        """`layer-0/attn_norm`, `decode-0001/lm_head`: for people."""
        return file_name(self.stage, self.layer, self.phase).removesuffix(".bin")

    def values(self) -> NDArray[np.float32]:
        """float32, of the entry's shape, read-only; of a file mapped: nothing is read until it is looked at."""
        if self.array is not None:
            return self.array
        if self.read is not None:
            return self.read()
        return aprt.read(self.path).values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Dump:
    """An opened dump, or one in memory. `dump["attn_norm", 3]` is a stage's array, `dump["lm_head", None, 2]` that of
    the second decode step; iterated, it gives such keys, in order of execution.

    run: the manifest's facts of the run ({} without one): model, tokens, backend, precision, versions.
    sizes: the model's sizes by shape letter; None where neither the manifest nor the caller knows them.
    entries: in order of execution. ignored: .bin files of a dump without a manifest whose names are no stage's.
    missing: files that the manifest lists and that are not there. notes: what is to be said of how it was read.
    beside: of a batch, what opens each of its other prompts, by row; that raises BadInput where it cannot be read.
    """

    path: Path
    run: Mapping[str, Any]
    sizes: Mapping[str, int] | None
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    beside: Mapping[int, Callable[[], Dump]] = field(default_factory=dict, repr=False, compare=False)
    _by_key: Mapping[Key, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_key", MappingProxyType({e.key: e for e in self.entries}))

    def get(self, name: str, layer: int | None = None, phase: int = PROMPT) -> Entry | None:
        """The file of a stage; None if the dump has none."""
        return self._by_key.get((phase, layer, by_name(name).name))

    def __getitem__(self, key: str | tuple[str, int | None] | tuple[str, int | None, int]) -> NDArray[np.float32]:
        """The values of a stage, of a layer (None, the default: the whole model's; of `embedding` layer 0) and of a
        phase (0, the default: the prompt; n: decode step n). Raises BadInput that says what there is.
        """
        name, layer, phase = _key(key)
        e = self.get(name, layer, phase)
        if e is None:
            held = [layer_name(x.layer) for x in self.entries if (x.phase, x.stage.name) == (phase, by_name(name).name)]
            there = f"; it has that of {', '.join(held)}" if held else ""
            raise BadInput(f"{self.path} has no {name} of {layer_name(layer)} ({phase_name(phase)}){there}")
        return e.values().view(np.ndarray)

    def __contains__(self, key: str | tuple[str, int | None] | tuple[str, int | None, int]) -> bool:
        return self.get(*_key(key)) is not None

    def __iter__(self) -> Iterator[tuple[str, int | None, int]]:
        return ((e.stage.name, e.layer, e.phase) for e in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<Dump {str(self.path)!r}: {plural(len(self.entries), 'stage')}, tokens {self.run.get('tokens')}>"

    def check_digests(self) -> None:
        """Raises BadInput if a file is not the one that the manifest describes."""
        for e in self.entries:
            if e.sha256 is not None:
                with e.path.open("rb") as file:
                    if file_digest(file, "sha256").hexdigest() != e.sha256:
                        raise BadInput(
                            f"{e.path}: its SHA-256 is not the one in {MANIFEST}; the file was changed since"
                        )


def _key(key: str | tuple[Any, ...]) -> tuple[str, int | None, int]:
    """(stage, layer, phase) of what stands between the brackets."""
    parts: tuple[Any, ...] = (key,) if isinstance(key, str) else key
    if isinstance(parts, tuple) and 0 < len(parts) < 4 and isinstance(parts[0], str):
        default = (parts[0], 0 if by_name(parts[0]).scope == "first" else None, PROMPT)
        name, layer, phase = parts + default[len(parts) :]
        if all(x is None or hasattr(x, "__index__") for x in (layer, phase)):
            return name, layer, phase
    raise BadInput(f"{key!r:.80}: give a stage's name, its layer and its phase, as in dump['attn_norm', 3, 0]")


def ordered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """In order of execution."""
    return tuple(sorted(entries, key=lambda e: (e.phase, execution_order(e.stage, e.layer))))
