"""A folder of arrays in files of any of the kinds that are read one by one: .npy, .safetensors, .pt, ONNX's
tensors, raw with JSON.

So Transformers' model_addition_debugger_context(use_repr=False) leaves them, SGLang a file for each pass and rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import BadInput
from . import npz, onnx_dump, raw, safetensors, torch_pt
from .array import Array, Arrays

# By the suffix. A JSON file is read beside the file that it describes, a manifest for all that it lists.
READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": npz.read,
    ".npz": npz.read,
    ".safetensors": safetensors.read,
    ".pt": torch_pt.read,
    ".pth": torch_pt.read,
    **dict.fromkeys(onnx_dump.SUFFIXES, onnx_dump.read),
    **{suffix: raw.read for suffix in raw.SUFFIXES if suffix != ".bin"},
}
DEBUGGER_TEXT = "*debug_tree_FULL_TENSORS.json"
MAX_FILES = 1 << 17


def recognises(path: Path) -> bool:
    return path.is_dir()


def read(path: Path) -> Arrays:
    """The arrays of every file below the folder, by their path and, where a file holds several, their name in it."""
    if (path / raw.LIST).is_file():
        return raw.read(path / raw.LIST)
    files = sorted(f for f in path.rglob("*") if f.is_file() or f.is_symlink())
    if len(files) > MAX_FILES:
        raise BadInput(f"{path}: {len(files)} files; a dump has fewer than {MAX_FILES}")
    found: list[Array] = []
    rest: list[str] = []
    for file in files:
        reader = READERS.get(file.suffix)
        if file.suffix == ".bin":
            reader = torch_pt.read if torch_pt.recognises(file) else raw.read if raw.sidecar(file) else None
        inside = file.relative_to(path)
        if reader is None:
            if file.suffix != ".json":
                rest.append(inside.as_posix())
            continue
        held, stem = reader(file), inside.with_suffix("").as_posix()
        if reader is onnx_dump.read:  # a file has the name of its tensor, but not whole
            found += [replace(a, name=(inside.parent / a.name.lstrip("/")).as_posix()) for a in held.arrays]
            continue
        alone = len(held.arrays) == 1 and (file.suffix in (".npy", ".safetensors") or reader is raw.read)
        named = (
            replace(a, name=stem if alone or a.name == file.stem else f"{stem}/{a.name}", where=f"{file}")
            for a in held.arrays
        )
        found += named
        rest += [f"{stem}/{name}" for name in held.no_arrays]
    if not found:
        if any(path.glob(DEBUGGER_TEXT)):
            raise BadInput(f"{path}: its values are only printed, not saved; run the debugger with use_repr=False")
        raise BadInput(
            f"{path}: holds no stage files and no array; {', '.join(sorted(READERS))} are read, raw .bin with JSON"
        )
    return Arrays(path, tuple(found), no_arrays=tuple(rest))
