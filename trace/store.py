"""Writing a dump: APRT files in aprender's layout and a manifest that says what they hold. Written whole or not at all.

    <dir>/manifest.json
    <dir>/<stage>.bin                      the whole model's stages, of the prompt
    <dir>/layer-<i>/<stage>.bin            layer i's, of the prompt
    <dir>/decode-0001/...                  the same for the first decode step, and so on

`DumpWriter` serves this engine and the dumpers of others; trace/dump.py reads what it writes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..beside import Beside
from ..errors import BadInput
from . import aprt
from .plan import spell_ranges
from .stages import Key, Stage, by_name, shape_for

FORMAT, VERSION = "qwenref-trace", 1
MANIFEST = "manifest.json"
PROMPT = 0
SIZES = "DNKHEFV"  # the letters that a manifest gives; T and S are each file's own
STAGE_FILE = re.compile(r"(?:decode-(\d{4,9})/)?(?:layer-(0|[1-9]\d{0,9})/)?([^/\0]{1,200})\.bin", re.ASCII)


def phase_name(phase: int) -> str:
    """0 is the prompt, n the n-th decode step; the name is the folder's."""
    return f"decode-{phase:04d}" if phase else "prompt"


def file_name(s: Stage, layer: int | None, phase: int = PROMPT) -> str:
    """The path inside a dump, with `/`."""
    folders = [phase_name(phase)] * bool(phase) + [f"layer-{layer}"] * (layer is not None)
    return "/".join([*folders, f"{s.name}.bin"])


