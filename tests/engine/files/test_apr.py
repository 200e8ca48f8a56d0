"""APR v2: the two golden sizes, both writers' conventions, hostile files A01-A15. Files are made here byte by byte."""

from __future__ import annotations

import json
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.engine.config_keys import APR_ALIASES as ALIASES
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.files.apr import _read_file
from qwenref.engine.files.apr_writer import write_apr
from qwenref.engine.files.convert import convert
from qwenref.engine.files.writing import Planned
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput
from qwenref.quant import aprq4, aprq8
from qwenref.quant.tensor import QTensor, dequantize, quantize

from ...models import logits, model, vocabulary

ROW_MAJOR = 0x0400
CANONICAL = {
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "vocab_size",
    "intermediate_size",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
}  # aprender's AprV2Metadata
Tensor = tuple[str, int, tuple[int, ...], bytes]  # name, dtype, dims as they stand in the file, bytes


def pad(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 64)


def build(
    metadata: Any,
    tensors: list[Tensor],
    *,
    flags: int = ROW_MAJOR,
    footer: bool = True,
    checksum: int | None = None,
    **header: Any,
) -> bytes:
    """An APR v2 file as apr-format describes it. header: fields that are to say something else than the truth."""
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata, separators=(",", ":")).encode()
    index, data = bytearray(), bytearray()
    for name, dtype, dims, raw in tensors:
        said = header.get("entries", {}).get(name, {})
        spelled = said.get("name", name.encode())
        index += struct.pack("<H", said.get("name_len", len(spelled))) + spelled
        index += bytes([said.get("dtype", dtype), said.get("ndim", len(dims))])
        index += struct.pack(f"<{len(dims)}Q", *said.get("dims", dims))
        index += struct.pack("<QQ", said.get("offset", len(data)), said.get("size", len(raw)))
        data += pad(raw)
    meta_size, index_at = len(text), 64 + len(pad(text))
    data_at = index_at + len(index) + -len(index) % 64
    head = struct.pack(
        "<4sBBHIQIQQ",
        header.get("magic", b"APR\0"), 2, 0, flags, header.get("count", len(tensors)), header.get("meta_at", 64),
        header.get("meta_size", meta_size), header.get("index_at", index_at), header.get("data_at", data_at),
    )  # fmt: skip
    crc = zlib.crc32(head + bytes(20)) if checksum is None else checksum
    whole = head + struct.pack("<I", crc) + bytes(20) + pad(text) + pad(bytes(index)) + bytes(data)
    return whole + (struct.pack("<I", zlib.crc32(whole)) if footer else b"")


def metadata_of(m: Checkpoint, **changes: Any) -> dict[str, Any]:
    c = m.config
    said = {
        "model_type": "qwen2", "architecture": "qwen2", "hidden_size": c.hidden_size, "num_layers": c.num_hidden_layers,
        "num_heads": c.num_attention_heads, "num_kv_heads": c.num_key_value_heads, "vocab_size": c.vocab_size,
        "intermediate_size": c.intermediate_size, "max_position_embeddings": c.max_position_embeddings,
        "rope_theta": c.rope_theta, "rope_type": 2, "rms_norm_eps": c.rms_norm_eps, "head_dim": c.head_dim,
    }  # fmt: skip
    return {k: v for k, v in (said | changes).items() if v is not ...}


F32 = 0
CODES = {"F32": 0, "F16": 1, "BF16": 30, "Q4_K": 12, "Q6_K": 14}


def entries(m: Checkpoint) -> list[Tensor]:
    """As aprender's importer writes them."""
    found = [(n, CODES[w.format], w.shape, w.data.tobytes()) for n, w in m.tensors.items()]
    return sorted(found, key=lambda t: t[0].encode())


def save(tmp: Path, raw: bytes, name: str = "model.apr") -> Path:
    path = tmp / name
    path.write_bytes(raw)
    return path


def refused(path: Path, *words: str) -> None:
    started = time.process_time()
    with pytest.raises(BadInput) as error:
        open_checkpoint(path)
    assert time.process_time() - started < 1
    message = str(error.value)
    assert "\n" not in message and len(message) < 400 and str(path) in message
    for word in words:
        assert word in message, message


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.config == b.config
    assert a.tensors.keys() == b.tensors.keys()
    for name, w in a.tensors.items():
        assert (w.format, w.shape) == (b.tensors[name].format, b.tensors[name].shape)
        assert w.data.tobytes() == b.tensors[name].data.tobytes(), name


