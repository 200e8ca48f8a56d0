"""A dump folder: APRT files in aprender's layout, every header checked against path, manifest and sizes.

A dump without a manifest (aprender's, a user's own) is read too: stages from the paths, shapes from the model's sizes
and the files' counts. Headers are checked at once, values are mapped and not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...errors import BadInput
from .. import aprt
from ..dump import Dump, Entry, ordered
from ..plan import parse_ranges
from ..stages import STAGES, Scope, Stage, find, shape_of_count, unknown_stage
from ..store import MANIFEST, PROMPT, STAGE_FILE, files_of, phase_name, read_manifest
from . import raw, torch_pt


def recognises(path: Path) -> bool:
    """A folder with our manifest, or with stage files and nothing beside them that says otherwise."""
    if not path.is_dir():
        return False
    if read_manifest(path) is not None:
        return True
    binary = [path / f for f in files_of(path) if STAGE_FILE.fullmatch(f)]
    return bool(binary) and not (path / MANIFEST).is_file() and all(map(_may_be, binary))


def _may_be(file: Path) -> bool:
    """Whether nothing says that a .bin file is another tool's: a zip of torch, or raw values with JSON beside."""
    return raw.sidecar(file) is None and not torch_pt.recognises(file)


def open_folder(path: Path, sizes: Mapping[str, int] | None, incomplete: bool) -> Dump:
    """Opens a dump, checks every header against path, manifest and sizes, and reads no values.

    sizes: the model's, by shape letter, for a dump without a manifest (aprender's, or a user's own).
    incomplete: whether files that the manifest lists may be missing. Raises BadInput.
    """
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
            dump = open_folder(root, None, incomplete=False)
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
