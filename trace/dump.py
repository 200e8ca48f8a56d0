"""A dump: every stage file of a folder, in order of execution, with what the manifest says of it.

A dump without a manifest (aprender's, a user's own) is read too: stages from the paths, shapes from the model's sizes
and the files' counts. Headers are checked at once, values are mapped and not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import file_digest
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from . import aprt
from .plan import parse_ranges
from .stages import STAGES, Key, Scope, Stage, by_name, execution_order, find, layer_name, shape_of_count, unknown_stage
from .store import MANIFEST, PROMPT, STAGE_FILE, file_name, files_of, phase_name, read_manifest


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage of a dump: a file, or an array.

    phase: 0 for the prompt, n for decode step n. layer: None for the whole model.
    shape: as the stage's letters; flat where neither a manifest nor a model says more.
    positions: absolute, one per T (one in all where the stage has no T); None where nothing says so.
    capture: the capture point's facts (stages.py); None where nothing says so.
    array: the values, where they are in memory; then `path` only names them.
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
        return aprt.read(self.path).values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Dump:
    """An opened dump, or one in memory. `dump["attn_norm", 3]` is a stage's array, `dump["lm_head", None, 2]` that of
    the second decode step; iterated, it gives such keys, in order of execution.

    run: the manifest's facts of the run ({} without one): model, tokens, backend, precision, versions.
    sizes: the model's sizes by shape letter; None where neither the manifest nor the caller knows them.
    entries: in order of execution. ignored: .bin files of a dump without a manifest whose names are no stage's.
    missing: files that the manifest lists and that are not there.
    """

    path: Path
    run: Mapping[str, Any]
    sizes: Mapping[str, int] | None
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
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
        return f"<Dump {str(self.path)!r}: {len(self.entries)} stages, tokens {self.run.get('tokens')}>"

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


def open_dump(
    path: str | os.PathLike[str], sizes: Mapping[str, int] | None = None, *, incomplete: bool = False
) -> Dump:
    """Opens a dump, checks every header against path, manifest and sizes, and reads no values.

    sizes: the model's, by shape letter, for a dump without a manifest (aprender's, or a user's own).
    incomplete: whether files that the manifest lists may be missing. Raises BadInput.
    """
    path = Path(path)
    if not path.is_dir():
        raise BadInput(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    manifest = read_manifest(path)
    run: Mapping[str, Any] = {}
    ignored: list[str] = []
    missing: list[str] = []
    if manifest is None:
        entries, ignored = _bare_entries(path, sizes)
    else:
        run, sizes = manifest["run"], manifest["sizes"]
        if incomplete:
            missing = [f["path"] for f in manifest["files"] if not (path / f["path"]).exists()]
        entries = [_listed_entry(path, f, sizes) for f in manifest["files"] if f["path"] not in missing]
        stale = sorted(set(files_of(path)) - {MANIFEST} - {e.path.relative_to(path).as_posix() for e in entries})
        if stale:
            raise BadInput(f"{path} holds {stale[0]}, which {MANIFEST} does not list; remove it, or trace again")
    if not entries:
        raise BadInput(f"{path} holds no stage files (layer-N/<stage>.bin, <stage>.bin)")
    found = ordered(entries)
    for a, b in pairwise(found):
        if a.key == b.key:
            raise BadInput(f"{a.path} and {b.path} are the same stage")
    return Dump(path, run, sizes, found, tuple(ignored), tuple(missing))


def open_stage(path: str | os.PathLike[str]) -> tuple[Entry, Mapping[str, int] | None]:
    """One file by itself, and the sizes of its model where a manifest in its dump's folder tells them.

    Without a manifest the stage is the file's name, known or not, and the shape is flat. Raises BadInput.
    """
    path = Path(path)
    header = aprt.read(path)
    for root in list(path.absolute().parents)[:3]:
        if read_manifest(root) is not None:
            dump = open_dump(root)
            for e in dump.entries:
                if e.path.absolute() == path.absolute():
                    return e, dump.sizes
    scope: Scope = "whole" if header.layer is None else "layer"
    s = find(path.stem) or unknown_stage(path.stem, scope)
    return Entry(path, s, header.layer, PROMPT, (len(header.values),)), None


def _checked(path: Path, inside: str) -> tuple[Stage | None, int | None, int, int]:
    """(stage, layer, phase, count) of a file by its path and header. Stage None: the name is no stage's."""
    m = STAGE_FILE.fullmatch(inside)
    s = find(m[3]) if m else None
    if m is None or s is None:
        return None, None, 0, 0
    phase, layer = int(m[1] or 0), None if m[2] is None else int(m[2])
    header = aprt.read(path / inside)
    if header.layer != layer:
        says = "the whole model" if header.layer is None else f"layer {header.layer}"
        raise BadInput(f"{path / inside}: its header says {says}, its path does not")
    if (layer is None) != (s.scope == "whole") or (s.scope == "first" and layer != 0):
        where = {"whole": "the dump's own folder", "first": "layer-0", "layer": "a layer-N folder"}[s.scope]
        raise BadInput(f"{path / inside}: {s.name} belongs into {where}")
    if not header.values.size:
        raise BadInput(f"{path / inside}: nothing to compare or to judge, it holds no values")
    return s, layer, phase, header.values.size


