"""GGUF files that are broken or lie. Each ends in one BadInput that names file and fault, soon and in little memory.

Most causes are on record: CVE-2024-21802, -21825, -21836, -23496, -23605 (counts and lengths), CVE-2025-53630,
CVE-2026-27940, -33298 (sizes that wrap), CVE-2026-7482 (a tensor past the end), llama.cpp#27188 (2^63 strings in
43 bytes), #26690 (the type of an array's elements), #26318 (alignment).
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.bind import bind
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.errors import BadInput
from qwenref.tests.gguf_builder import (
    ARR,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    KEYS,
    STR,
    TOKENS,
    U8,
    U16,
    U32,
    U64,
    D,
    Gguf,
    Tensor,
    V,
    array,
    f32,
    text,
)

GOOD = Gguf()
HUGE = 1 << 63


def use(path: Path) -> Checkpoint:
    """Everything that a command does with a model before it computes."""
    c = open_checkpoint(path)
    c.vocabulary()
    try:
        bind(c.config, c.tensors)
    except BadInput as error:  # bind knows no file; every caller names it
        raise BadInput(f"{path}: {error}") from None
    return c


def refused(path: Path, needle: str) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(BadInput) as caught:
            use(path)
        assert time.perf_counter() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message, message
    assert needle in message, message


def one_key(kind: int, raw: bytes, key: str | bytes = "x", length: int | None = None) -> bytes:
    """A file of one key, whose value is these bytes."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(key, length) + struct.pack("<I", kind) + raw


def info(t: Tensor) -> Gguf:
    """The good file with that one in the place of its first tensor."""
    return replace(GOOD, tensors=[t, *GOOD.tensors[1:]])


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARR, 1) * depth + array(U8, [])


def put(name: str, kind: int, value: object) -> Gguf:
    return GOOD.put(name, kind, value)


NAN, INF = float("nan"), float("inf")
Q = "qwen2."
YARN = put(Q + "rope.scaling.type", STR, "yarn").put(Q + "rope.scaling.factor", F32, 4.0)
T = "tokenizer.ggml."
FIRST = GOOD.tensors[0]
LAST = GOOD.tensors[-1]
TWO_WRAP = [Tensor("a", (0x7FFFFFFFFFFFFFC0,), 24), Tensor("b", (0x7FFFFFFFFFFFFFC0,), 24, offset=0x7FFFFFFFFFFFFFC0)]

