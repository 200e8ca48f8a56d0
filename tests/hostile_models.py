"""Hostile model files: a healthy tiny model in each container, taken apart, one to three things changed, put together.

Most of what is changed leaves the rest right: checksums, offsets and lengths are made anew, so that a lie is met where
it is used and not at the first check. The readers have no part in making them.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES

from qwenref.engine.config_keys import APR_ALIASES, APR_OWN, GGUF, HF
from qwenref.engine.files.convert import convert
from qwenref.engine.models.decoder import HEAD
from qwenref.engine.models.heads import KINDS

from .gguf_builder import ARR, BOOL, CODES, F32, F64, I8, I32, I64, STR, U8, U32, U64, Gguf, Tensor, text
from .models import model
from .mutations import (
    NAMES,
    NOT_FINITE,
    REAL,
    WHOLE,
    in_bytes,
    in_json,
    in_text,
    in_values,
    json_file,
    noise,
    not_utf8,
    odd,
    some,
    spelled,
)

SMALL = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}
CONTEXT = 512  # scores of a long prompt would be no file's fault
SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}  # ggml's type: values and bytes of a block


# -- the healthy ones -------------------------------------------------------------------------------------------------


@dataclass
class Array:
    """A GGUF array before it is packed. count: what it says it has, if that is a lie."""

    kind: int
    values: list[Any]
    count: int | None = None

    def packed(self) -> bytes:
        head = struct.pack("<IQ", self.kind, (len(self.values) if self.count is None else self.count) & (1 << 64) - 1)
        if self.kind == STR:
            return head + b"".join(text(v if isinstance(v, bytes) else as_bytes(v)) for v in self.values)
        if self.kind == ARR:
            return head + b"".join(Array(U32, [1]).packed() for _ in self.values)
        return head + b"".join(number(self.kind, v) for v in self.values)


def as_bytes(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


def number(kind: int, value: Any) -> bytes:
    """Of that type, whatever the value is; by its lowest bits where it is too large."""
    code = CODES.get(kind, "I")
    if code in "fd":
        with np.errstate(all="ignore"):
            x = float(value) if isinstance(value, int | float) and abs(value) < 1 << 1000 else 0.0
            return np.array(x, "<f4" if code == "f" else "<f8").tobytes()
    whole = int(value) if isinstance(value, int | bool) else 0
    size = struct.calcsize(code)
    return (whole & (1 << 8 * size) - 1).to_bytes(size, "little")


@cache
def seeds(formats: str = "F32") -> Path:
    """Healthy files of one tiny model: m.gguf, m.apr, m (a folder), by this project's own writers."""
    folder = TemporaryDirectory(prefix="qwenref-fuzz-")
    _kept.append(folder)
    m = model(formats, **SMALL)
    m = replace(m, config=replace(m.config, max_position_embeddings=CONTEXT))
    for name in ("m.gguf", "m.apr", "m"):
        convert(m, Path(folder.name) / name)
    (Path(folder.name) / "m" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return Path(folder.name)


_kept: list[TemporaryDirectory[str]] = []


@cache
def gguf_parts(formats: str) -> tuple[tuple[tuple[str, int, Any], ...], tuple[Tensor, ...]]:
    """Keys (name, type, value; an Array unpacked) and tensors of the healthy GGUF file."""
    raw, at = (seeds(formats) / "m.gguf").read_bytes(), 8
    tensors, keys = [], []

    def take(code: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from("<" + code, raw, at)
        at += struct.calcsize("<" + code)
        return found

    def string() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return raw[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == ARR:
            inner, count = take("I"), take("Q")
            return Array(inner, [value(inner) for _ in range(count)])
        return string() if kind == STR else take(CODES[kind])

    count, pairs = take("Q"), take("Q")
    for _ in range(pairs):
        key = string()
        kind = take("I")
        keys.append((key, kind, value(kind)))
    for _ in range(count):
        name = string()
        dims = tuple(take("Q") for _ in range(take("I")))
        tensors.append((name, dims, take("I"), take("Q")))
    data_at = -(-at // 32) * 32
    found = []
    for name, dims, kind, offset in tensors:
        block, size = SIZES[kind]
        found.append(Tensor(name, dims, kind, raw[data_at + offset :][: prod(dims) // block * size]))
    return tuple(keys), tuple(found)


@cache
def apr_parts(formats: str) -> tuple[str, tuple[tuple[str, int, tuple[int, ...], bytes], ...]]:
    """Metadata as JSON, and (name, dtype, shape, bytes) of the healthy APR file."""
    raw = (seeds(formats) / "m.apr").read_bytes()
    _, _, _, _, count, meta_at, meta_size, at, data_at = struct.unpack_from("<4sBBHIQIQQ", raw)
    entries = []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        at += 2 + length
        dtype, ndim = raw[at : at + 2]
        *shape, offset, size = struct.unpack_from(f"<{ndim + 2}Q", raw, at + 2)
        at += 2 + 8 * (ndim + 2)
        entries.append((name, dtype, tuple(shape), raw[data_at + offset :][:size]))
    return raw[meta_at : meta_at + meta_size].decode(), tuple(entries)


@cache
def folder_parts(formats: str) -> tuple[dict[str, bytes], str, bytes]:
    """The files beside the weights, the weights' header as JSON, and their data."""
    folder = seeds(formats) / "m"
    raw = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    beside = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
    return beside, raw[8:end].decode(), raw[end:]


@cache
def scoring_parts(kind: str) -> tuple[dict[str, bytes], str, bytes]:
    """The same of a folder whose model ends in scores: a row of KINDS."""
    beside, header, data = folder_parts("F32")
    config, first = json.loads(beside["config.json"]), json.loads(header)
    config |= {"architectures": [f"Qwen2{kind}"], "pad_token_id": 3, "id2label": {"0": "bad", "1": "good"}}
    config["tie_word_embeddings"] = False
    sizes = {"C": 2, "D": config["hidden_size"]}
    kept = {name: e for name, e in first.items() if name not in ("__metadata__", HEAD.hf)}
    parts = [(name, e["shape"], data[slice(*e["data_offsets"])]) for name, e in kept.items()]
    for n, t in enumerate(t for t in KINDS[kind].tensors.values() if t is not HEAD):
        shape = t.shape(sizes)
        parts.append((t.hf, [*shape], np.random.default_rng(n).standard_normal(shape).astype("<f4").tobytes()))
    said: dict[str, Any] = {}
    whole = b""
    for name, shape, x in parts:
        said[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(whole), len(whole) + len(x)]}
        whole += x
    return beside | {"config.json": json.dumps(config).encode()}, json.dumps(said), whole


# -- values of weights ------------------------------------------------------------------------------------------------


def in_weights(r: Random, data: bytes, block: int, size: int, plain: str | None) -> bytes:
    """The bytes of a tensor with other values: plain floats of NumPy's type, or blocks of codes and scales."""
    if plain is not None and len(data) % np.dtype(plain).itemsize == 0:
        kind = np.dtype(plain)
        x = in_values(r, np.frombuffer(data, kind).astype(np.float64))
        with np.errstate(all="ignore"):
            return x.astype(kind).tobytes()
    which = r.randrange(3)
    if which == 0:
        return bytes([r.choice((0, 255, 0x7C, 0x7E, 0x80))]) * len(data)
    at = r.randrange(max(1, len(data) // size)) * size
    new = noise(r, size) if which == 1 else b"\x00\x7c" + data[at + 2 : at + size]  # a scale of infinity
    return (data[:at] + new + data[at + size :])[: len(data)]


PLAIN = {0: "<f4", 1: "<f2", "F32": "<f4", "F16": "<f2"}


# -- GGUF -------------------------------------------------------------------------------------------------------------

GGUF_MORE = (
    *(f"qwen2.{name}" for name in sorted(GGUF.known())),
    "qwen2.new",
    "qwen2.attention.new",
    "general.name",
    "general.type",
    "general.alignment",
    "general.license",
    "general.quantization_version",
    "general.file_type",
    "general.tags",
    "general.sampling.temp",
    "adapter.type",
    "split.no",
    "split.count",
    "split.tensors.count",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.huggingface.json",
    "tokenizer.chat_template.tool_use",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.token_type_count",
)


def gguf_value(r: Random) -> tuple[int, Any]:
    """A type and a value, mostly of it."""
    kind = r.choice((U8, I8, U32, I32, U64, I64, F32, F64, BOOL, STR, STR, ARR, ARR, r.randrange(16)))
    if kind == STR:
        return kind, r.choice((*NAMES, "x" * 9000, "{}", "[1]", not_utf8(r)))
    if kind == ARR:
        inner = r.choice((U8, I32, U32, F32, BOOL, STR, STR, U64, F64, ARR, r.randrange(16)))
        values = [r.choice(NAMES if inner == STR else (0, 1, 2, 300)) for _ in range(r.choice((0, 0, 1, 3, 300)))]
        return kind, Array(inner, values, r.choice((None, None, None, r.choice(WHOLE))))
    if kind in (F32, F64):
        return kind, r.choice((*REAL, *NOT_FINITE))
    return kind, r.choice(WHOLE[:-1])


def in_array(r: Random, a: Array) -> Array:
    values = list(a.values)
    at = r.randrange(len(values) + 1)
    which = r.randrange(9)
    if which == 0:
        values = values[:at]
    elif which == 1:
        values = values[:at] + values[at + 1 :]
    elif which == 2:
        values.insert(at, r.choice(NAMES) if a.kind == STR else r.choice(WHOLE[:-1]))
    elif which == 3 and values:
        values[at - 1] = values[0]
    elif which == 4 and values:
        values[at - 1] = not_utf8(r) if a.kind == STR else r.choice((*REAL, *NOT_FINITE))
    elif which == 5:
        return Array(r.choice((U8, I32, U32, F32, STR, BOOL)), values, a.count)
    elif which == 6:
        return replace(a, count=r.choice((0, len(values) + 1, *WHOLE)))
    elif values:
        value = values[at - 1]
        values[at - 1] = in_text(r, value) if isinstance(value, str) else r.choice((0, -1, 7, 1 << 31, 255))
    return replace(a, values=values)


def hostile_gguf(r: Random, path: Path, formats: str = "F32", opens: bool = False) -> Path:
    """Writes a GGUF file, whole or in two parts. opens: only the weights' values are odd."""
    first, second = gguf_parts(formats)
    keys, tensors, g = list(first), list(second), Gguf()

    def key() -> None:
        n = r.randrange(len(keys))
        name, kind, value = keys[n]
        which = r.randrange(6)
        if which == 0:
            keys[n] = (name, *gguf_value(r))
        elif which == 1:
            keys.insert(r.randrange(len(keys) + 1), (r.choice((*GGUF_MORE, *NAMES, name)), *gguf_value(r)))
        elif which == 2:
            del keys[n]
        elif which == 3 and isinstance(value, Array):
            keys[n] = (name, kind, in_array(r, value))
        elif which == 4 and isinstance(value, str):
            keys[n] = (name, kind, in_text(r, value))
        elif isinstance(value, int | float):
            keys[n] = (name, kind, r.choice((*WHOLE[:-1], *REAL, *NOT_FINITE, value + 1, value * 2)))

    def vocabulary() -> None:
        places = [n for n, (name, _, _) in enumerate(keys) if name.startswith("tokenizer.")]
        if not places:
            return
        n = r.choice(places)
        name, kind, value = keys[n]
        keys[n] = (name, kind, in_array(r, value)) if isinstance(value, Array) else (name, *gguf_value(r))

    def tensor() -> None:
        if not tensors:
            return
        n = r.randrange(len(tensors))
        t = tensors[n]
        which = r.randrange(10)
        if which == 0:
            tensors[n] = replace(t, name=r.choice((*NAMES, not_utf8(r), str(t.name).replace("0", "1"), "rope_freqs")))
        elif which == 1:
            del tensors[n]
        elif which == 2:
            tensors.insert(n, replace(t, name=r.choice((t.name, "blk.0.new.weight", "blk.7.attn_q.weight", *NAMES))))
        elif which == 3:
            tensors[n] = replace(t, dims=tuple(r.choice((d, r.choice(WHOLE) & (1 << 64) - 1)) for d in t.dims))
        elif which == 4:
            tensors[n] = replace(
                t, dims=r.choice((t.dims[::-1], (1, *t.dims), (*t.dims, 1), (prod(t.dims),), (), (1,) * 5))
            )
        elif which == 5:
            tensors[n] = replace(t, type=r.randrange(48))
        elif which == 6:
            tensors[n] = replace(t, offset=r.choice((0, 1, 32, 64, *WHOLE)) & (1 << 64) - 1)
        elif which == 7:
            tensors[n] = replace(t, rank=r.choice((0, 1, 3, 4, 5, 255, (1 << 32) - 1)))
        elif which == 8:  # of another size, and whole
            dims = tuple(max(1, d + r.choice((-1, 0, 0, 1, 32))) for d in t.dims)
            tensors[n] = of_type(r, replace(t, dims=dims), t.type)
        else:  # of another format, and whole
            tensors[n] = of_type(r, t, r.choice(list(SIZES)))

    def head() -> None:
        nonlocal g
        change = r.randrange(6)
        if change == 0:
            g = replace(g, tensor_count=r.choice(WHOLE) & (1 << 64) - 1)
        elif change == 1:
            g = replace(g, key_count=r.choice(WHOLE) & (1 << 64) - 1)
        elif change == 2:
            g = replace(g, version=r.choice((0, 1, 2, 4, 1 << 24, 3 << 24)))
        elif change == 3:
            g = replace(g, magic=r.choice((b"GGUF", b"FUGG", b"ggml", b"GGU\0")))
        elif change == 4:
            g = replace(g, alignment=r.choice((8, 64, 1)))
        else:
            g = replace(g, tail=noise(r, r.choice((1, 100))))

    def values() -> None:
        if not tensors:
            return
        n = r.randrange(len(tensors))
        t = tensors[n]
        block, size = SIZES.get(t.type, SIZES[0])
        tensors[n] = replace(t, data=in_weights(r, t.data, block, size, PLAIN.get(t.type)))

    some(r, (values,) if opens else (key, key, vocabulary, tensor, tensor, values, head))
    g = replace(g, keys=[packed_key(*k) for k in keys], tensors=tensors)
    raw = g.build()
    if not opens and r.random() < 0.2:
        raw = in_bytes(r, raw)
    if not opens and r.random() < 0.03:  # in two parts, of which the second is the first's twin
        path = path.with_name("m-00001-of-00002.gguf")
        path.with_name("m-00002-of-00002.gguf").write_bytes(raw)
    path.write_bytes(raw)
    return path


def packed_key(name: str, kind: int, value: Any) -> tuple[bytes, int, bytes]:
    if isinstance(value, Array):
        return as_bytes(name), kind, value.packed()
    if kind == STR:
        return as_bytes(name), kind, text(value if isinstance(value, bytes) else as_bytes(value))
    return as_bytes(name), kind, number(kind, value)


def of_type(r: Random, t: Tensor, kind: int) -> Tensor:
    """With data of the right size for that type, random where it has to grow."""
    block, size = SIZES[kind]
    wanted = prod(t.dims) // block * size
    return replace(t, type=kind, data=(t.data + noise(r, max(0, min(wanted, 1 << 16) - len(t.data))))[:wanted])


# -- APR --------------------------------------------------------------------------------------------------------------

APR_MORE = (
    *sorted(APR_OWN),
    *APR_ALIASES,
    *(a for names in APR_ALIASES.values() for a in names),
    "is_causal",
    "rope_scaling",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "quantization_config",
    "tokenizer.add_bos_token",
    "tokenizer.eos_token_ids",
    "tokenizer.model_type",
    "tokenizer.chat_template",
    "tokenizer.new",
    "new",
    "new.new",
)


def hostile_apr(r: Random, path: Path, formats: str = "F32", opens: bool = False) -> Path:
    """Writes an APR file, compressed at times. opens: only the weights' values are odd."""
    metadata, first = apr_parts(formats)
    flags = r.choice((0x0400, 0x0401, 0x0402) if opens else (0x0400, 0x0400, 0x0400, 0, r.getrandbits(16)))
    said, entries = json.loads(metadata), list(first)
    lies: dict[str, int] = {}

    def json_() -> None:
        nonlocal said
        said = in_json(r, said, APR_MORE)

    def entry() -> None:
        if not entries:
            return
        n = r.randrange(len(entries))
        name, dtype, shape, data = entries[n]
        which = r.randrange(8)
        if which == 0:
            name = r.choice(
                (*NAMES, name.replace("0", "1"), name.replace("q_proj", "qkv_proj"), "tok_embeddings.weight")
            )
        elif which == 1:
            dtype = r.choice((*range(15), 30, 128, 129, 255))
        elif which == 2:
            shape = tuple(r.choice((d, r.choice(WHOLE) & (1 << 64) - 1)) for d in shape)
        elif which == 3:
            shape = r.choice((shape[::-1], (1, *shape), (), (prod(shape),), (1,) * 9))
        elif which == 4:
            data = r.choice((data[:-1], data + b"\0" * 64, data * 2, b""))
        elif which == 5:
            del entries[n]
            return
        else:
            entries.insert(n, entries[n])
            return
        entries[n] = (name, dtype, shape, data)

    def values() -> None:
        if not entries:
            return
        n = r.randrange(len(entries))
        name, dtype, shape, data = entries[n]
        entries[n] = (name, dtype, shape, in_weights(r, data, 1, 4, PLAIN.get(dtype)))

    def head() -> None:
        lies[r.choice(("count", "meta_at", "meta_size", "index_at", "data_at", "checksum", "footer", "major"))] = (
            r.choice(WHOLE) & (1 << 64) - 1
        )

    some(r, (values,) if opens else (json_, json_, entry, values, head))
    raw = built_apr(spelled(said, r), entries, flags, lies)
    if opens:
        path.write_bytes(raw)
        return path
    if r.random() < 0.2:
        raw = in_bytes(r, raw)
        if r.random() < 0.7 and len(raw) > 68:
            raw = checked_apr(raw)
    name = r.choice((path.name, path.name, path.name, "m-00001-of-00002.apr"))
    path = path.with_name(name)
    path.write_bytes(raw)
    return path


def built_apr(
    metadata: bytes, entries: list[tuple[str, int, tuple[int, ...], bytes]], flags: int, lies: dict[str, int]
) -> bytes:
    """The file, sorted and aligned as it must be but for `lies`; flags 1 and 2 compress it."""
    index, data = b"", b""
    for name, dtype, shape, held in sorted(entries, key=lambda e: as_bytes(e[0])):
        raw = as_bytes(name)[:65535]
        index += struct.pack(f"<H{len(raw)}sBB", len(raw), raw, dtype, min(len(shape), 255))
        index += struct.pack(f"<{len(shape)}QQQ", *shape, len(data), len(held))
        data += held + bytes(-len(held) % 64)
    padded = metadata + bytes(-len(metadata) % 64)
    index_at = 64 + len(padded)
    index += bytes(-(index_at + len(index)) % 64)
    told = {
        "count": len(entries),
        "meta_at": 64,
        "meta_size": len(metadata),
        "index_at": index_at,
        "data_at": index_at + len(index),
        "checksum": 0,
        "footer": 0,
        "major": 2,
    } | lies
    head = struct.pack(
        "<4sBBHIQIQQI20s",
        b"APR\0",
        told["major"] & 255,
        0,
        flags & 0xFFFF,
        told["count"] & 0xFFFFFFFF,
        told["meta_at"],
        told["meta_size"] & 0xFFFFFFFF,
        told["index_at"],
        told["data_at"],
        0,
        b"",
    )
    body = padded + index + data
    raw = checked_apr(head + body + bytes(4))
    if "checksum" in lies:
        raw = raw[:40] + struct.pack("<I", lies["checksum"] & 0xFFFFFFFF) + raw[44:]
    raw = raw[:-4] + struct.pack("<I", lies["footer"] & 0xFFFFFFFF) if "footer" in lies else raw
    return raw[:64] + compressed(raw[64:], flags)


def compressed(body: bytes, flags: int) -> bytes:
    """As the flags say, where the library is installed; else as it is."""
    try:
        if flags & 2:
            return import_module("zstandard").compress(body)
        return import_module("lz4.block").compress(body) if flags & 1 else body
    except ImportError:
        return body


def checked_apr(raw: bytes) -> bytes:
    """With the checksums of the header and of the whole set right."""
    raw = raw[:40] + struct.pack("<I", zlib.crc32(raw[:40] + raw[44:64])) + raw[44:-4]
    return raw + struct.pack("<I", zlib.crc32(raw))


# -- safetensors, and the folder round them ---------------------------------------------------------------------------

CONFIG_MORE = (*sorted(HF.known()), "quantization_config", "compression_config", "rope_scaling", "auto_map", "new")
SETTINGS_MORE = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "chat_template",
    "bos_token",
    "eos_token",
    "unk_token",
    "add_bos_token",
    "add_eos_token",
    "split_special_tokens",
    "add_prefix_space",
)
MORE = {
    "config.json": CONFIG_MORE,
    "generation_config.json": ("eos_token_id", "bos_token_id", "pad_token_id", "temperature", "new"),
    "tokenizer_config.json": SETTINGS_MORE,
    "tokenizer.json": ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model", "truncation"),
}


def hostile_folder(r: Random, path: Path, formats: str = "F32", opens: bool = False, scores: str = "") -> Path:
    """Writes a folder of safetensors and what lies beside them. opens: only the weights' values are odd. scores: a row
    of KINDS that the model ends in."""
    path = path.with_suffix("")
    path.mkdir()
    beside, header, data = scoring_parts(scores) if scores else folder_parts(formats)
    files, said, split = dict(beside), json.loads(header), not opens and r.random() < 0.15
    if r.random() < 0.25:
        with_parts(files)
    good, first = dict(files), json.loads(header)
    names = [name for name in first if name != "__metadata__"]

    def json_() -> None:
        name = r.choice([name for name in good if name.endswith(".json")])
        files[name] = json_file(r, json.loads(good[name]), MORE.get(name, NAMES))

    def other() -> None:
        name = r.choice((*files, "special_tokens_map.json", "added_tokens.json", "adapter_config.json"))
        which = r.randrange(4)
        if which == 0:
            files.pop(name, None)
        elif which == 1:
            files[name] = in_bytes(r, files.get(name, b"{}"))
        elif which == 2:
            files[name] = r.choice((b"", b"{}", b"[]", b"null", not_utf8(r), b"\xef\xbb\xbf{}"))
        else:
            files[name] = spelled({r.choice(NAMES): odd(r)}, r)

    def weights() -> None:
        nonlocal split
        name = r.choice(names)
        which, entry = r.randrange(6), first[name]
        shape = entry["shape"]
        if which == 0:
            said[r.choice((*NAMES, name.replace("model.", ""), f"_orig_mod.{name}"))] = said.pop(name, entry)
        elif which == 1:
            said.pop(name, None)
        elif which == 2:
            said[name] = in_json(r, entry)
        elif which == 3:
            said[name] = entry | {"shape": r.choice((shape[::-1], [1, *shape], [prod(shape)]))}
        elif which == 4:
            said["__metadata__"] = odd(r)
        else:
            split = True

    def values() -> None:
        nonlocal data
        entry = first[r.choice(names)]
        begin, end = entry["data_offsets"]
        data = data[:begin] + in_weights(r, data[begin:end], 1, 4, PLAIN[entry["dtype"]]) + data[end:]

    some(r, (values,) if opens else (json_, json_, json_, other, weights, values))
    raw = built_safetensors(spelled(said, r), data)
    if not opens and r.random() < 0.15:
        raw = in_bytes(r, raw)
    files["model.safetensors"] = raw
    if split:
        files |= in_shards(r, files.pop("model.safetensors"), said)
    for name, held in files.items():
        (path / name).write_bytes(held)
    return r.choice((path, path, path / "model.safetensors")) if not split else path


def built_safetensors(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def in_shards(r: Random, raw: bytes, said: dict[str, Any]) -> dict[str, bytes]:
    """The whole in the first of two shards, which is a lie of its own; and the index, or one that lies too."""
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index: Any = {"metadata": {}, "weight_map": {name: names[0] for name in said if name != "__metadata__"}}
    if r.random() < 0.7:
        index = in_json(r, index)
    if r.random() < 0.3 and isinstance(index, dict):
        index["weight_map"] = {"x": r.choice((*NAMES, names[1], "../m.gguf"))}
    return {names[0]: raw, "model.safetensors.index.json": spelled(index, r)}


def with_parts(files: dict[str, bytes]) -> None:
    """vocab.json, merges.txt and added_tokens.json in place of tokenizer.json."""
    said = json.loads(files.pop("tokenizer.json"))
    files["vocab.json"] = json.dumps(said["model"]["vocab"]).encode()
    files["merges.txt"] = "\n".join(["#version: 0.2", *map(str, said["model"]["merges"])]).encode()
    files["added_tokens.json"] = json.dumps({t["content"]: t["id"] for t in said["added_tokens"]}).encode()


CONTAINERS: dict[str, Callable[[Random, Path, str, bool], Path]] = {
    "gguf": hostile_gguf,
    "apr": hostile_apr,
    "folder": hostile_folder,
}


def healthy(r: Random) -> Path:
    """One of the healthy files."""
    return seeds() / r.choice(("m.gguf", "m.apr", "m"))


def unknown(r: Random, path: Path) -> Path:
    """What is no model at all, or looks like one."""
    path = path.with_name(
        r.choice(("m.gguf", "m.apr", "m.safetensors", "m.onnx", "m.bin", "m\nx", "\x1b[2J", "\udcff"))
    )
    head = r.choice(
        (b"", b"GGUF", b"APR\0", b"APRT", b"APRN", b"PK\x03\x04", b"\x80\x04", b"{}", b"\x93NUMPY", b"<html>")
    )
    path.write_bytes(head + noise(r, r.choice((0, 3, 60, 300))))
    return path