@dataclass(frozen=True, slots=True)
class Whole:
    """What a stage will be whose rows come in parts: all its positions, ascending, and S behind the last pass."""

    positions: Sequence[int]
    S: int

    def shape(self, s: Stage, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return shape_for(s, sizes, len(self.positions), self.S)

    def check(self, s: Stage, positions: Sequence[int], done: int) -> None:
        """Raises ValueError if the part is not the next one."""
        if list(positions) != list(self.positions[done : done + len(positions)]):
            raise ValueError(f"{s.name}: a part of the positions {spell_ranges(positions)} is not the next one")


class DumpWriter:
    """Writes a dump beside its place and moves it there when all is well.

    with DumpWriter(dir, run, sizes) as w:
        w.put("attn_norm", 0, values, positions=range(7))

    Each put is on disk when it returns; nothing is held. If an error leaves the block, or nothing was put, nothing is
    left behind and an older dump stays. An older dump of this format is replaced as a whole; anything else is refused.
    run: facts for the manifest (README of the format: docs/trace.md). sizes: the model's sizes by shape letter.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        self.path, self.run, self.sizes = Path(path), dict(run), dict(sizes)
        self.files: list[dict[str, Any]] = []
        self.kept: set[Key] = set()
        self._growing: dict[Key, aprt.Growing] = {}
        check_target(self.path)
        try:
            self._beside = Beside(self.path, folder=True)
        except OSError as error:
            raise self._cannot(error) from None

    def put(
        self,
        name: str,
        layer: int | None,
        values: NDArray[np.floating],
        positions: Sequence[int],
        *,
        phase: int = PROMPT,
        capture: Mapping[str, str] | None = None,
        whole: Whole | None = None,
    ) -> None:
        """Writes one stage. layer: None for the whole model's. values: of the stage's shape, with T = len(positions).

        positions: absolute; of a stage without T the one it was computed for. capture: if it is not the stage table's.
        whole: what the stage will be, if these are its next rows and not all; its file is listed with the last of them.
        Raises BadInput if it cannot be written, ValueError for a shape that is not the stage's.
        """
        s = stage_of(name, layer, values.shape, self.sizes, len(positions))
        inside = file_name(s, layer, phase)
        target, key = self._beside.path / inside, (phase, layer, s.name)
        shape = values.shape if whole is None else whole.shape(s, self.sizes)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if whole is None or shape == values.shape:
                digest = aprt.write(target, layer, values)
            else:
                if key not in self._growing:
                    self._growing[key] = aprt.Growing(target, layer, shape, s.letters.index("T"))
                file = self._growing[key]
                whole.check(s, positions, file.done)
                file.add(values)
                if not file.complete:
                    return
                digest, positions = self._growing.pop(key).digest(), whole.positions
        except OSError as error:
            raise self._cannot(error) from None
        self.kept.add(key)
        self.files.append(
            {
                "path": inside,
                "stage": s.name,
                "layer": layer,
                "phase": phase_name(phase),
                "shape": list(shape),
                "positions": spell_ranges(positions),
                "capture": dict(s.capture if capture is None else capture),
                "sha256": digest,
            }
        )

    def __enter__(self) -> DumpWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as failed:
            raise self._cannot(failed) from None
        finally:
            self._beside.discard()

    def _finish(self) -> None:
        if not self.files:
            raise BadInput(f"{self.path}: nothing was written, so there is no dump")
        if self._growing:
            raise ValueError(f"{file_name(by_name(next(iter(self._growing))[2]), None)}: its last rows did not come")
        (self._beside.path / MANIFEST).write_text(spell_manifest(self.run, self.sizes, self.files), "utf-8")
        self._beside.move()

    def _cannot(self, error: OSError) -> BadInput:
        return BadInput(f"{self.path}: cannot write the dump: {error.strerror or error}; nothing of it is left")


def stage_of(name: str, layer: int | None, shape: tuple[int, ...], sizes: Mapping[str, int], T: int) -> Stage:
    """The stage that is to be kept. Raises ValueError for a shape or a layer that is not its."""
    s = by_name(name)
    known = {**sizes, "T": T}
    if len(shape) != len(s.letters) or any(
        known.get(letter, n) != n for letter, n in zip(s.letters, shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {shape}; it must be {s.shape} with {known}")
    if (layer is None) != (s.scope == "whole") or (s.scope == "first" and layer != 0):
        raise ValueError(f"{name} cannot be of layer {layer}")
    return s


def spell_manifest(run: Mapping[str, Any], sizes: Mapping[str, int], files: Iterable[Mapping[str, Any]]) -> str:
    """manifest.json, one file a line."""
    head = json.dumps({"format": FORMAT, "version": VERSION, "sizes": sizes, "run": run}, indent=1, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(f) for f in files)
    return f'{head.removesuffix("}").rstrip()},\n "files": [\n{lines}\n ]\n}}\n'


def check_target(path: Path) -> None:
    """Raises BadInput if a dump cannot or should not go there. A dump of this format may be replaced, nothing else."""
    if path.is_symlink():
        raise BadInput(f"{path} is a symbolic link; name the folder itself, it will be replaced as a whole")
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file; a dump is a folder, name another place")
    base = next(p for p in (path.absolute().parent, *path.absolute().parent.parents) if p.exists())
    if not base.is_dir():
        raise BadInput(f"{path}: {base.name} is a file; a dump is a folder, name another place")
    if not os.access(base, os.W_OK | os.X_OK):
        raise BadInput(f"{base} is not writable; name another folder")
    if not path.exists() or not any(path.iterdir()):
        return
    manifest = read_manifest(path)
    if manifest is None:
        raise BadInput(f"{path} is not empty and no dump of ours ({MANIFEST}); remove it or name another folder")
    listed = {MANIFEST, *(f["path"] for f in manifest["files"])}
    strange = next((f for f in files_of(path) if f not in listed), None)
    if strange is not None:
        raise BadInput(f"{path} holds {strange}, which is not part of its dump; remove it or name another folder")


def files_of(path: Path) -> list[str]:
    """Every file below a folder, with `/`, sorted. Links are listed, not followed."""
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_symlink() or not p.is_dir())


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A dump's manifest; None if the folder has none of this format. Raises BadInput for one that cannot be used."""
    file = path / MANIFEST
    if not file.is_file():
        return None
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not JSON: {error!s:.200}") from None
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    if manifest.get("version") != VERSION:
        raise BadInput(f"{file}: version {manifest.get('version')!r:.40}; this engine reads version {VERSION}")
    files, run, sizes = (manifest.get(k) for k in ("files", "run", "sizes"))
    if not isinstance(run, dict):
        raise BadInput(f"{file}: `run` must be an object")
    for name in ("tokens", "generated"):
        if not isinstance(ids := run.get(name, []), list) or not all(type(t) is int and 0 <= t < 1 << 31 for t in ids):
            raise BadInput(f"{file}: `run` must give {name} as a list of token ids, or not at all")
    if not isinstance(files, list) or not all(isinstance(f, dict) and isinstance(f.get("path"), str) for f in files):
        raise BadInput(f"{file}: `files` must be a list of objects with a path")
    if bad := next((f["path"] for f in files if not STAGE_FILE.fullmatch(f["path"])), None):
        raise BadInput(f"{file}: {bad!r:.80} is no path of a stage file in a dump")
    if not isinstance(sizes, dict) or not all(type(n) is int and 0 < n < 1 << 31 for n in sizes.values()):
        raise BadInput(f"{file}: `sizes` must be whole numbers above 0")
    if missing := [letter for letter in SIZES if letter not in sizes]:
        raise BadInput(f"{file}: `sizes` does not give {', '.join(missing)}")
    return cast(dict[str, Any], manifest)
