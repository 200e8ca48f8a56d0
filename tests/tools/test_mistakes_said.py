"""docs/mistakes.md: what is typed there, and that it is answered with the very line of the page; and what goes wrong
where no word is: disks that are full, pipes that close."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shlex
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.files.convert import convert
from qwenref.tools.main import COMMANDS, main

from ..models import model

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
ROW = re.compile(r"^\| `engine (.*?)` \| `+ ?(.*?) ?`+ \|$", re.M)
ROWS = ROW.findall(PAGE.read_text("utf-8"))
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 988097824\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whole and in parts, packed, and what a download leaves in place of one; texts in several encodings."""
    at = tmp_path_factory.mktemp("said")
    for name in ("m.gguf", "other.gguf"):
        convert(model("Q8_0"), at / name)
    convert(model("F32"), at / "hf")
    convert(model("Q8_0", layers=3, hidden=32, mlp=64), at / "small.gguf")
    for name, of in (("dump", "m"), ("theirs", "small")):
        words = ["--backend", "reference", "--save-tensor", "all", "--save-tensor-dir", str(at / name)]
        assert main(["trace", str(at / f"{of}.gguf"), "--tokens", "3,4,5", *words]) == 0
    whole, weights = (at / "m.gguf").read_bytes(), (at / "hf" / "model.safetensors").read_bytes()
    made = {
        "m.gguf.gz": gzip.compress(whole, mtime=0), "m.gguf.xz": lzma.compress(whole),
        "m.gguf.bz2": bz2.compress(whole),
        "half.gguf": whole[: len(whole) // 2], "head.gguf": whole[:100], "lfs.gguf": LFS.encode(),
        "page.gguf": b"<!DOCTYPE html>\n<html><title>Sign in</title></html>\n", "error.gguf": b'{"error":"gone"}',
        "missing.gguf": b"Entry not found", "text.txt": b"the low low and the lower\n" * 9, "empty.txt": b"",
        "blank.txt": b"\n\n  \n", "latin1.txt": "Zürich".encode("latin-1"), "utf16.txt": "low".encode("utf-16"),
        "w.pt": b"PK\x03\x04" + bytes(99), "chat.json": b'{"role":"user"}', "broken.json": b"{",
    }  # fmt: skip
    for name, data in made.items():
        (at / name).write_bytes(data)
    with zipfile.ZipFile(at / "m.zip", "w") as packed, tarfile.open(at / "m.tar", "w") as tar:
        packed.write(at / "m.gguf", "m.gguf")
        tar.add(at / "m.gguf", "m.gguf")
    for name in ("hf-half", "hf-lfs", "hf-config", "hf-words", "hf-shard"):
        shutil.copytree(at / "hf", at / name)
    (at / "hf-half" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (at / "hf-lfs" / "model.safetensors").write_text(LFS)
    (at / "hf-config" / "config.json").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (at / "hf-words" / name).unlink()
    names = [n for n in json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]) if n != "__metadata__"]
    shards = {n: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(names)}
    (at / "hf-shard" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (at / "hf-shard" / "model.safetensors").rename(at / "hf-shard" / "model-00001-of-00002.safetensors")
    (at / "dangling.gguf").symlink_to("nowhere.gguf")
    (at / "loop").symlink_to("loop")
    os.mkfifo(at / "pipe")
    (at / "folder").mkdir()
    np.savez(at / "arrays.npz", foo=np.zeros(3, np.float32))
    return at


@pytest.fixture
def standing(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """There, with an empty stdin; and nothing is written."""

    def tree() -> set[tuple[str, int, int]]:
        return {(str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in [place, *place.rglob("*")]}

    before = tree()
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    yield place
    assert tree() == before


@pytest.mark.parametrize(("typed", "said"), [pytest.param(*row, id=row[0][:60]) for row in ROWS])
def test_the_page_says_what_is_said(typed: str, said: str, standing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the letter; with nothing on stdout, and status 2."""
    try:
        status = main(shlex.split(typed))
    except SystemExit as done:  # argparse's
        assert isinstance(done.code, int)
        status = done.code
    assert (status, *capsys.readouterr()) == (2, "", f"{said}\n")


def test_the_page_has_mistakes_of_every_command() -> None:
    assert len(ROWS) > 100 and len({typed for typed, _ in ROWS}) == len(ROWS)
    assert {typed.split(" ")[0] for typed, _ in ROWS} >= set(COMMANDS) - {"dump-hf", "dump-llamacpp"}, (
        "by `make oracle`"
    )
