"""The GGUF reader on good files, held against gguf-py: what its writer wrote, and a real model that its reader read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenref.engine.bind import bind
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.gguf_header import read_header
from qwenref.engine.files.mapped import map_file
from qwenref.quant.ggml import NAMES, size_of

from ...gguf_builder import ARR, BOOL, I32, KEYS, STR, TENSORS, TOKENS, U32, Gguf, array

GOOD = Gguf()


def written(path: Path, file: Gguf) -> Path:
    path.write_bytes(file.build())
    return path


@pytest.mark.parametrize(
    "file", [GOOD, replace(GOOD, version=2), replace(GOOD.put("general.alignment", U32, 64), alignment=64)]
)
def test_versions_and_alignment(tmp_path: Path, file: Gguf) -> None:
    c = open_checkpoint(written(tmp_path / "any.name", file))
    assert c.container == f"GGUF v{file.version}" and c.notes == () and c.files == (c.path,)
    assert [(n, t.shape, t.data.tobytes()) for n, t in c.tensors.items()] == [
        (t.name, t.dims[::-1], t.data) for t in TENSORS
    ]
    assert not any(t.data.flags.writeable or t.data.flags.owndata for t in c.tensors.values())
    bind(c.config, c.tensors)


def test_config_and_vocabulary(tmp_path: Path) -> None:
    c = open_checkpoint(written(tmp_path / "m.gguf", GOOD))
    config = c.config
    assert (config.hidden_size, config.head_dim, config.vocab_size, config.intermediate_size) == (16, 4, 8, 24)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 64)
    assert config.rms_norm_eps == float(np.float32(1e-6)) and not config.tie_word_embeddings
    v = c.vocabulary()
    assert v is not None
    assert (v.tokens, v.merges, v.types) == (TOKENS, ["a b"], [1, 1, 1, 1, 1, 3, 3, 5])
    assert (v.bos_id, v.eos_ids, v.pad_id, v.prefix, v.suffix, v.pre) == (5, (6, 5), 5, (), (), "qwen2")
    assert v.chat_template == "{{ messages }}"


def test_tied_head(tmp_path: Path) -> None:
    c = open_checkpoint(written(tmp_path / "m.gguf", GOOD.drop("output.weight")))
    w = bind(c.config, c.tensors)
    assert c.config.tie_word_embeddings and w.lm_head is w.embed


def test_ends_of_an_answer(tmp_path: Path) -> None:
    """The file's own eos and eot, and Qwen's two by name whatever their type; test_vocabularies has llama.cpp's."""

    def ends(file: Gguf) -> tuple[int, ...]:
        v = open_checkpoint(written(tmp_path / "m.gguf", file)).vocabulary()
        assert v is not None
        return v.eos_ids

    plain = GOOD.put("tokenizer.ggml.token_type", ARR, array(I32, [1] * 8))
    assert ends(plain) == (6, 5)
    assert ends(plain.put("tokenizer.ggml.eot_token_id", U32, 2)) == (6, 2, 5)
    assert ends(GOOD.drop("tokenizer.ggml.eos_token_id")) == (5, 6)
    for none in (U32, 2**32 - 1), (I32, -1):
        assert ends(GOOD.put("tokenizer.ggml.eos_token_id", *none)) == (5, 6)


def test_no_tokenizer(tmp_path: Path) -> None:
    file = GOOD.drop(*(k for k in KEYS if k.startswith("tokenizer")))
    assert open_checkpoint(written(tmp_path / "m.gguf", file)).vocabulary() is None
    assert (
        open_checkpoint(written(tmp_path / "m.gguf", file.put("tokenizer.ggml.model", STR, "no_vocab"))).vocabulary()
        is None
    )


def test_harmless_keys_are_accepted(tmp_path: Path) -> None:
    file = GOOD.put("qwen2.rope.scaling.type", STR, "none").put("qwen2.attention.sliding_window", U32, 64)
    file = file.put("qwen2.attention.causal", BOOL, 1).put("qwen2.rope.dimension_count", U32, 4)
    assert open_checkpoint(written(tmp_path / "m.gguf", file)).notes == ()


