"""Hostile dumps, stage files, arrays of other tools and maps of their names: healthy ones with some things changed.

Digests, counts and positions are mostly made right again, so that what is wrong is the values, or how they fit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np

from qwenref.trace.stages import NAMES as STAGES
from qwenref.trace.stages import by_name
from qwenref.trace.store import phase_name

from .hostile_models import seeds
from .judged import run
from .mutations import NAMES, WHOLE, in_bytes, in_json, in_values, json_file, noise, odd, some, spelled

TOKENS = "3,200,17,9,5"


@dataclass(frozen=True)
class Stagefile:
    """One file of a dump. layer: of the path; said: of the header."""

    stage: str
    layer: int | None
    phase: int
    values: np.ndarray
    positions: tuple[int, ...]
    capture: dict[str, str]
    said: int | None

    @property
    def path(self) -> str:
        folders = [phase_name(self.phase)] * bool(self.phase) + [f"layer-{self.layer}"] * (self.layer is not None)
        return "/".join([*folders, f"{self.stage}.bin"])

    def packed(self, count: int | None = None) -> bytes:
        said = 0xFFFFFFFF if self.said is None else self.said
        values = self.values.astype("<f4")
        return (
            struct.pack("<4sII", b"APRT", said & 0xFFFFFFFF, values.size if count is None else count) + values.tobytes()
        )


@cache
def healthy_dump() -> tuple[Path, dict[str, Any], tuple[Stagefile, ...]]:
    """The folder, its manifest and its files: two models' worth of prompt, and a decode step."""
    folder = seeds() / "dump"
    flags = ("--save-tensor", "all", "--save-tensor-dir", str(folder), "--decode-steps", "1", "--tokens", TOKENS)
    done = run(["trace", str(seeds() / "m.gguf"), "--backend", "reference", *flags])
    assert done.status == 0, done
    manifest = json.loads((folder / "manifest.json").read_text())
    files = []
    for f in manifest["files"]:
        values = np.frombuffer((folder / f["path"]).read_bytes(), "<f4", offset=12).reshape(f["shape"])
        first, _, last = f["positions"].partition("..")
        positions = tuple(range(int(first), int(last) if last else int(first) + 1))
        phase = 0 if f["phase"] == "prompt" else 1
        files.append(Stagefile(f["stage"], f["layer"], phase, values, positions, f["capture"], f["layer"]))
    return folder, manifest, tuple(files)


def written(folder: Path, files: Iterable[Stagefile], lies: Mapping[str, bytes] = MappingProxyType({})) -> list[Any]:
    """Writes stage files; what a manifest has to say of them. lies: bytes of some, by path, whatever they should be."""
    folder.mkdir()
    listed = []
    for f in files:
        raw = lies.get(f.path, f.packed())
        path = folder / f.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        listed.append(
            {
                "path": f.path,
                "stage": f.stage,
                "layer": f.layer,
                "phase": phase_name(f.phase),
                "shape": list(f.values.shape),
                "positions": ",".join(map(str, f.positions)),
                "capture": f.capture,
                "sha256": sha256(raw).hexdigest(),
            }
        )
    return listed


def written_dump(folder: Path, files: Iterable[Stagefile], *, bare: bool = False, **run: Any) -> Path:
    """A dump of these files. bare: without a manifest; run: what its run says other than the healthy dump's."""
    listed, manifest = written(folder, files), healthy_dump()[1]
    if not bare:
        whole = manifest | {"run": manifest["run"] | run, "files": listed}
        (folder / "manifest.json").write_text(json.dumps(whole))
    return folder