CASES: dict[str, list[tuple[Gguf | bytes, str]]] = {
    "G01 empty": [(b"", "empty")],
    "G02 magic only": [(b"GGUF", "the version")],
    "G03 wrong magic": [(b"GGUX" + GOOD.build()[4:], "no known model file")],
    "G04 swapped magic": [(replace(GOOD, magic=b"FUGG"), "swapped bytes")],
    "G05 version 0": [(replace(GOOD, version=0), "version 0 is not supported")],
    "G06 version 1": [(replace(GOOD, version=1), "version 1 is not supported")],
    "G07 version to come": [(replace(GOOD, version=4), "version 4"), (replace(GOOD, version=2**32 - 1), "version")],
    "G08 big-endian": [(b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(40), "big-endian")],
    "G10 tensor count": [(replace(GOOD, tensor_count=n), f"{n} tensors") for n in (HUGE, 2**64 - 1)],
    "G11 tensors without data": [
        (b"GGUF" + struct.pack("<IQQ", 3, 2**31, 0), f"{2**31} tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 65536, 0), "a tensor's name"),
    ],
    "G12 key count": [(replace(GOOD, key_count=n), f"{n} keys") for n in (HUGE, 2**64 - 1)],
    "G13 key length": [
        (one_key(U8, b"\1", length=HUGE), "65535 is the limit"),
        (one_key(U8, b"\1", key=b""), "a key is empty"),
        (one_key(U8, b"\1", key=b"k" * 65536), "65535 is the limit"),
        (one_key(U8, b"\1", length=1000), "a key takes 1000 bytes"),
    ],
    "G14 not UTF-8": [
        (one_key(U8, b"\1", key=b"\xff\xfe"), "a key is not UTF-8"),
        (one_key(STR, text(b"\xc3\x28")), "is not UTF-8"),
        (put(T + "tokens", ARR, array(STR, [b"\xff", *TOKENS[1:]])), "string, number 0"),
    ],
    "G15 duplicate key": [(replace(GOOD, keys=[*GOOD.keys, ("qwen2.block_count", U32, 1)]), "duplicate key")],
    "G16 type of a value": [(one_key(n, bytes(8)), f"unknown type {n}") for n in (13, 250, 2**32 - 1)],
    "G17 string length": [
        (one_key(STR, text("abc", HUGE)), "9223372036854775808 bytes"),
        (one_key(STR, text("abc", 4)), "takes 4 bytes, and the file ends after 3"),
        (one_key(STR, text("abc", 2**64 - 1)), "bytes"),
        (one_key(ARR, struct.pack("<IQ", STR, 1) + text("abc", 4)), "the last of 1 strings ends past the end"),
    ],
    "G18 array length": [
        (one_key(ARR, array(k, [], n)), "takes") for n in (HUGE, 2**33, 2**61) for k in (U8, STR, U64)
    ],
    "G19 arrays of arrays": [(one_key(ARR, nested(n)), "array of arrays") for n in (1, 5000)],
    "G20 type of elements": [(one_key(ARR, struct.pack("<IQ", n, 1) + bytes(8)), f"type {n}") for n in (13, 250)],
    "G21 bool of 2": [
        (one_key(BOOL, b"\2"), "a bool of 2"),
        (one_key(ARR, array(BOOL, [0, 1, 2])), "neither 0 nor 1"),
    ],
    "G22 alignment": [
        *((put("general.alignment", U32, n), f"general.alignment is {n};") for n in (0, 1, 4, 13, 24, 2**30, 2**31)),
        (put("general.alignment", I32, 32), "must be a u32"),
        (put("general.alignment", STR, "32"), "must be a u32"),
        (put("general.alignment", U64, 32), "must be a u32"),
        (put("general.alignment", ARR, array(U32, [32])), "must be a u32"),
    ],
    "G23 name of a tensor": [
        (info(replace(FIRST, name="n" * 64)), "63 is the limit"),
        (info(replace(FIRST, name="")), "named ''"),
        (info(replace(FIRST, name="a\0b")), "named 'a\\x00b'"),
        (info(replace(FIRST, name=b"\xff")), "not UTF-8"),
        (info(replace(FIRST, name="token_embd.weight")), "duplicate tensor"),
    ],
    "G24 rank": [(GOOD.tensor("output.weight", rank=n), f"has {n} dimensions") for n in (0, 5, 2**32 - 1)],
    "G25 dimension 0": [(GOOD.tensor("output.weight", dims=(D, 0)), "dimensions (16, 0)")],
    "G26 negative dimension": [(GOOD.tensor("output.weight", dims=(D, n)), "dimensions") for n in (HUGE, 2**64 - 1)],
    "G27 product wraps": [
        (GOOD.tensor("output.weight", dims=dims), "is the download complete?") for dims in ((2**32, 2**32), (2**61, 8))
    ],
    "G28 bytes wrap": [(replace(GOOD, tensors=TWO_WRAP), "is the download complete?")],
    "G29 type of a tensor": [
        (GOOD.tensor("output.weight", type=n), f"of type {n}") for n in (4, 5, 31, 32, 33, 36, 37, 38, 250, 2**32 - 1)
    ],
    "G30 part of a block": [
        (GOOD.tensor("output.weight", type=12, dims=(255, 1)), "not whole Q4_K blocks of 256"),
        (GOOD.tensor("output.weight", type=8, dims=(16, 8)), "not whole Q8_0 blocks of 32"),
    ],
    "G31 offset past the end": [(GOOD.tensor("output_norm.weight", offset=1 << 40), "data section")],
    "G32 one byte past the end": [(GOOD.build()[:-1], "is the download complete?")],
    "G33 offset wraps": [(GOOD.tensor("output_norm.weight", offset=2**64 - 32), "data section")],
    "G34 offset not aligned": [(GOOD.tensor("token_embd.weight", offset=V * D * 4 + 1), "aligned to 32")],
    "G35 overlap": [(GOOD.tensor("token_embd.weight", offset=0), "without gap or overlap")],
    "G36 hole": [(GOOD.tensor("token_embd.weight", offset=V * D * 4 + 32), "without gap or overlap")],
    "G38 shape for its role": [
        (GOOD.tensor("token_embd.weight", dims=(V, D)), "token_embd.weight has shape (16, 8)"),
        (put(Q + "attention.head_count_kv", U32, 4), "attn_k.weight has shape (8, 16)"),
        (GOOD.tensor("blk.0.ffn_up.weight", dims=(24, 16)), "ffn_up.weight has shape (16, 24)"),
    ],
    "G39 missing, unknown": [
        (GOOD.drop("token_embd.weight"), "token_embd.weight is missing"),
        (GOOD.drop("blk.0.attn_q.bias"), "attn_q.bias is missing"),
        (GOOD.drop("output_norm.weight"), "output_norm.weight is missing"),
        (replace(GOOD, tensors=[*GOOD.tensors, f32("blk.0.attn_q_norm.weight", 4)]), "blk.0.attn_q_norm.weight"),
        (replace(GOOD, tensors=[*GOOD.tensors, f32("rope_freqs.weight", 4)]), "rope_freqs.weight"),
    ],
    "G40 architecture": [
        (GOOD.drop("general.architecture"), "architecture None is not supported; qwen2 is"),
        (put("general.architecture", U32, 2), "architecture 2 is not supported"),
        (put("general.architecture", ARR, array(STR, ["qwen2"])), "architecture ['qwen2'] is not supported"),
        (put("general.architecture", STR, "gemma2"), "'gemma2' is not supported; qwen2 is (Qwen2, Qwen2.5"),
    ],
    "G41 layers": [
        (put(Q + "block_count", U32, 0), "num_hidden_layers is 0"),
        (put(Q + "block_count", U32, 2**32 - 1), "num_hidden_layers is 4294967295"),
        (put(Q + "block_count", U32, 2**31 - 1), "blk.1.attn_norm.weight is missing"),
        (put(Q + "block_count", U32, 2), "blk.1.attn_norm.weight is missing"),
        (replace(GOOD, tensors=[*GOOD.tensors, f32("blk.1.attn_norm.weight", D)]), "blk.1.attn_norm.weight"),
    ],
    "G42 heads": [
        (put(Q + "attention.head_count", U32, 0), "head_count is 0"),
        (put(Q + "attention.head_count_kv", U32, 0), "num_key_value_heads is 0"),
        (put(Q + "attention.head_count_kv", U32, 3), "num_key_value_heads is 3, which does not divide 4"),
        (put(Q + "attention.head_count", U32, 5), "head_count is 5, which does not divide 16"),
        (put(Q + "attention.head_count", U32, 16), "head_dim is 1;"),
        (put(Q + "attention.key_length", U32, 3), "head_dim is 3;"),
        (put(Q + "attention.value_length", U32, 8), "value_length is 8"),
    ],
    "G43 eps": [
        (put(Q + "attention.layer_norm_rms_epsilon", F32, x), f"rms_norm_eps is {x}") for x in (0.0, NAN, INF, -1.0)
    ],
    "G44 rope": [
        *((put(Q + "rope.freq_base", F32, x), f"rope_theta is {x}") for x in (0.0, NAN, INF, -1.0)),
        (put(Q + "rope.dimension_count", U32, 3), "rope.dimension_count is 3"),
        (put(Q + "rope.dimension_count", U32, 8), "rope.dimension_count is 8"),
        (put(Q + "rope.scaling.type", STR, "su"), "rope.scaling.type is 'su'"),
        (put(Q + "rope.scaling.type", ARR, array(F32, [1.0])), "rope.scaling.type is array"),
        (put(Q + "rope.scaling.type", STR, "longrope").put(Q + "rope.scaling.factor", F32, 4.0), "no tensor rope_f"),
        (YARN.put(Q + "rope.scaling.yarn_log_multiplier", F32, 0.1), "yarn_log_multiplier is 0.1"),
        (YARN.put(Q + "rope.scaling.yarn_ext_factor", F32, 0.5), "yarn_ext_factor is 0.5"),
        (YARN.put(Q + "rope.scaling.yarn_beta_fast", F32, -1.0), "yarn_beta_fast is -1"),
        (YARN.put(Q + "rope.scaling.yarn_beta_fast", F32, 0.5), "beta_fast 0.5 below beta_slow 1"),
        (YARN.put(Q + "rope.scaling.original_context_length", U64, HUGE), "original_context_length is 9223372036"),
        (YARN.put(Q + "rope.scaling.original_context_length", F32, 4.0), "original_context_length is 4.0"),
        (replace(YARN, tensors=[*YARN.tensors, f32("rope_freqs.weight", 2)]), "rope_freqs.weight too"),
        (replace(GOOD, tensors=[*GOOD.tensors, f32("rope_freqs.weight", 3)]), "a divisor for each of 2 pairs"),
        (replace(GOOD, tensors=[*GOOD.tensors, f32("rope_factors_long.weight", 2)]), "belong together"),
        (put(Q + "rope.freq_base", F64, 1e300), "rope_theta is inf"),
        (put(Q + "rope.freq_base", F64, 1e-300), "rope_theta is 0.0"),
        *((put(Q + "rope.scaling.factor", F32, x), f"rope.scaling.factor is {x:g}") for x in (NAN, INF, -1.0)),
        *((put(Q + "rope.scaling.attn_factor", F32, x), "rope.scaling.attn_factor is") for x in (NAN, INF, -1.0, 0.0)),
        (put(Q + "rope.scaling.factor", U32, 4), "rope.scaling.factor is 4; it must be a float"),
        (put(Q + "rope.scale_linear", F32, -0.25), "rope.scale_linear is -0.25"),
    ],
    "G44 what would change the forward pass": [
        (put(Q + "attention.sliding_window", U32, 63), "sliding_window is 63, and no attention.sliding_window_pattern"),
        (put(Q + "attention.sliding_window", F32, 4.0), "sliding_window is 4.0; it must be an integer"),
        (put(Q + "attention.causal", F32, 0.25), "attention.causal is 0.25; it must be true or false"),
        (
            put(Q + "attention.causal", BOOL, False)
            .put(Q + "attention.sliding_window", U32, 4)
            .put(Q + "attention.sliding_window_pattern", ARR, array(BOOL, [True])),
            "not causal stands beside attention windows",
        ),
        (put(Q + "pooling_type", U32, 7), "pooling_type is 7; gguf-py's PoolingType has"),
        (put(Q + "pooling_type", F32, 1.0), "pooling_type is 1.0"),
        *(
            (put(Q + "attention.sliding_window", U32, 4).put(Q + "attention.sliding_window_pattern", kind, x), word)
            for kind, x, word in (
                (U32, 2, "sliding_window_pattern is 2; it must be true or false"),
                (ARR, array(U32, [1]), "it must be true or false, once for each layer"),
                (ARR, array(BOOL, [True, False]), "2 attention windows for 1 layers"),
            )
        ),
        *(
            (put(Q + name, F32, 0.25), f"{name} is 0.25; that is not supported")
            for name in (
                "attention.scale",
                "attention.temperature_scale",
                "attention.clamp_kqv",
                "attention.max_alibi_bias",
                "attn_logit_softcapping",
                "final_logit_softcapping",
                "logit_scale",
                "residual_scale",
                "embedding_scale",
                "expert_count",
                "use_parallel_residual",
            )
        ),
    ],
    "G45 context": [
        (put(Q + "context_length", U32, 0), "max_position_embeddings is 0"),
        (put(Q + "context_length", U64, HUGE), "max_position_embeddings is 9223372036854775808"),
    ],
    "G46 arrays of the tokenizer": [
        (put(T + "tokens", ARR, array(U32, range(V))), "tokens is of type [u32]; it must be [str]"),
        (put(T + "tokens", STR, "a"), "tokens is of type str"),
        (put(T + "token_type", ARR, array(U8, [1] * V)), "token_type is of type [u8]; it must be [i32]"),
        (put(T + "token_type", ARR, array(I32, [1] * (V - 1))), "7 elements for 8 tokens"),
        (put(T + "token_type", ARR, array(I32, [9] * V)), "types other than"),
        (put(T + "scores", ARR, array(F32, [0.0])), "1 elements for 8 tokens"),
        (put(T + "scores", ARR, array(I32, [0] * V)), "scores is of type [i32]"),
        (put(T + "merges", ARR, array(U8, [0])), "merges is of type [u8]"),
        (put(T + "tokens", ARR, array(STR, [*TOKENS, "more"])), "token_type has 8 elements for 9 tokens"),
        (put(T + "tokens", ARR, array(STR, [])), "token_type has 8 elements for 0 tokens"),
        (put(T + "tokens", ARR, array(STR, TOKENS, 1000)), "string 10 of 1000 lies past the end"),
        (put(T + "model", STR, "bert"), "is 'bert'; only gpt2"),
        *((GOOD.drop(T + name), f"{name} is missing") for name in ("tokens", "merges", "pre")),
        *((put(T + name, ARR, array(STR, [])), f"{name} is of type [str]") for name in ("model", "pre", "token_type")),
        (put(T + "model", ARR, array(U8, [0, 1])), "model is of type [u8]"),
        (put(T + "merges", STR, "a b"), "merges is of type str"),
        (put("tokenizer.chat_template", ARR, array(STR, ["a"])), "chat_template is of type [str]"),
    ],
    "G47 ids": [
        *((put(T + "eos_token_id", U32, n), f"eos_token_id is {n};") for n in (V, 2**32 - 2)),
        (put(T + "eos_token_id", I32, -2), "eos_token_id is -2"),
        (put(T + "bos_token_id", I64, -1 - 2**32), "bos_token_id is -4294967297"),
        (put(T + "bos_token_id", ARR, array(I32, [1])), "bos_token_id is array"),
        (put(T + "padding_token_id", STR, "x"), "padding_token_id is 'x'"),
        (put(T + "eot_token_id", U32, V), "eot_token_id is 8"),
        (put(T + "add_bos_token", BOOL, 1).drop(T + "bos_token_id"), "add_bos_token is true"),
        (put(T + "add_eos_token", BOOL, 1).drop(T + "eos_token_id"), "add_eos_token is true"),
        (put(T + "add_eos_token", U32, 1), "add_eos_token is of type u32"),
    ],
}


@pytest.mark.parametrize(
    ("file", "needle"), [pytest.param(*c, id=f"{name}-{i}") for name, cs in CASES.items() for i, c in enumerate(cs)]
)
def test_refused(tmp_path: Path, file: Gguf | bytes, needle: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file if isinstance(file, bytes) else file.build())
    refused(path, needle)


@pytest.mark.parametrize("key", [k for k in KEYS if k.startswith("qwen2.")])
def test_nothing_is_guessed(tmp_path: Path, key: str) -> None:
    """Each of the model's keys: missing, and of another type."""
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD.drop(key).build())
    refused(path, f"{key} is missing")
    path.write_bytes(GOOD.put(key, STR, "8").build())
    refused(path, f"{key} is '8'; it must be")


