"""Hostile dumps of other tools: one file of arrays, folders of them, raw values with JSON; healthy ones with some
things changed. Headers and sizes are mostly made right again, so that what is wrong is what they say, or how it fits.
"""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np

from .hostile_dumps import FILE_NAMES, TOKENS, healthy_dump, npy, plain_npy, resized
from .mutations import NAMES, WHOLE, in_bytes, in_json, in_values, json_file, noise, spelled

Arrays = dict[str, np.ndarray]
IDS = np.array([int(t) for t in TOKENS.split(",")], np.int64)
FACTS = ("tokens", "positions", "attention_mask", "seq_lens", "cu_seqlens", "rank1/tokens", "phase-1/tokens")
FOREIGN = (
    "model.layers.0.self_attn.rotary_emb/0",
    "model.layers.1.self_attn.rotary_emb/0",
    "model.layers.0.self_attn.qkv_proj",
    "model.layers.1.input_layernorm/1",
    "model.layers.0.self_attn.rope/1",
    "blk.0.attn_q",
    "blk.9.attn_output.input",
    "Pass00001/model.norm",
    "Qcur-0",
    "logits",
    "/model/layers.0/mlp/Mul_output_0",
    "model.layers.99999999999999999999.mlp",
)
TYPES = (np.float32, np.float32, np.float32, np.float64, np.float16, np.int32, np.uint32, np.bool_)


def some_arrays(r: Random) -> Arrays:
    """Stages of a healthy prompt by their own names, most often with one to three faults in what they are."""
    found: Arrays = {"tokens": IDS}
    for f in healthy_dump()[2]:
        if f.phase == 0 and (r.random() < 0.3 or f.stage == "attn_norm"):
            found[f.stage if f.layer is None else f"layer-{f.layer}/{f.stage}"] = f.values
    for _ in range(r.choice((0, 0, 1, 1, 2))):
        name = r.choice(list(found))
        kind = r.randrange(7)
        if kind == 0:
            found[r.choice((*FOREIGN, *FILE_NAMES, *NAMES[:12]))] = found.pop(name)
        elif kind == 1:
            found[r.choice((*FOREIGN, f"phase-1/{name}", f"rank1/{name}", f"step_2/{name}"))] = found[name]
        elif kind == 2 and found[name].dtype.kind == "f":
            found[name] = in_values(r, found[name])
        elif kind == 3:
            found[r.choice(FACTS)] = some_fact(r)
        elif kind == 4:
            with np.errstate(all="ignore"):
                found[name] = found[name].astype(r.choice(TYPES))
        elif kind == 5:
            x = np.atleast_1d(found[name])
            found[name] = r.choice((x[None], x[..., None], x.reshape(-1), x[:0], x.T, np.concatenate([x, x]), x[-1:]))
        else:
            f = r.choice([f for f in healthy_dump()[2] if f.phase == 0])
            found[f.stage if f.layer is None else f"layer-{f.layer}/{f.stage}"] = resized(r, f).values
    return found


def some_fact(r: Random) -> np.ndarray:
    shape = r.choice(((5,), (1, 5), (2, 5), (5, 1), (), (0,), (3,), (1, 1, 5)))
    top = r.choice((2, 6, 300, (1 << 31) + 1, 1 << 62))
    x = np.array([r.randrange(-1, top) for _ in range(int(np.prod(shape)))], np.int64).reshape(shape)
    return r.choice((x, x, x.astype(np.float32), x.astype(np.float64) / 2, np.where(x % 2, np.nan, 1.0), np.arange(5)))


def file_name(name: str) -> str:
    """A name that a file can have, and that stays where it is."""
    short = name.replace("\0", "").replace("..", "").strip("/")[:200]
    return short or "x"


# -- what they lie in -------------------------------------------------------------------------------------------------


def npy_folder(r: Random, folder: Path) -> Path:
    found = some_arrays(r)
    wrong = r.choice(list(found))
    for name, x in found.items():
        path = folder / f"{file_name(name)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(r, x) if name == wrong and r.random() < 0.3 else plain_npy(x))
    if r.random() < 0.1:
        (folder / r.choice(("y.npz", "y.pt", "y.json", "y.tensorproto", "y.txt", ".y"))).write_bytes(noise(r, 60))
    if r.random() < 0.05:
        (folder / "link.npy").symlink_to(r.choice(("/etc/passwd", "nowhere", ".", "../arrays", "/dev/zero")))
    return folder