def hostile_dump(r: Random, folder: Path) -> Path:
    """Writes a dump, with a manifest or without."""
    _, manifest, first = healthy_dump()
    files, said, bare = list(first), json.loads(json.dumps({k: manifest[k] for k in manifest if k != "files"})), False
    lies: dict[str, bytes] = {}
    broken = False

    def one() -> None:
        if not files:
            return
        n = r.randrange(len(files))
        f = files[n]
        which = r.randrange(10)
        if which < 4:
            files[n] = replace(f, values=in_values(r, f.values))
        elif which == 4:
            del files[n]
        elif which == 5:
            files[n] = resized(r, f)
        elif which == 6:
            files[n] = replace(f, positions=moved(r, f.positions))
        elif which == 7:
            files[n] = replace(f, capture={**f.capture, r.choice((*f.capture, *NAMES)): r.choice((*NAMES, "after"))})
        elif which == 8:
            files[n] = replace(
                f, layer=r.choice((None, 0, 1, 7)), said=r.choice((None, 0, 1)), phase=r.choice((0, 1, 2, 9999))
            )
        else:
            files[n] = replace(f, stage=r.choice((*STAGES, "x", "x\x7fy", "\u202ex", "y" * 150)))

    def few() -> None:
        kept = r.choice((1, 2, 3, 8))
        names = [r.choice(STAGES) for _ in range(kept)]
        files[:] = [f for f in files if f.stage in names]

    def all_of() -> None:
        name, seed = r.choice(STAGES), r.getrandbits(32)
        files[:] = [replace(f, values=in_values(Random(seed), f.values)) if f.stage == name else f for f in files]

    def shorter() -> None:
        files[:] = [resized(Random(5), f) for f in files]

    def without() -> None:
        nonlocal bare
        bare = True

    def manifest_() -> None:
        nonlocal said, broken
        if r.random() < 0.5:
            said["run"] = in_json(r, said.get("run", {}), ("tokens", "generated", "engine", "absent", "model"))
        elif r.random() < 0.3:
            said["sizes"] = in_json(r, said.get("sizes", {}))
        else:
            broken = True

    def bytes_() -> None:
        if files:
            f = r.choice(files)
            lies[f.path] = r.choice((in_bytes(r, f.packed()), f.packed(r.choice(WHOLE) & 0xFFFFFFFF), b"", b"APRT"))

    some(r, (one, one, one, one, few, all_of, shorter, without, manifest_, manifest_, bytes_))
    listed = written(folder, files, lies)
    if bare:
        return folder
    whole = said | {"files": listed}
    (folder / "manifest.json").write_bytes(json_file(r, whole, ("absent", "new")) if broken else spelled(whole, r))
    if r.random() < 0.05:
        (folder / "layer-0").mkdir(exist_ok=True)
        (folder / "layer-0" / "link.bin").symlink_to(r.choice(("/etc/passwd", "nowhere", ".", "attn_norm.bin")))
    return folder


def resized(r: Random, f: Stagefile) -> Stagefile:
    """Whole, with another number of positions or keys, or with other sizes; zeros where it grows."""
    shape = list(f.values.shape)
    letters = by_name(f.stage).letters[: len(shape)] if f.stage in STAGES else ()
    for n, letter in enumerate(letters):
        if letter in "TS" or r.random() < 0.1:
            shape[n] = max(0, shape[n] + r.choice((-3, -1, 1, 2))) if r.random() < 0.8 else shape[n]
    values = np.zeros(shape, np.float32)
    both = tuple(slice(0, min(a, b)) for a, b in zip(shape, f.values.shape, strict=True))
    values[both] = f.values[both]
    T = shape[letters.index("T")] if "T" in letters else 1
    return replace(
        f, values=values, positions=tuple(range(T) if not f.positions else range(f.positions[0], f.positions[0] + T))
    )


def moved(r: Random, positions: tuple[int, ...]) -> tuple[int, ...]:
    by = r.choice((1, -1, 100, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40))
    return r.choice((tuple(p + by for p in positions), positions[::-1], positions[:1] * len(positions), ()))


