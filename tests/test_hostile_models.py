"""Damaged model files, at random: any byte may lie; the answer is a model or one BadInput, no other exception."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenref.engine.bind import bind
from qwenref.engine.files import open_checkpoint
from qwenref.engine.tokenizer import Tokenizer
from qwenref.quant.errors import BadInput
from qwenref.tools.convert import convert

from .models import model

SMALL = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}
QUICK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

# What stands in JSON where something else should.
ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1.5,
        1 << 40,
        10**400,
        "",
        "7",
        "\ud800",
        [],
        [1],
        [[]],
        {},
        {"a": []},
        float("1e308"),
        "x" * 9000,
    ]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in ("m.gguf", "m.apr", "m"):
        convert(model("F16", **SMALL), folder / name)
    return folder


def open_all(path: Path) -> None:
    """Everything that a command would read of a model. A message is one line."""
    try:
        m = open_checkpoint(path)
        bind(m.config, m.tensors)
        v = m.vocabulary()
        if v is not None:
            Tokenizer.from_vocabulary(v, m.config.vocab_size)
    except BadInput as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000


@QUICK
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["m.gguf", "m.apr", "m/model.safetensors"])
def test_bytes_of_the_header(tmp_path: Path, whole: Path, name: str, changes: list[tuple[float, bytes]]) -> None:
    """Anywhere in the first 6 KiB, where lengths, offsets and counts are; APR's checksums are set right again."""
    raw = bytearray((whole / name).read_bytes())
    for where, new in changes:
        at = int(where * min(6000, len(raw) - 16))
        raw[at : at + len(new)] = new
    if name.endswith(".apr"):
        raw[40:44] = struct.pack("<I", zlib.crc32(raw[:40] + raw[44:64]))
        raw[-4:] = struct.pack("<I", zlib.crc32(raw[:-4]))
    path = tmp_path / Path(name).name
    path.write_bytes(raw)
    (tmp_path / "config.json").write_bytes((whole / "m" / "config.json").read_bytes())
    open_all(path)


FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


@QUICK
@given(data=st.data())
@pytest.mark.parametrize("file", FILES)
def test_values_of_the_folders_json(tmp_path: Path, whole: Path, file: str, data: st.DataObject) -> None:
    """Any value, at any depth, replaced by an odd one."""
    folder = tmp_path / "m"
    folder.mkdir(exist_ok=True)
    for path in (whole / "m").iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    content: Any = json.loads((whole / "m" / file).read_text())
    place, key = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(ODD)
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(content))
    try:
        open_all(folder)
    finally:
        (folder / file).unlink()


@QUICK
@given(data=st.data())
def test_values_of_aprs_json(tmp_path: Path, whole: Path, data: st.DataObject) -> None:
    raw = (whole / "m.apr").read_bytes()
    size, index_at = struct.unpack_from("<I", raw, 20)[0], struct.unpack_from("<Q", raw, 24)[0]
    content: Any = json.loads(raw[64 : 64 + size])
    place, key = (
        content,
        data.draw(st.sampled_from([*sorted(content), "model_config", "format", "sharding", "d_model"])),
    )
    if isinstance(content.get(key), list) and content[key] and data.draw(st.booleans()):
        place, key = content[key], data.draw(st.integers(0, len(content[key]) - 1))
    place[key] = data.draw(ODD)
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 64)
    moved = 64 + len(text) - index_at
    head = bytearray(raw[:64])
    struct.pack_into("<I", head, 20, len(text))
    struct.pack_into("<QQ", head, 24, index_at + moved, struct.unpack_from("<Q", raw, 32)[0] + moved)
    struct.pack_into("<H", head, 6, data.draw(st.sampled_from([0x400, 0x410, 0x20])))
    struct.pack_into("<I", head, 40, zlib.crc32(head[:40] + head[44:64]))
    path = tmp_path / "model-00001-of-00002.apr"
    path.write_bytes(bytes(head) + text + raw[index_at:-4])
    open_all(path)