def _bare_entries(path: Path, sizes: Mapping[str, int] | None) -> tuple[list[Entry], list[str]]:
    found, ignored = [], []
    for inside in files_of(path):
        if inside.endswith(".bin"):
            s, layer, phase, count = _checked(path, inside)
            if s is None:
                ignored.append(inside)
            else:
                found.append((inside, s, layer, phase, count))
    lengths: dict[int, set[int]] = {}
    for _, s, _, phase, count in found:
        if sizes and "T" in s.letters and "S" not in s.letters:
            lengths.setdefault(phase, set()).update((shape_of_count(s, sizes, count, None) or ())[:1])
    entries = []
    for inside, s, layer, phase, count in found:
        T = lengths.get(phase, set())
        shape = shape_of_count(s, sizes, count, min(T) if len(T) == 1 else None) if sizes else (count,)
        if shape is None:
            raise BadInput(f"{path / inside}: {count} values are no {s.shape} of this model ({dict(sizes or {})})")
        entries.append(Entry(path / inside, s, layer, phase, shape))
    return entries, ignored


def _listed_entry(path: Path, f: dict[str, Any], sizes: Mapping[str, int]) -> Entry:
    where, inside = path / MANIFEST, str(f["path"])
    shape, spelled, capture, digest = (f.get(k) for k in ("shape", "positions", "capture", "sha256"))
    s, layer, phase, count = _checked(path, inside)
    if s is None:
        raise BadInput(
            f"{where}: {inside} is not the file of a stage; the stages are {', '.join(t.name for t in STAGES)}"
        )
    if (f.get("stage"), f.get("layer"), f.get("phase")) != (s.name, layer, phase_name(phase)):
        told = ", ".join(f"{f.get(k)!r:.80}" for k in ("stage", "layer", "phase"))
        raise BadInput(f"{where}: {inside} is listed as {told}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) != len(s.letters):
        raise BadInput(f"{where}: {inside} has shape {shape!r:.80}, not {s.shape}")
    if prod(shape) != count:
        raise BadInput(f"{path / inside}: holds {count} values, {MANIFEST} says {shape!s:.80}")
    known = dict(zip(s.letters, shape, strict=True))
    if wrong := [letter for letter in known.keys() & sizes if known[letter] != sizes[letter]]:
        raise BadInput(f"{where}: {inside} has shape {shape}, but `sizes` says {wrong[0]} is {sizes[wrong[0]]}")
    if not isinstance(spelled, str) or not isinstance(capture, dict) or not isinstance(digest, str):
        raise BadInput(f"{where}: {inside} needs positions, capture and sha256")
    facts = [*capture, *capture.values()]
    if not all(isinstance(fact, str) and fact.isprintable() and len(fact) < 200 for fact in facts):
        raise BadInput(f"{where}: the capture of {inside} must be short text by short names")
    ranges = parse_ranges(spelled, "positions")
    T = known.get("T", 1)
    if sum(len(r) for r in ranges) != T:
        raise BadInput(f"{where}: {inside} has {T} positions, and names {spelled:.80}")
    positions = tuple(p for r in ranges for p in r)
    if max(positions) >= 1 << 31 or any(a >= b for a, b in pairwise(positions)):
        raise BadInput(f"{where}: {inside} must have its positions in order, below 2^31")
    if known.get("S", 1 << 32) <= max(positions):
        raise BadInput(f"{where}: {inside} has {known['S']} keys, and names position {max(positions)}")
    return Entry(path / inside, s, layer, phase, tuple(shape), positions, MappingProxyType(capture), digest)