def hostile_stagefile(r: Random, path: Path) -> tuple[Path, Path]:
    """Writes one stage file, by itself; and the healthy one."""
    folder, _, files = healthy_dump()
    f = r.choice(files)
    good = folder / f.path
    f = replace(f, values=in_values(r, f.values)) if r.random() < 0.6 else resized(r, f)
    path = path / r.choice((f"{f.stage}.bin", f"{f.stage}.bin", "x.bin", "\x7f.bin", "lm_head.bin", "a\nFORGED.bin"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(in_bytes(r, f.packed()) if r.random() < 0.3 else f.packed())
    return path, good


# -- arrays of other tools --------------------------------------------------------------------------------------------

DESCR = (
    "'<f4'",
    "'<f4'",
    "'<f8'",
    "'>f4'",
    "'<f2'",
    "'<f16'",
    "'<i8'",
    "'|O'",
    "'|b1'",
    "'<U5'",
    "'<c8'",
    "'|V4'",
    "'M8'",
    "[('a', '<f4')]",
    "('<f4', (2,))",
    "'<f4,<f4'",
    "'f4' * 9",
    "None",
    "7",
    "''",
    "'\\x00'",
    "{}",
    "'<f4",
    "'" + "f" * 9000 + "'",
)
SHAPES = (
    "({},)",
    "()",
    "(-1,)",
    "(True,)",
    "(1.5,)",
    "(1, 2, 3, 4, 5, 6, 7, 8, 9)",
    "[5, 32]",
    "5",
    "(5, 'a')",
    "(10**30,)",
    "(4294967296, 4294967296)",
    "(0, 32)",
    "(" * 300,
    "(1,)*9**9",
    "None",
    "(5L, 32L)",
    "(\u0661,)",
    "(1,,)",
)


def npy(r: Random, values: np.ndarray) -> bytes:
    """A .npy file that says of itself what it should, or not."""
    fortran, data = r.choice(("False", "False", "False", "True", "0", "None", "'a'")), values.tobytes()
    descr, shape = f"'{values.dtype.str}'", str(values.shape)
    which = r.randrange(8)
    if which == 0:
        descr = r.choice(DESCR)
    elif which == 1:
        shape = r.choice(SHAPES)
    elif which == 2:
        shape = str(tuple(r.choice((n, r.choice(WHOLE))) for n in values.shape))
    elif which == 3:
        data = r.choice((data[:-1], data + b"x", b"", data[:8]))
    head = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    if which == 4:
        head = r.choice(
            (
                "",
                "{}",
                "[]",
                "1",
                head[:-4],
                head * 2,
                "{" * 500,
                "x" * 20_000,
                "__import__('os')",
                head + "\0",
                "{'descr': '<f4'}",
                f"{{**{head}}}",
                head.replace("descr", "\u202edescr"),
                "-" * 9000 + "1",
            )
        )
    raw = head.encode()
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    version = r.choice((b"\1\0", b"\2\0", b"\3\0", b"\0\0", b"\xff\xff")) if which == 5 else b"\1\0"
    size = r.choice(WHOLE) & 0xFFFF if which == 6 else len(raw) & 0xFFFF
    length = struct.pack("<H", size) if version == b"\1\0" else struct.pack("<I", size)
    whole = b"\x93NUMPY" + version + length + raw + data
    return in_bytes(r, whole) if which == 7 else whole


FILE_NAMES = (
    "x",
    "layer-0/x",
    "attn_norm.0",
    "attn_norm.99999999999999",
    "layer-7/attn_norm",
    "lm_head.3",
    "q_proj",
    "\x7f",
    "\u202ea",
    "a\nFORGED",
    "layer-\u0660/attn_norm",
    "{layer}",
    "ATTN_NORM",
)
PATTERNS = (
    "{layer}",
    "*",
    "**",
    "{layer}{layer}",
    "*{layer}*{layer}*",
    "layer-{layer}/{stage}",
    "{stage}",
    "(?P<layer>x)",
    "[",
    "(a+)+$",
    "*a" * 30,
    "\\",
    "(?P<stage>x)",
    "{layer",
    "x" * 3000,
    "layer-{layer}/x",
    "*x*",
    "{layer}*" * 9,
)


def hostile_arrays(r: Random, folder: Path) -> tuple[Path, list[str]]:
    """Writes a folder of .npy or safetensors files; and flags of engine import that go with it."""
    _, _, files = healthy_dump()
    kept = [f for f in files if f.phase == 0 and (r.random() < 0.4 or f.stage == "attn_norm")]
    form = r.choice(("npy", "npy", "npy", "npy", "safetensors"))
    folder.mkdir()
    flags: list[str] = []
    wrong = r.randrange(len(kept))
    for n, f in enumerate(kept):
        name = f"{f.stage}" if f.layer is None else f"layer-{f.layer}/{f.stage}"
        values = f.values.astype(r.choice((np.float32, np.float32, np.float64, np.float16)))
        if n == wrong or r.random() < 0.1:
            name = r.choice((name, name, name, *FILE_NAMES))
            values = arranged_otherwise(r, f, values)
            raw = npy(r, values) if form == "npy" else one_tensor(r, values)
        else:
            raw = plain_npy(values) if form == "npy" else one_tensor(None, values)
        path = folder / f"{name}.{form}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    if r.random() < 0.05:
        (folder / "z.npz").write_bytes(b"PK\x03\x04" + noise(r, 50))
        (folder / "z.npy").write_bytes(b"PK\x03\x04" + noise(r, 50))
    if r.random() < 0.4:
        told: Any = {}
        for _ in range(r.choice((1, 2, 4))):
            what = r.choice((*STAGES, "q_proj", "k_proj", "v_proj"))
            entry: Any = {
                "stage": what,
                "axes": r.choice(("T D", "D T", "N S T", "T", "", "T T", "X")),
                "scale": r.choice((1, 0.5, -1)),
            }
            told[r.choice((*PATTERNS, *FILE_NAMES, "layer-{layer}/attn_norm"))] = r.choice((what, entry, odd(r)))
        told = in_json(r, told) if r.random() < 0.3 else told
        path = folder.with_name("map.json")
        path.write_bytes(json_file(r, told) if r.random() < 0.3 else spelled(told, r))
        flags = ["--map", str(path)]
    if r.random() < 0.3:
        flags += ["--tokens", r.choice((TOKENS, "", "1", "-1", "9" * 12, "1,,2", "\x7f", "@nowhere", "271", "99999"))]
    return folder, flags


def arranged_otherwise(r: Random, f: Stagefile, values: np.ndarray) -> np.ndarray:
    which = r.randrange(8)
    if which == 0:
        return in_values(r, values.astype(np.float32))
    if which == 1:
        return np.ascontiguousarray(np.moveaxis(values, r.randrange(values.ndim), r.randrange(values.ndim)))
    if which == 2:
        return values[None] if r.random() < 0.5 else values[..., None]
    if which == 3:
        return resized(r, f).values
    if which == 4:
        return values.reshape(-1)
    if which == 5:
        return np.zeros(r.choice(((), (0,), (1,), (5, 0), (3, 3), (1,) * 20)), values.dtype)
    return values


def plain_npy(values: np.ndarray) -> bytes:
    head = f"{{'descr': '{values.dtype.str}', 'fortran_order': False, 'shape': {values.shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + values.tobytes()


KINDS = {"f4": "F32", "f2": "F16", "f8": "F64"}


def one_tensor(r: Random | None, values: np.ndarray) -> bytes:
    """A safetensors file of one tensor."""
    said: Any = {
        "x": {"dtype": KINDS[values.dtype.str[1:]], "shape": list(values.shape), "data_offsets": [0, values.nbytes]}
    }
    if r is not None and r.random() < 0.6:
        said = in_json(r, said)
    head = spelled(said)
    raw = struct.pack("<Q", len(head)) + head + values.tobytes()
    return in_bytes(r, raw) if r is not None and r.random() < 0.3 else raw
