"""Raw values without a header, and JSON that says what they are: `x.f32` with `x.json` beside it, or one list for a
folder."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from ...engine.files.mapped import map_file, read_head
from ...engine.files.strict_json import parse
from ...errors import BadInput
from .array import BYTES, Array, Arrays, view

SUFFIXES = {".f32": "F32", ".f16": "F16", ".bf16": "BF16", ".f64": "F64", ".raw": "", ".bin": ""}
LIST = "manifest.json"
MAX_JSON = 1 << 26
SPELLED = {
    f"{word}{size}": f"{kind}{size}"
    for word, kind in (("float", "F"), ("int", "I"), ("uint", "U"))
    for size in (16, 32, 64)
}
SPELLED |= {"bfloat16": "BF16", "float": "F32", "half": "F16", "double": "F64"}


def recognises(path: Path) -> bool:
    """A manifest, or a file of values."""
    return path.is_file() and (path.suffix == ".json" or path.suffix in SUFFIXES)


def sidecar(path: Path) -> Path | None:
    """The JSON beside a file of values."""
    return next((p for p in (path.with_suffix(".json"), Path(f"{path}.json")) if p.is_file()), None)


def read(path: Path) -> Arrays:
    """The arrays of a manifest, or the one of a file and its sidecar. Raises BadInput that says what JSON would do."""
    if path.suffix == ".json":
        return Arrays(path, tuple(_listed(path)))
    beside = sidecar(path)
    if beside is None:
        raise BadInput(
            f'{path}: raw values without a word on their shape; write {path.stem}.json beside it: {{"shape": [5, 896], '
            f'"dtype": "F32"}}, or one {LIST}: [{{"name", "shape", "dtype", "file", "offset"}}, ...]'
        )
    return Arrays(path, (_array(_json(beside), path, str(beside), path.stem),))


def _json(path: Path) -> Any:
    return parse(read_head(path, MAX_JSON), str(path))


def _listed(path: Path) -> Iterator[Array]:
    """A manifest is a list of objects, or an object that has one under `tensors`. Files lie in its own folder."""
    told = _json(path)
    entries = told.get("tensors") if isinstance(told, dict) else told
    if not isinstance(entries, list) or not entries:
        raise BadInput(f"{path}: a manifest is a list of objects with name, shape, dtype, file and offset")
    for i, entry in enumerate(entries):
        where = f"{path}: entry {i}"
        name, file = (entry.get(k) if isinstance(entry, dict) else None for k in ("name", "file"))
        if not isinstance(name, str) or not isinstance(file, str):
            raise BadInput(f"{where}: needs a name and a file, both text")
        target = path.parent / file
        if not _below(target, path.parent):
            raise BadInput(f"{where}: file {file!r:.80} is not below the manifest's folder")
        yield _array(entry, target, where, name)


def _below(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, a byte that no name has
        return False


def _array(told: Any, path: Path, where: str, name: str) -> Array:
    shape, spelled, offset = (
        (told.get("shape"), told.get("dtype", SUFFIXES.get(path.suffix)), told.get("offset", 0))
        if isinstance(told, dict)
        else (None, None, None)
    )
    kind = SPELLED.get(str(spelled).removeprefix("torch.").lower(), str(spelled).upper())
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise BadInput(f"{where}: shape {shape!r:.80} must be up to 8 whole numbers")
    if kind not in BYTES:
        raise BadInput(f"{where}: dtype {spelled!r:.40} is not known; {', '.join(BYTES)} are")
    if type(offset) is not int or not 0 <= offset < 1 << 48:
        raise BadInput(f"{where}: offset {offset!r:.40} is no number of bytes")
    data, size = map_file(path), prod(shape) * BYTES[kind]
    listed = isinstance(told, dict) and "offset" in told
    held = data[offset : offset + size] if listed else data
    return Array(name, f"{path}: {name:.80}", kind, view(held, kind, tuple(shape), f"{path}: {name:.80}"))