# The sizes that crates/apr-format/tests/golden_fixtures.rs pins. The bytes of its fixtures could not be had; the model
# and the order of the keys are those of its source.
GOLDEN = {"model_type": "linear_regression", "name": "golden-v2", "license": None, "data_source": None,
          "data_license": None, "version": "0.0.0-golden", "created_at": "1700000000", "total_size": 0,
          "param_count": 8}  # fmt: skip
# 26 optional fields that the writer of before #2254 spelled as null.
NULLS = """description author source original_format quantization sharding chat_template chat_format special_tokens
architecture hf_architecture hf_model_type hidden_size num_layers num_heads num_kv_heads vocab_size intermediate_size
max_position_embeddings rope_theta rope_type rms_norm_eps head_dim num_experts num_experts_per_tok
moe_intermediate_size"""


def test_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    """Whoever looks for the one name that stands twice must not compare each with each."""
    many = [(f"{i:05}", F32, (1,), b"") for i in range(60_000)]
    refused(save(tmp_path, build({}, [*many, many[-1]])), "'59999' is in the index twice")
    refused(save(tmp_path, build({}, many[:1] * 65_537)), "claims 65537 tensors")


def test_a_vocabulary_that_claims_billions_of_rows(tmp_path: Path) -> None:
    """Neither its padding is spelled out, nor a pattern compiled for each token without a merge."""
    m = model()
    tokens = [f"t{i}" for i in range(200_000)]
    said = metadata_of(m, vocab_size=(1 << 31) - 1) | {"tokenizer.vocabulary": [*tokens, "[PAD200000]"]}
    checkpoint = open_checkpoint(save(tmp_path, build(said, entries(m))))
    started = time.process_time()
    v = checkpoint.vocabulary()
    assert time.process_time() - started < 1
    assert v is not None and len(v.tokens) == 200_001 and v.types[-2:] == [3, 5]


@pytest.mark.parametrize(("metadata", "size"), [(GOLDEN, 516), (GOLDEN | dict.fromkeys(NULLS.split()), 1092)])
def test_golden_size(tmp_path: Path, metadata: dict[str, Any], size: int) -> None:
    """aprender's golden_v2_current.apr (516 bytes) and golden_v2.apr (1092): our writer's files have their sizes."""
    values = {"weights": [1, 2, 0.5, -0.5, 4, -2, 0.25, 8], "bias": [0.125]}

    def planned(name: str, v: list[float]) -> Planned:
        return Planned(name, "F32", (len(v),), 4 * len(v), lambda: iter([np.array(v, "<f4").view(np.uint8)]))

    tensors = [planned(name, v) for name, v in values.items()]
    path = tmp_path / "golden.apr"
    with path.open("wb") as file:
        write_apr(file, metadata, tensors, lambda count: None)
    assert path.stat().st_size == size
    found, read, notes, sharded = _read_file(path)
    assert found == metadata and not notes and not sharded
    assert {n: dequantize(w).tolist() for n, w in read.items()} == values
    assert list(read) == ["bias", "weights"]  # sorted by name
    refused(path, "linear_regression", "not supported")
    by_hand = [(n, F32, (len(v),), np.array(v, "<f4").tobytes()) for n, v in sorted(values.items())]
    assert path.read_bytes() == build(metadata, by_hand)


def test_aprenders_importer(tmp_path: Path) -> None:
    m = model("Q4_K", spell="hf", hidden=256, mlp=512, heads=4, kv_heads=2, head_dim=64)
    path = save(tmp_path, build(metadata_of(m, name=None, rope_scaling=None), entries(m)))
    read = open_checkpoint(path)
    same(read, m)
    assert np.array_equal(logits(read), logits(m)) and not read.notes