def npz_file(r: Random, folder: Path) -> Path:
    """A zip whose members, directory or packing lie."""
    file, packing = io.BytesIO(), r.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    found = some_arrays(r)
    wrong = r.choice(list(found))
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", packing) as z:  # names stand twice
        for name, x in found.items():
            data = npy(r, x) if name == wrong and r.random() < 0.3 else plain_npy(x)
            ending = r.choice((*[".npy"] * 9, "", ".NPY")) if name == wrong else ".npy"
            z.writestr(zipfile.ZipInfo(f"{name}{ending}".replace("\0", "") or "x"), data, packing)
        if r.random() < 0.1:
            z.writestr(f"{wrong}.npy", b"twice")
        if r.random() < 0.1:  # 64 MiB in 64 KiB
            z.writestr("lm_head.npy", plain_npy(np.zeros(4, np.float32)) + bytes(1 << 26), zipfile.ZIP_DEFLATED)
    data = file.getvalue()
    at = data.rfind(b"PK\1\2")
    kind = r.randrange(8)
    if kind == 0:
        data = in_bytes(r, data)
    elif kind == 1:  # the directory's word on a member: sizes, offset, flags, method
        field, form = r.choice(((20, "<I"), (24, "<I"), (42, "<I"), (8, "<H"), (10, "<H"), (28, "<H")))
        number = struct.pack(form, r.choice(WHOLE) & (1 << 8 * struct.calcsize(form)) - 1)
        data = data[: at + field] + number + data[at + field + len(number) :]
    elif kind == 2:
        data = data[: -r.choice((1, 10, 22, 100))] + r.choice((b"", data[:50]))
    folder.mkdir()
    (folder / "x.npz").write_bytes(data)
    return folder / "x.npz"


def told(r: Random, x: np.ndarray, file: str | None = None, at: int = 0) -> dict[str, Any]:
    """What JSON says of raw values, in one of the spellings."""
    said: dict[str, Any] = {"shape": list(x.shape), "dtype": r.choice((x.dtype.name, f"torch.{x.dtype.name}"))}
    return said if file is None else {**said, "file": file, "offset": at}


def raw_folder(r: Random, folder: Path) -> Path:
    """Raw values, and JSON beside each."""
    found = some_arrays(r)
    wrong = r.choice(list(found))
    for name, x in found.items():
        path = folder / f"{file_name(name)}{r.choice(('.raw', '.bin', '.f32' if x.dtype == np.float32 else '.raw'))}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = x.tobytes()
        path.write_bytes(data if name != wrong else r.choice((*[data] * 9, data[:-1], data + b"x", b"")))
        said = told(r, x)
        beside = r.choice((path.with_suffix(".json"), Path(f"{path}.json")))
        beside.write_bytes(
            json_file(r, said, ("offset", "shape")) if name == wrong and r.random() < 0.6 else spelled(said)
        )
        if name == wrong and r.random() < 0.05:
            beside.unlink()
    return folder


def manifest_folder(r: Random, folder: Path) -> Path:
    """One list of arrays in one file, or in many."""
    folder.mkdir()
    entries: list[Any] = []
    one = r.random() < 0.6
    with (folder / "all.bin").open("wb") as file:
        for name, x in some_arrays(r).items():
            at = file.tell() if one else 0
            target = "all.bin" if one else f"{len(entries)}.raw"
            if one:
                file.write(x.tobytes())
            else:
                (folder / target).write_bytes(x.tobytes())
            entries.append({"name": name, **told(r, x, target, at)})
    if r.random() < 0.15:
        r.choice(entries)["file"] = r.choice(("../m", "/etc/passwd", "nowhere", ".", "link", "manifest.json", *NAMES))
        (folder / "link").symlink_to("/etc/passwd")
    if r.random() < 0.2:
        r.choice(entries)[r.choice(("offset", "shape", "name", "dtype"))] = r.choice(
            (*WHOLE, [], "", None, [1 << 47] * 8)
        )
    whole: Any = r.choice((entries, {"tensors": entries}))
    whole = in_json(r, whole) if r.random() < 0.2 else whole
    (folder / "manifest.json").write_bytes(json_file(r, whole) if r.random() < 0.2 else spelled(whole, r))
    return r.choice((folder, folder / "manifest.json"))


SOURCES: Mapping[str, Callable[[Random, Path], Path]] = MappingProxyType(
    {"npy": npy_folder, "npz": npz_file, "raw": raw_folder, "manifest": manifest_folder}
)


def flags(r: Random) -> list[str]:
    """What a user may say of them."""
    found = []
    for name, values in (
        ("--row", ("0", "0", "1", "-1", "99999999999999999999", "x")),
        ("--passes", ("0", "0..1", "1..0", "5", "", "0..99999999999", "-1", "\x7f")),
        ("--tokens", (TOKENS, TOKENS, "1", "-1", "9" * 30, "", "\u0661")),
    ):
        if r.random() < 0.07:
            found.append(f"{name}={r.choice(values)}")
    return found