def test_g09_cut_at_every_byte(tmp_path: Path) -> None:
    whole = GOOD.build()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    use(path)
    for end in reversed(range(len(whole))):
        os.truncate(path, end)
        with pytest.raises(BadInput) as caught:
            open_checkpoint(path)
        assert str(caught.value).startswith(str(path))


def test_g37_bytes_behind_the_last_tensor(tmp_path: Path) -> None:
    """Accepted with a note; the last tensor's own padding is no garbage."""
    path = tmp_path / "m.gguf"
    padded = replace(GOOD, tail=bytes(-len(GOOD.build()) % 32))
    path.write_bytes(padded.build())
    assert use(path).notes == ()
    path.write_bytes(padded.build() + b"PK\3\4")
    assert use(path).notes == (f"{path}: 4 bytes after the last tensor are not used",)


def test_key_nobody_reads_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD.put("qwen2.something_new", F32, 2.0).build())
    assert use(path).notes == (f"{path}: key qwen2.something_new is not known here and was not used",)
    path.write_bytes(GOOD.put("qwen2.attention.new", F32, 2.0).build())
    refused(path, "key qwen2.attention.new is 2.0; it is not known here and sounds as if it changed the result")


def test_sparse_header_is_not_walked_for_ever(tmp_path: Path) -> None:
    """A hole of 4 GiB reads as 2^29 empty strings."""
    path = tmp_path / "m.gguf"
    path.write_bytes(one_key(ARR, array(STR, [], 1 << 28)))
    os.truncate(path, 4 << 30)
    refused(path, "the longest header that is read (64 MiB)")