def test_realizars_converter(tmp_path: Path) -> None:
    """ggml's names and codes, dims [in, out], flag 0x0020, no footer, Hugging Face's keys: the same memory."""
    m = model({"q": "Q5_0", "k": "Q4_0", "v": "Q8_0", "ffn_up": "Q4_1", "ffn_down": "Q5_1"}, tied=True)
    codes = {"F32": 0, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8}
    tensors = sorted((n, codes[w.format], w.shape[::-1], w.data.tobytes()) for n, w in m.tensors.items())
    said = metadata_of(m, num_layers=..., num_heads=..., num_kv_heads=..., head_dim=...) | {
        "num_hidden_layers": m.config.num_hidden_layers,
        "num_attention_heads": m.config.num_attention_heads,
        "num_key_value_heads": m.config.num_key_value_heads,
    }
    read = open_checkpoint(save(tmp_path, build(said, tensors, flags=0x0020, footer=False)))
    assert read.config == m.config and read.tensors.keys() == m.tensors.keys()
    for name, w in m.tensors.items():
        assert read.tensors[name].shape == w.shape and read.tensors[name].data.tobytes() == w.data.tobytes()
    assert np.array_equal(logits(read), logits(m))
    # Until BUG-APR-044: no checksum, no order. Read, and said.
    old = open_checkpoint(save(tmp_path, build(said, tensors[::-1], flags=0x0020, footer=False, checksum=0)))
    assert len(old.notes) == 2 and "checksum" in old.notes[0] and "not sorted" in old.notes[1]
    assert np.array_equal(logits(old), logits(m))


@pytest.mark.parametrize("width", [32, 64, 256])
@pytest.mark.parametrize(
    ("code", "format"),
    [(2, "BF16"), (2, "Q4_0"), (3, "Q4_1"), (6, "Q5_0"), (7, "Q5_1"), (8, "Q8_0"), (8, "APRQ4"), (9, "APRQ8"),
     (128, "APRQ4"), (129, "APRQ8"), (13, "Q5_K"), (12, "Q4_K"), (14, "Q6_K"), (30, "BF16"), (1, "F16")],
)  # fmt: skip
def test_one_code_two_meanings(tmp_path: Path, code: int, format: str, width: int) -> None:
    """1.5: the byte count tells which of the two formats a code stands for."""
    rng = np.random.default_rng(width)
    width = 256 if format.endswith("_K") else width
    values = rng.standard_normal((3, width)).astype(np.float32)
    if format == "APRQ4":
        scales = np.abs(values.reshape(-1, 32)).max(1) / 7
        raw = aprq4_bytes(values.reshape(-1, 32), scales.astype(np.float16))
    elif format == "APRQ8":
        raw = struct.pack("<f", np.abs(values).max() / 127) + rng.integers(-127, 128, values.size, np.int8).tobytes()
    else:
        raw = quantize(values, format).data.tobytes()
    _, tensors, _, _ = _read_file(save(tmp_path, build({}, [("w", code, (3, width), raw)])))
    assert tensors["w"].format == format
    if format == "APRQ8":
        scale = np.frombuffer(raw[:4], "<f4")
        assert np.array_equal(dequantize(tensors["w"]), np.frombuffer(raw[4:], "i1").reshape(3, width) * scale)
        assert aprq8.unpack(tensors["w"].data, width).tobytes() == raw
    else:
        assert tensors["w"].data.tobytes() == raw


def aprq4_bytes(values: np.ndarray, scales: np.ndarray) -> bytes:
    """Straight from the description: value i of a block is nibble i of its 16 bytes, the low one first."""
    raw = b""
    for block, scale in zip(values, scales, strict=True):
        codes = [min(15, max(0, round(float(v) / float(scale)) + 8)) for v in block]
        raw += scale.tobytes() + bytes(lo | hi << 4 for lo, hi in zip(codes[::2], codes[1::2], strict=True))
    return raw


def test_aprq4_by_hand() -> None:
    scale, codes = np.float16(0.5), [(i * 7) % 16 for i in range(32)]
    block = scale.tobytes() + bytes(codes[i] | codes[i + 1] << 4 for i in range(0, 32, 2))
    assert aprq4.decode(np.frombuffer(block, np.uint8)[None]).tolist() == [[(c - 8) * 0.5 for c in codes]]
    for odd in (b"\x00\x7c", b"\x01\x7e", b"\x01\x00", b"\x00\xfc"):  # infinite, NaN, subnormal
        assert not aprq4.decode(np.frombuffer(odd + block[2:], np.uint8)[None]).any()