def test_types_are_ggufs() -> None:
    """All of gguf-py's numbers, names and sizes, but Q8_1's: gguf-py still has its size of 2023 (ggml-common.h: 36)."""
    theirs = {int(t): (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    assert {n: (name, *size_of(name)) for n, name in NAMES.items() if n in theirs and n != 9} == {
        n: t for n, t in theirs.items() if n != 9
    }


ADD: dict[str, tuple[Callable[[gguf.GGUFWriter], Callable[[str, Any], None]], st.SearchStrategy[Any]]] = {
    "u8": (lambda w: w.add_uint8, st.integers(0, 2**8 - 1)),
    "i8": (lambda w: w.add_int8, st.integers(-(2**7), 2**7 - 1)),
    "u16": (lambda w: w.add_uint16, st.integers(0, 2**16 - 1)),
    "i16": (lambda w: w.add_int16, st.integers(-(2**15), 2**15 - 1)),
    "u32": (lambda w: w.add_uint32, st.integers(0, 2**32 - 1)),
    "i32": (lambda w: w.add_int32, st.integers(-(2**31), 2**31 - 1)),
    "u64": (lambda w: w.add_uint64, st.integers(0, 2**64 - 1)),
    "i64": (lambda w: w.add_int64, st.integers(-(2**63), 2**63 - 1)),
    "f32": (lambda w: w.add_float32, st.floats(width=32, allow_nan=False)),
    "f64": (lambda w: w.add_float64, st.floats(allow_nan=False)),
    "bool": (lambda w: w.add_bool, st.booleans()),
    "str": (lambda w: w.add_string, st.text(st.characters(codec="utf-8"), min_size=1)),
    "[str]": (lambda w: w.add_array, st.lists(st.text(st.characters(codec="utf-8")), min_size=1)),
    "[i32]": (lambda w: w.add_array, st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1)),
    "[f32]": (lambda w: w.add_array, st.lists(st.floats(width=32, allow_nan=False), min_size=1)),
    "[bool]": (lambda w: w.add_array, st.lists(st.booleans(), min_size=1)),
}
PAIR = st.sampled_from(sorted(ADD)).flatmap(lambda kind: st.tuples(st.just(kind), ADD[kind][1]))


@given(
    values=st.lists(PAIR, max_size=12), shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4)
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_gguf_py_writes(tmp_path: Path, values: list[tuple[str, Any]], shapes: list[list[int]]) -> None:
    """Every value, type and tensor comes back as it was given to gguf-py's writer."""
    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    for i, (kind, value) in enumerate(values):
        ADD[kind][0](writer)(f"key.{i}", value)
    arrays = {f"t{i}": np.random.default_rng(i).standard_normal(shape).astype("f4") for i, shape in enumerate(shapes)}
    for name, x in arrays.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = map_file(path)
    header = read_header(path, file.data)
    assert header.metadata["general.architecture"] == "qwen2"
    for i, (kind, value) in enumerate(values):
        assert header.metadata.kind(f"key.{i}") == kind
        got = header.metadata[f"key.{i}"]
        assert (got if kind in ("str", "[str]") or not kind.startswith("[") else got.tolist()) == value
    assert [t.name for t in header.tensors] == list(arrays)
    for t, x in zip(header.tensors, arrays.values(), strict=True):
        assert t.dims == x.shape[::-1]
        begin = header.data_at + t.offset
        assert file[begin : begin + x.nbytes].tobytes() == x.tobytes()


@pytest.fixture(scope="module")
def theirs(model_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(model_path)  # takes seconds


@pytest.mark.model
def test_real_model_as_gguf_py_reads_it(model_path: Path, theirs: gguf.GGUFReader) -> None:
    c = open_checkpoint(model_path)
    bind(c.config, c.tensors)
    fields = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(c.metadata) == list(fields)
    for name, f in fields.items():
        ours = c.metadata[name]
        assert (ours.tolist() if isinstance(ours, np.ndarray) else ours) == f.contents(), name
    assert list(c.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        ours = c.tensors[t.name]
        assert (ours.format, list(ours.shape)) == (t.tensor_type.name, t.shape.tolist()[::-1]), t.name
        assert np.array_equal(ours.data, t.data.reshape(-1).view(np.uint8)), t.name


@pytest.mark.model
def test_real_model_has_its_vocabulary(model_path: Path) -> None:
    v = open_checkpoint(model_path).vocabulary()
    assert v is not None and (len(v.tokens), len(v.merges)) == (151936, 151387)