def part(number: int, count: int, tensors: slice, **changes: object) -> Gguf:
    split = [("split.no", U16, number), ("split.count", U16, count), ("split.tensors.count", I32, len(GOOD.tensors))]
    keys = [*(GOOD.keys if number == 0 else []), *split]
    return replace(GOOD, keys=keys, tensors=GOOD.tensors[tensors], **changes)


def write_parts(folder: Path, *parts: Gguf) -> list[Path]:
    paths = [folder / f"m-{i:05}-of-{len(parts):05}.gguf" for i in range(1, len(parts) + 1)]
    for path, file in zip(paths, parts, strict=True):
        path.write_bytes(file.build())
    return paths


def test_g49_parts(tmp_path: Path) -> None:
    """Any part opens all, through ../ and links too; the first part may hold no tensor."""
    whole = tmp_path / "m.gguf"
    whole.write_bytes(GOOD.build())
    paths = write_parts(tmp_path, part(0, 3, slice(0, 0)), part(1, 3, slice(0, 7)), part(2, 3, slice(7, None)))
    (tmp_path / "sub").mkdir()
    want = use(whole)
    for path in (*paths, tmp_path / "sub" / ".." / paths[1].name):
        got = use(path)
        assert [p.name for p in got.files] == [p.name for p in paths]
        assert list(got.tensors) == list(want.tensors) and got.config == want.config
        assert all(np.array_equal(got.tensors[n].data, want.tensors[n].data) for n in want.tensors)
    assert want.files == (whole,)