@given(rows=st.integers(1, 5), width=st.integers(1, 100), seed=st.integers(0, 99))
def test_aprq8_rows(rows: int, width: int, seed: int) -> None:
    """Any row by itself decodes to scale times byte, whatever its width."""
    codes = np.random.default_rng(seed).integers(-127, 128, (rows, width), np.int8)
    raw = np.frombuffer(struct.pack("<f", 0.125) + codes.tobytes(), np.uint8)
    w = QTensor("APRQ8", (rows, width), aprq8.pack(raw, width))
    for i in range(rows):
        assert np.array_equal(dequantize(w, i, i + 1)[0], codes[i] * np.float32(0.125))
    assert aprq8.unpack(w.data, width).tobytes() == raw.tobytes()


@pytest.mark.parametrize(("code", "format"), [(12, "Q4_K"), (14, "Q6_K")])
def test_padded_rows_and_blocks_that_straddle_rows(tmp_path: Path, code: int, format: str) -> None:
    """1.6: rows padded to 256 (aprender since #370), or the whole tensor flat (before), told apart by size."""
    values = np.random.default_rng(0).standard_normal((5, 896)).astype(np.float32)
    by_row = quantize(np.pad(values, [(0, 0), (0, 128)]), format)
    flat = quantize(np.pad(values.reshape(-1), (0, -values.size % 256)), format)
    for q, shape in ((by_row, (5, 1024)), (flat, (-1,))):
        path = save(tmp_path, build({}, [("w", code, (5, 896), q.data.tobytes())]))
        (w,) = _read_file(path)[1].values()
        want = dequantize(q).reshape(shape)
        want = want[:, :896] if len(shape) == 2 else want[: values.size].reshape(5, 896)
        assert np.array_equal(dequantize(w), want) and np.array_equal(dequantize(w, 2, 4), want[2:4])
    assert (
        _read_file(save(tmp_path, build({}, [("w", code, (5, 896), by_row.data.tobytes())])))[1]["w"].format == format
    )


