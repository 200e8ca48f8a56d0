"""Sources: what a dump may lie in, one file each, and a row here. Whatever it is, what comes out is a Dump.

A source of another tool is read as arrays by their names (array.py); what the names mean, which rows are one prompt's
and how shards go together is the same for all of them (assemble.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...engine.files.mapped import read_head
from ...errors import BadInput
from .. import aprt
from ..dump import Dump
from ..stages import Stage
from . import aprt_folder, folder, npz, onnx_dump, raw, safetensors, torch_pt
from .array import Arrays
from .assemble import Asked, Assembly, assembled

Reader = Callable[[Path], Arrays]
READERS: tuple[tuple[Callable[[Path], bool], Reader], ...] = (
    (safetensors.recognises, safetensors.read),
    (npz.recognises, npz.read),
    (torch_pt.recognises, torch_pt.read),
    (onnx_dump.recognises, onnx_dump.read),
    (raw.recognises, raw.read),
    (folder.recognises, folder.read),
)
AS_IT_IS = Asked()
NOTES = 10  # on one dump


def reader_of(path: Path) -> Reader | None:
    """What reads a source of another tool; None for a dump folder of stage files, and for what is no source."""
    if aprt_folder.recognises(path) or is_stage_file(path):
        return None
    return next((read for recognises, read in READERS if recognises(path)), None)


def foreign_reader(path: Path) -> Reader:
    """What reads a source of another tool. Raises BadInput that says what it is instead."""
    if (reader := reader_of(path)) is not None:
        return reader
    _check_is_folder(path)
    raise BadInput(f"{path}: is a dump folder already; verify and diff read it as it is")


def is_stage_file(path: Path) -> bool:
    """One APRT file by itself."""
    return path.is_file() and read_head(path, len(aprt.MAGIC)) == aprt.MAGIC


def open_dump(
    path: str | os.PathLike[str],
    sizes: Mapping[str, int] | None = None,
    *,
    layers: int | None = None,
    stages: Mapping[str, Stage] | None = None,
    incomplete: bool = False,
    asked: Asked = AS_IT_IS,
) -> Dump:
    """Opens a dump, whatever it lies in: headers, names and shapes are checked, no values are read.

    sizes, layers: the model's sizes by shape letter and how many layers it has, for what has no manifest of ours: a
    source of another tool can not be read without. stages: the model's (stages.of_pieces), where they are known.
    incomplete: whether files that a manifest lists may be missing.
    asked: which prompt of a batch, and what else a user says of another tool's source. Raises BadInput.
    """
    path = Path(path)
    reader = reader_of(path)
    if reader is None:
        _check_is_folder(path)
        if asked != AS_IT_IS:
            raise BadInput(
                f"{path}: a dump folder of one prompt says itself what it holds; --map, --row, --passes and "
                "--tokens are for the arrays of other tools"
            )
        return aprt_folder.open_folder(path, sizes, incomplete)
    source = reader(path)
    if sizes is None:
        raise BadInput(f"{path}: the sizes of the model are needed to tell heads from columns; give the model with -m")
    dump, how = assembled(source, sizes, layers, asked, stages)
    row, of = how.rows[0].sequence
    others = {r: replace(asked, row=r, tokens=None) for r in range(of) if r != row}
    beside = {r: partial(_prompt, source, sizes, layers, other, stages) for r, other in others.items()}
    return replace(dump, notes=tuple(notes(how)), beside=beside)


def _prompt(
    source: Arrays, sizes: Mapping[str, int], layers: int | None, asked: Asked, stages: Mapping[str, Stage] | None
) -> Dump:
    """Another prompt of a batch. Raises BadInput."""
    return assembled(source, sizes, layers, asked, stages)[0]


def notes(how: Assembly) -> list[str]:
    """What is to be said of how a source was read."""
    said = list(how.odd)
    if how.turned:
        said.append(f"read by their axes: {_few(how.turned)}")
    if how.places.spare:
        said.append(f"not needed, {len(how.places.spare)} arrays: {_few([a.name for a in how.places.spare])}")
    return said


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NOTES} more" if len(names) > NOTES else ""
    return ", ".join(f'"{n}"' for n in names[:NOTES]) + more


def _check_is_folder(path: Path) -> None:
    if path.is_dir():
        return
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if is_stage_file(path):
        raise BadInput(f"{path}: one stage of a dump; give the dump's folder")
    head = read_head(path, 4096)
    if b"ggml_debug:" in head or b"cb_eval:" in head:
        raise BadInput(
            f"{path}: llama.cpp's eval-callback text has 4 decimals and 6 values of a row, which is not enough for any "
            "stage; make the dump with engine dump-llamacpp"
        )
    raise BadInput(
        f"{path}: not a dump that is known here: a folder, .safetensors, .npz, .npy, .pt, .tensorproto, or raw "
        "values with JSON"
    )
