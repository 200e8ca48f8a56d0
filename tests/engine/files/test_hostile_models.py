"""Damaged model files, at random: any byte may lie; the answer is a model or one BadInput, no other exception."""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenref.engine.bind import bind
from qwenref.engine.config_keys import GGUF
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput

from ...gguf_builder import ARR, BOOL, F32, F64, I8, I32, I64, KEYS, STR, U8, U32, U64, Gguf, array
from ...models import model

SMALL = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}
QUICK = settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

MORE_OF_APR = ("model_config", "format", "sharding", "d_model", "rope_scaling", "is_causal", "quantization_config",
               "source_metadata", "layer_types", "sliding_window", "use_sliding_window", "tied_embeddings")  # fmt: skip

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
        {"general.name": 1 << 70, "general.x": -1, "general.y": 1e300, "general.z": [1]},
        1e308,
        1e-310,
        -0.0,
        (1 << 31) - 1,
        {"rope_type": "dynamic", "factor": 1e308},
        [[[[[[0]]]]]],
        "x" * 9000,
    ]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in ("m.gguf", "m.apr", "m"):
        convert(model("F16", **SMALL), folder / name)
    return folder


def open_all(path: Path, *to: Path) -> None:
    """Everything that a command would read of a model, and conversions. A message is one line, and no one warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            m = open_checkpoint(path)
            bind(m.config, m.tensors)
            v = m.vocabulary()
            if v is not None:
                Tokenizer.from_vocabulary(v, m.config.vocab_size)
        except BadInput as error:
            one_line(error)
            return
        for destination in to:
            try:
                convert(m, destination)
            except BadInput as error:
                one_line(error)


def one_line(error: BadInput) -> None:
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
    # What a tokenizer's own files say in other words is looked at in test_tokenizer.py.
    to = [tmp_path / name for name in ("to.gguf", "to.apr", "to")] if file.endswith("config.json") else []
    try:
        open_all(folder, *to)
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
        data.draw(st.sampled_from([*sorted(content), *MORE_OF_APR])),
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
    open_all(path, tmp_path / "to.gguf", tmp_path / "to")


# A key's value: its type, and a number in or out of any range.
NUMBER = st.one_of(
    st.tuples(st.just(U8), st.integers(0, 255)),
    st.tuples(st.sampled_from([U32, U64]), st.sampled_from([0, 1, 2, 4, 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])),
    st.tuples(st.sampled_from([I8, I32, I64]), st.integers(-2, 2)),
    st.tuples(st.just(U64), st.sampled_from([1 << 63, (1 << 64) - 1])),
    st.tuples(st.sampled_from([F32, F64]), st.sampled_from([0.0, -0.0, 1.0, 1e-38, 3e38, float("nan"), float("inf")])),
    st.tuples(st.just(F64), st.sampled_from([1e300, 1e-300, -1e300, 5e-324])),
    st.tuples(st.just(BOOL), st.integers(0, 1)),
)
ARRAY = st.lists(st.integers(0, 3), max_size=3).flatmap(
    lambda values: st.sampled_from([U8, I32, U32, F32, BOOL]).map(
        lambda kind: (ARR, array(kind, [v % 2 if kind == BOOL else v for v in values]))
    )
)
TEXT = st.sampled_from(["", "qwen2", "none", "yarn", "x" * 3000, "\0", "adapter"]).map(lambda text: (STR, text))
TEXTS = st.sampled_from([[], ["qwen2"], ["a"] * 3]).map(lambda texts: (ARR, array(STR, texts)))


@settings(QUICK, max_examples=400)
@given(data=st.data())
def test_values_of_ggufs_keys(tmp_path: Path, data: st.DataObject) -> None:
    """Any key about the model, known, new or of a split, with a value of any type."""
    known = [key for key in KEYS if not key.startswith("tokenizer.")]
    more = [f"qwen2.{name}" for name in sorted({*GGUF.known(), "new", "attention.new"})]
    other = ["general.type", "general.name", "general.alignment", "general.quantization_version", "adapter.type"]
    split = ["split.no", "split.count", "split.tensors.count"]
    g = Gguf().drop(*(key for key in KEYS if key.startswith("tokenizer.")))
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.one_of(*map(st.sampled_from, (known, more, other, split))))
        g = g.put(key, *data.draw(st.one_of(NUMBER, ARRAY, TEXT, TEXTS)))
    path = tmp_path / "m.gguf"
    path.write_bytes(g.build())
    open_all(path, tmp_path / "to.gguf", tmp_path / "to.apr")