def test_g49_parts_that_do_not_fit(tmp_path: Path) -> None:
    first, second, third = write_parts(tmp_path, *(part(i, 3, slice(5 * i, 5 * i + 5)) for i in range(3)))
    use(first)
    good = second.read_bytes()

    def now(needle: str, at: Path, path: Path = first) -> None:
        with pytest.raises(BadInput) as caught:
            use(path)
        assert str(caught.value).startswith(f"{at}:") and needle in str(caught.value)

    second.unlink()
    now("No such file", second)
    second.write_bytes(third.read_bytes())
    now("split.no is 2", second)
    second.write_bytes(part(1, 4, slice(5, 10)).build())
    now("split.count is 4", second)
    second.write_bytes(part(1, 3, slice(5, 9)).build())
    now("split.tensors.count is 15, but the parts hold 14", first)
    second.write_bytes(part(1, 3, slice(4, 9)).build())
    now("is in another part too", second)
    second.write_bytes(good[:-1])
    now("is the download complete?", second)
    second.write_bytes(b"PK\3\4")
    now("not a GGUF file", second)
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    now("split.count is 3, but by the file's name it is 1", renamed, renamed)
    for name in ("m-00004-of-00003.gguf", "m-00000-of-00003.gguf"):
        (tmp_path / name).write_bytes(good)
        now("is named as part", tmp_path / name, tmp_path / name)
    # No key of a file names a file: text that tries to is a wrong number, nothing more.
    first.write_bytes(GOOD.put("split.count", STR, "../outside-00001-of-00002.gguf").build())
    now("split.count is '../outside", first)