def tiny_file(tmp: Path, **changes: Any) -> Path:
    tensors = [("a", F32, (4,), bytes(16)), ("b", F32, (2, 3), bytes(24)), ("c", 12, (2, 256), bytes(288))]
    return save(
        tmp, build(changes.pop("metadata", {"model_type": "qwen2"}), changes.pop("tensors", tensors), **changes)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"magic": b"APRX"}, ["no APR v2 file"], id="A01"),
        pytest.param({"magic": b"APR1"}, ["whisper.apr"], id="A01-APR1"),
        pytest.param({"magic": b"APRT"}, ["stage file", "engine diff"], id="A01-APRT"),
        pytest.param({"checksum": 7}, ["header checksum 0x00000007", "offset 40"], id="A02"),
        pytest.param({"meta_size": 1 << 20}, ["metadata", "does not lie in the file"], id="A04"),
        pytest.param({"meta_at": 1 << 63}, ["metadata", "does not lie in the file"], id="A04-offset"),
        pytest.param({"meta_at": 8}, ["metadata at 8"], id="A04-in-header"),
        pytest.param({"metadata": b'{"a":"%s"}' % (b"x" * (16 << 20))}, ["bytes of metadata"], id="A04-16MiB"),
        pytest.param({"index_at": 8}, ["tensor index at 8"], id="A05-small"),
        pytest.param({"index_at": 1 << 40}, ["tensor index"], id="A05-past"),
        pytest.param({"data_at": 64}, ["tensor index at 128 to 64"], id="A05-order"),
        pytest.param({"data_at": 1 << 62}, ["tensor index", "does not lie"], id="A05-data"),
        pytest.param({"meta_size": 100}, ["inside the tensor index at 128"], id="A05-inside"),
        pytest.param({"count": (1 << 32) - 1}, ["4294967295 tensors"], id="A06"),
        pytest.param({"count": 5}, ["has 0 dimensions"], id="A06-padding"),
        pytest.param({"entries": {"c": {"name_len": 60000}}}, ["inside the name of entry 2"], id="A07"),
        pytest.param({"entries": {"c": {"name": b"\xff"}}}, ["not UTF-8"], id="A07-utf8"),
        pytest.param({"entries": {"c": {"ndim": 255}}}, ["255 dimensions"], id="A08"),
        pytest.param({"entries": {"c": {"ndim": 0}}}, ["0 dimensions"], id="A08-none"),
        pytest.param({"entries": {"c": {"dims": (1 << 32, 1 << 32)}}}, ["tensor 'c'", "288 bytes are not"], id="A09"),
        pytest.param({"entries": {"c": {"dims": (0, 256)}}}, ["has no values"], id="A09-zero"),
        pytest.param({"entries": {"c": {"size": 325}}}, ["tensor 'c' ends", "past the file"], id="A10"),
        pytest.param({"entries": {"c": {"offset": (1 << 64) - 64}}}, ["tensor 'c' ends"], id="A10-wraps"),
        pytest.param({"entries": {"b": {"offset": 8}}}, ["'b' at data offset 8 overlaps 'a'"], id="A10-overlap"),
        pytest.param({"entries": {"b": {"dims": (2, 4)}}}, ["24 bytes are not what F32 (2, 4) takes"], id="A11"),
        pytest.param({"entries": {"a": {"name": b"z"}}}, ["not sorted"], id="A12"),
        pytest.param({"entries": {"b": {"name": b"a"}}}, ["'a' is in the index twice"], id="A12-twice"),
        pytest.param({"entries": {"a": {"dtype": 77}}}, ["unknown dtype 77"], id="A13"),
        pytest.param({"entries": {"a": {"dtype": 4}}}, ["dtype 4 is I32"], id="A13-integers"),
        pytest.param({"entries": {"a": {"dtype": 6, "dims": (16,)}}}, ["dtype 6 is I8"], id="A13-bytes"),
        pytest.param({"flags": 0x0004}, ["encrypted"], id="A13-encrypted"),
        pytest.param({"flags": 0x0800}, ["column-major", "LAYOUT-002"], id="A13-column"),
        pytest.param({"flags": 0x0010}, ["one shard of several", "shard_count"], id="A13-sharded"),
        pytest.param({"metadata": b"{x"}, ["metadata: not JSON"], id="A14"),
        pytest.param({"metadata": b'{"a":' + b"[" * 50_000}, ["too deep"], id="A14-deep"),
        pytest.param({"metadata": b"[]"}, ["object is needed"], id="A14-list"),
        pytest.param({"metadata": b"\xff"}, ["not UTF-8"], id="A14-utf8"),
    ],
)
def test_hostile(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    refused(tiny_file(tmp_path, **changes), *words)


def test_a01_old_container() -> None:
    """A real file of aprender's v1, from paiml/realizar, models/mnist_784x2.apr (git blob c3125adb)."""
    refused(Path(__file__).parents[2] / "data" / "mnist_784x2.apr", "APR v1", "no language model")


def test_a03_footer(tmp_path: Path) -> None:
    m = model(spell="hf")
    whole = build(metadata_of(m), entries(m))
    assert open_checkpoint(save(tmp_path, whole[:-4])).config == m.config  # absent: accepted
    refused(save(tmp_path, whole[:-1] + bytes([whole[-1] ^ 1])), "footer's checksum")
    damaged = bytearray(whole)
    damaged[-5000] ^= 1
    refused(save(tmp_path, bytes(damaged)), "footer's checksum", "damaged")
    refused(save(tmp_path, whole + bytes(60)), "belong to no tensor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": "4"}, ["num_attention_heads", "'4'"]),
        ({"num_heads": ...}, ["num_attention_heads is missing"]),
        ({"num_kv_heads": None}, ["num_key_value_heads is missing"]),
        ({"rope_theta": ...}, ["rope_theta is missing"]),
        ({"rms_norm_eps": []}, ["rms_norm_eps"]),
        ({"rope_type": 0}, ["rope_type is 0", "split halves"]),
        ({"architecture": "gemma2"}, ["'gemma2' is not supported"]),
        ({"architecture": ..., "model_type": ...}, ["None is not supported"]),
        ({"hidden_dim": 65}, ["one value"]),
        ({"model_config": "{"}, ["model_config", "not JSON"]),
    ],
)
def test_a14_metadata_of_wrong_kinds(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    m = model(spell="hf")
    refused(save(tmp_path, build(metadata_of(m, **changes), entries(m))), *words)


def test_a15_bf16_labelled_f16(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    for written, code, label in (("BF16", 1, "F16"), ("F16", 30, "BF16")):
        raw = quantize(values, written).data.tobytes()
        refused(save(tmp_path, build({}, [("w", code, (64, 64), raw)])), f"labelled {label}", f"those of {written}")
        right = {"BF16": 30, "F16": 1}[written]
        assert _read_file(save(tmp_path, build({}, [("w", right, (64, 64), raw)])))[1]["w"].format == written


@given(cut=st.integers(0, 700))
def test_a_cut_file_never_opens(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    tmp = tmp_path_factory.mktemp("cut")
    whole = tiny_file(tmp).read_bytes()
    if cut in (len(whole), len(whole) - 4):
        return  # whole, and whole without its footer
    with pytest.raises(BadInput):
        _read_file(save(tmp, whole[: min(cut, len(whole) - 1)]))


def test_aliases_nulls_and_a_config_in_text(tmp_path: Path) -> None:
    """1.8: null counts as absent, an alias beside its own name is fine, the last of two equal keys wins."""
    m = model(spell="hf")
    c = m.config
    aliases = {"hidden_size": None, "hidden_dim": c.hidden_size, "n_embd": c.hidden_size, "num_layers": ...,
               "num_heads": ..., "n_layers": c.num_hidden_layers, "n_head": c.num_attention_heads,
               "n_ctx": c.max_position_embeddings,
               "max_position_embeddings": None, "num_experts": None}  # fmt: skip
    same(open_checkpoint(save(tmp_path, build(metadata_of(m, **aliases), entries(m)))), m)
    twice = json.dumps(metadata_of(m)).replace('"hidden_size"', '"hidden_size":7,"hidden_size"').encode()
    same(open_checkpoint(save(tmp_path, build(twice, entries(m)))), m)
    inner = {"model_type": "qwen2", "model_config": json.dumps(metadata_of(m))}
    same(open_checkpoint(save(tmp_path, build(inner, entries(m)))), m)


def test_tied(tmp_path: Path) -> None:
    """2.3: a copy of the embedding as head, said to be tied, is tied; another head is not, whatever is said."""
    m = model(spell="hf", tied=True)
    embed = m.tensors["model.embed_tokens.weight"]
    for said, head, tied in ((True, embed.data, True), (..., embed.data, False), (True, embed.data[::-1], False)):
        tensors = sorted([*entries(m), ("lm_head.weight", F32, embed.shape, head.tobytes())])
        read = open_checkpoint(save(tmp_path, build(metadata_of(m, tied_embeddings=said), tensors)))
        assert read.config.tie_word_embeddings is tied


def test_names_of_old_files(tmp_path: Path) -> None:
    """2.1: Q | K | V in one tensor, and tok_embeddings."""
    m = model(spell="hf")
    tensors = []
    for name, w in m.tensors.items():
        if ".q_proj." in name:
            parts = [m.tensors[name.replace(".q_", f".{p}_")] for p in "qkv"]
            shape = (sum(p.shape[0] for p in parts), *w.shape[1:])
            raw = b"".join(p.data.tobytes() for p in parts)
            tensors.append((name.replace(".q_proj.", ".qkv_proj."), F32, shape, raw))
        elif ".k_proj." not in name and ".v_proj." not in name:
            spelled = "tok_embeddings.weight" if name == "model.embed_tokens.weight" else name
            tensors.append((spelled, F32, w.shape, w.data.tobytes()))
    read = open_checkpoint(save(tmp_path, build(metadata_of(m), sorted(tensors))))
    assert np.array_equal(logits(read), logits(m))


def test_entrenars_checkpoints_are_transposed(tmp_path: Path) -> None:
    m = model(spell="hf")
    tensors = []
    for name, w in m.tensors.items():
        x = dequantize(w)
        x = x.T if x.ndim == 2 and "embed" not in name else x
        tensors.append((name, F32, x.shape, np.ascontiguousarray(x).tobytes()))
    path = save(tmp_path, build(metadata_of(m, format="entrenar-checkpoint"), sorted(tensors)))
    assert np.array_equal(logits(open_checkpoint(path)), logits(m))


@pytest.mark.parametrize("library", ["zstandard", "lz4.block"])
def test_compressed(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library, reason=f"{library} is not installed (pip install 'qwenref[apr]')")
    m = model("F16", spell="hf")
    flag = 2 if library == "zstandard" else 1
    whole = build(metadata_of(m), entries(m), flags=ROW_MAJOR | flag)
    same(open_checkpoint(save(tmp_path, whole)), m)  # the flag alone, as aprender's writer sets it

    def shrink(body: bytes) -> bytes:
        return module.ZstdCompressor().compress(body) if flag == 2 else module.compress(body, store_size=True)

    body = whole[64:-4]
    crc = struct.pack("<I", zlib.crc32(whole[:64] + body))
    same(open_checkpoint(save(tmp_path, whole[:64] + shrink(body + crc))), m)
    refused(save(tmp_path, whole[:64] + shrink(body)[:-20]), "damaged" if flag == 1 else "")
    bomb = build({"a": 1}, [("w", F32, (1 << 20,), bytes(4 << 20))], flags=ROW_MAJOR | flag)
    refused(save(tmp_path, bomb[:64] + shrink(bomb[64:])), "64 times its size")


def test_compressed_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    whole = build({}, [("w", F32, (4,), bytes(16))], flags=ROW_MAJOR | 2)
    refused(save(tmp_path, whole[:64] + b"\x28\xb5\x2f\xfd" + bytes(80)), "pip install 'qwenref[apr]'", "zstandard")


@pytest.mark.parametrize("first", [0, 1])
def test_shards(tmp_path: Path, first: int) -> None:
    """Any shard opens the model; its metadata stands in the first."""
    m = model(spell="hf")
    whole, paths = entries(m), []
    for i in range(3):
        said = (metadata_of(m) if i == 0 else {"model_type": "qwen2"}) | {
            "sharding": {"shard_count": 3, "shard_index": i}
        }
        name = f"model-{i + first:05d}-of-00003.apr"
        paths.append(save(tmp_path, build(said, whole[i::3], flags=ROW_MAJOR | 0x10), name))
    for path in paths:
        read = open_checkpoint(path)
        assert read.files == tuple(paths) and np.array_equal(logits(read), logits(m))
    paths[2].unlink()
    with pytest.raises(BadInput, match=paths[2].name):
        open_checkpoint(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(BadInput, match="in another shard too"):
        open_checkpoint(paths[0])


def test_tokenizer_of_flat_keys(tmp_path: Path) -> None:
    """2.5: both spellings of the model's kind, token types or none, null template."""
    m = model(spell="hf")
    v = vocabulary(m.config.vocab_size)
    said = {"tokenizer.vocabulary": v.tokens, "tokenizer.merges": v.merges, "tokenizer.eos_token_id": v.eos_ids[0],
            "tokenizer.bos_token_id": v.bos_id, "tokenizer.padding_token_id": v.pad_id, "chat_template": None,
            "tokenizer.chat_template": v.chat_template}  # fmt: skip
    for more in ({"tokenizer.model": "gpt2", "tokenizer.token_type": v.types}, {"tokenizer.model_type": "BPE"}):
        read = open_checkpoint(save(tmp_path, build(metadata_of(m) | said | more, entries(m)))).vocabulary()
        assert read is not None
        types = [3 if t == 4 else t for t in v.types] if "tokenizer.token_type" not in more else v.types
        assert read == replace(v, types=types, eos_from=("eos_token_id", "its text"))
        text = "low the <tool_call> 日本<|im_end|>"
        ours, theirs = (Tokenizer.from_vocabulary(x).encode(text, special=True) for x in (read, v))
        assert ours == theirs
    assert open_checkpoint(save(tmp_path, build(metadata_of(m), entries(m)))).vocabulary() is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokenizer.vocabulary": "abc"}, "tokenizer.vocabulary"),
        ({"tokenizer.vocabulary": ["a", 7]}, "tokenizer.vocabulary"),
        ({"tokenizer.vocabulary": ["a"] * 999}, "999 tokens"),
        ({"tokenizer.merges": ["a"]}, "merge 'a'"),
        ({"tokenizer.merges": 3}, "tokenizer.merges"),
        ({"tokenizer.token_type": [1]}, "tokenizer.token_type"),
        ({"tokenizer.eos_token_id": 272}, "tokenizer.eos_token_id 272"),
        ({"tokenizer.bos_token_id": 1.0}, "bos_token_id is 1.0"),
        ({"tokenizer.bos_token_id": [1]}, "bos_token_id is [1]"),
        ({"tokenizer.eos_token_ids": ["x"]}, "eos_token_ids is ['x']"),
        ({"tokenizer.eos_token_ids": [1, 272]}, "tokenizer.eos_token_ids 272"),
        ({"tokenizer.add_bos_token": 1}, "add_bos_token is 1"),
        ({"tokenizer.add_eos_token": True}, "add_eos_token is true"),
        ({"chat_template": ["x"]}, "chat_template is ['x']"),
        ({"tokenizer.model": "llama"}, "'llama'"),
    ],
)
def test_hostile_tokenizer(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    m = model(spell="hf")
    v = vocabulary(m.config.vocab_size)
    said = {"tokenizer.vocabulary": v.tokens, "tokenizer.merges": v.merges} | changes
    path = save(tmp_path, build(metadata_of(m) | said, entries(m)))
    with pytest.raises(BadInput) as error:
        open_checkpoint(path).vocabulary()
    assert word in str(error.value) and str(path) in str(error.value)


def test_what_aprenders_reader_asks_of_a_writer(tmp_path: Path) -> None:
    """Sorted index, both checksums, one flag, alignment, canonical keys only (C-APR-MERGE-RUNNABLE)."""
    convert(model("Q4_K", hidden=256, mlp=256, heads=4, kv_heads=2, head_dim=64), tmp_path / "m.apr")
    raw = (tmp_path / "m.apr").read_bytes()
    magic, major, minor, flags, count, meta_at, meta_size, index_at, data_at, crc = struct.unpack_from(
        "<4sBBHIQIQQI", raw
    )
    assert (magic, major, minor, flags, meta_at) == (b"APR\0", 2, 0, ROW_MAJOR, 64)
    assert crc == zlib.crc32(raw[:40] + raw[44:64]) and raw[44:64] == bytes(20)
    assert int.from_bytes(raw[-4:], "little") == zlib.crc32(raw[:-4])
    assert index_at % 64 == data_at % 64 == (len(raw) - 4) % 64 == 0
    said = json.loads(raw[64 : 64 + meta_size])
    aliases = {alias for name, others in ALIASES.items() for alias in (name, *others)} - CANONICAL
    assert not set(said) & aliases and said["license"] is None and said["rope_type"] == 2
    names, at = [], index_at
    for _ in range(count):
        size = int.from_bytes(raw[at : at + 2], "little")
        names.append(raw[at + 2 : at + 2 + size])
        dims = raw[at + 3 + size]
        offset = int.from_bytes(raw[at + 4 + size + 8 * dims :][:8], "little")
        assert offset % 64 == 0
        at += 4 + size + 8 * dims + 16
    assert names == sorted(names) and b"model.embed_tokens.weight" in names


def test_padded_rows_on_every_backend(tmp_path: Path) -> None:
    """A backend that packs a format's blocks must not mistake a row's padding for the next row."""
    from qwenref.engine.bind import bind
    from qwenref.engine.forward import forward
    from qwenref.engine.kernels import backend
    from qwenref.engine.tap import SILENT

    convert(model("F32"), tmp_path / "m.apr", "q4_k")  # rows of 64 and 96 values in blocks of 256
    m = open_checkpoint(tmp_path / "m.apr")
    assert m.tensors["lm_head.weight"].format == "Q4_K"
    k = backend("cpu")
    cache = k.new_cache(m.config, 16, "f32")
    got = k.to_host(
        forward(np.array([3, 200, 17, 9], np.int32), k.prepare(bind(m.config, m.tensors), "f32"), cache, k, SILENT)
    )
    want = logits(m)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