def test_g50_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "a.gguf").symlink_to(tmp_path / "b.gguf")
    (tmp_path / "b.gguf").symlink_to(tmp_path / "a.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "pipe.gguf", "pipe, not a file")
    refused(tmp_path / "a.gguf", "symbolic links")
    refused(tmp_path / "zero.gguf", "device or pipe")
    refused(tmp_path / "folder.gguf", "a folder with no model in it")
    refused(tmp_path / "gone.gguf", "No such file")
    refused(tmp_path / "nul\0.gguf", "null byte")


def test_g50_file_replaced_while_mapped(tmp_path: Path) -> None:
    """The map holds on to the old file. (One that is cut in place is beyond help: SIGBUS, see map_file.)"""
    path, other = tmp_path / "m.gguf", tmp_path / "other"
    path.write_bytes(GOOD.build())
    c = use(path)
    before = {name: t.data.tobytes() for name, t in c.tensors.items()}
    other.write_bytes(b"short")
    other.replace(path)
    assert {name: t.data.tobytes() for name, t in c.tensors.items()} == before


@pytest.mark.parametrize(
    ("head", "needle"),
    [
        (b"PK\3\4" + bytes(60), "pickles can run code"),
        (b"\x80\x02}q\0.", "pickles can run code"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"tjgg" + bytes(60), "from before GGUF"),
        (bytes(64), "no known model file"),
    ],
)
def test_other_files_are_called_by_name(tmp_path: Path, head: bytes, needle: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(head)
    refused(path, needle)
