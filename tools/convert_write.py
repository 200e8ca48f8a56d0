"""The second half of engine convert: the headers, the file beside its destination, the comparison, the renaming."""

from __future__ import annotations

import ctypes
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..beside import Beside
from ..engine.config import Config
from ..engine.config_keys import APR_ROPE_TYPE, GGUF_KEYS
from ..engine.files import Checkpoint, Vocabulary, open_checkpoint
from ..engine.files.apr_writer import write_apr
from ..engine.files.end_of_generation import stops, told
from ..engine.files.fields import Fields
from ..engine.files.gguf_writer import Pair, write_gguf
from ..engine.files.safetensors_writer import write_safetensors
from ..engine.files.tokenizer_json import last_used, spell
from ..engine.files.writing import Planned
from ..errors import BadInput
from .leftovers import written_down

# llama.cpp's llama_ftype by the format that most weights have; for readers' eyes only.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18,
    "BF16": 32,
}  # fmt: skip
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
STEP = 1 << 24


def write(
    source: Checkpoint,
    v: Vocabulary | None,
    destination: Path,
    kind: str,
    tensors: list[Planned],
    show: Callable[[int], None],
    recoded: str | None,
) -> None:
    """Writes beside the destination, reads back, compares, renames. Nothing is left of what fails.

    show: is told how many bytes are done, of twice the tensors' size. Raises BadInput if the disk is full, or if what
    is read back differs.
    """
    done, crc = 0, {}

    def told(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    def counted(t: Planned) -> Planned:
        """The tensor; what it yields is summed up, to be found again on reading."""

        def chunks() -> Iterator[NDArray[np.uint8]]:
            sum_ = 0
            for chunk in t.chunks():
                sum_ = zlib.crc32(chunk.data, sum_)
                yield chunk
            crc[t.name] = sum_

        return replace(t, chunks=chunks)

    tensors = [counted(t) for t in tensors]
    try:
        with written_down(destination), Beside(destination, folder=kind == "safetensors") as beside:
            if kind == "safetensors":
                write_folder(source, v, beside.path, tensors, told)
            else:
                with beside.path.open("wb") as file:
                    if kind == "gguf":
                        write_gguf(file, gguf_pairs(source, v, tensors, recoded), tensors, told)
                    else:
                        write_apr(file, apr_metadata(source, v, tensors), tensors, told)
            compare(open_checkpoint(beside.path), source.config, v, tensors, crc, told)
            source.check_unchanged()
            beside.move()
    except OSError as error:
        source.check_unchanged()  # a system call that finds no memory behind a cut file fails as if the disk had
        raise BadInput(f"{destination}: cannot be written: {error.strerror or error}") from None


def compare(
    written: Checkpoint, c: Config, v: Vocabulary | None, tensors: list[Planned], crc: Mapping[str, int], told: Any
) -> None:
    """Raises BadInput unless the file, read back, has the same configuration, vocabulary and bytes."""
    if written.config != c:
        raise BadInput(f"{written.path}: read back, the configuration differs: {written.config} is not {c}")
    again = written.vocabulary()
    for field in ("tokens", "merges", "types", "chat_template", "prefix", "suffix", "flags", "eos_ids"):
        a, b = (getattr(x, field, None) for x in (again, v))
        if field == "eos_ids" and again and v:
            a, b = set(again.eos_ids), set(v.eos_ids)
        if field in ("tokens", "types") and again and v:
            a, b = (getattr(x, field)[: last_used(x) + 1] for x in (again, v))
        if a != b:
            raise BadInput(f"{written.path}: read back, the tokenizer's {field} differ")
    if written.tensors.keys() != {t.name for t in tensors}:
        raise BadInput(f"{written.path}: read back, it has other tensors")
    for t in tensors:
        w, sum_ = written.tensors[t.name], 0
        for start in range(0, w.data.size, STEP):
            sum_ = zlib.crc32(w.data[start : start + STEP].data, sum_)
            told(min(STEP, w.data.size - start))
        packed = t.format == "APRQ8"  # laid out anew by its reader
        if (w.format, w.shape) != (t.format, t.shape) or (sum_ != crc[t.name] and not packed):
            raise BadInput(f"{written.path}: read back, tensor {t.name} differs; is the disk sound?")


def padded(v: Vocabulary, rows: int) -> Vocabulary:
    """A token for every row of the embedding; llama.cpp names those that mean nothing [PAD<id>]."""
    more = range(len(v.tokens), rows)
    return replace(v, tokens=v.tokens + [f"[PAD{i}]" for i in more], types=list(v.types) + [5] * len(more))


def most_common_format(tensors: list[Planned]) -> str:
    values: Counter[str] = Counter()
    for t in tensors:
        values[t.format] += prod(t.shape)
    return values.most_common(1)[0][0]


def general(source: Checkpoint) -> dict[str, Any]:
    """What the source says of itself (general.name, general.license, ...), from GGUF or by way of APR."""
    kept = source.metadata.get("source_metadata") if source.container == "APR v2" else source.metadata
    plain = (str, int, float, bool)
    return {
        key: value
        for key, value in (kept.items() if isinstance(kept, Mapping) else ())
        if key.startswith("general.")
        and key
        not in ("general.architecture", "general.alignment", "general.file_type", "general.quantization_version")
        and (isinstance(value, plain) or (isinstance(value, list) and all(isinstance(x, str) for x in value)))
    }


def left_out(source: Checkpoint, kind: str) -> list[str]:
    """A line on what somebody may miss in the new file: fields that nothing here knows, and how to sample."""
    m, a = source.metadata, source.config.architecture
    if source.container == "safetensors":
        if kind == "safetensors":
            return []
        advice = {k: x for k, x in m["generation_config"].items() if not k.endswith(("_token_id", "version"))}
        said = [f"generation_config.json's {k}" for k, x in advice.items() if x]
        said += [f"config.json's {k}" for k, x in m["config"].items() if k not in a.hf_keys.known() and x is not None]
    elif source.container.startswith("GGUF"):
        prefix = f"{a.gguf}."
        strange = [k for k in m if k.startswith(prefix) and k.removeprefix(prefix) not in a.gguf_keys.known()]
        sampling = [k for k in m if k.startswith("general.sampling.") and kind == "safetensors"]
        said = [] if kind == "gguf" else strange + sampling
    else:
        said = []
    names = said[:8] + (["..."] if len(said) > 8 else [])
    return [f"left out, with no place in {kind}: {', '.join(names)}"] if said else []


def gguf_kind(value: Any) -> str:
    """The type that a key of GGUF has for a value of JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return next((kind for kind, most in (("u32", 32), ("u64", 64)) if 0 <= value < 1 << most), "i64")
    if isinstance(value, float):  # f32 is what llama.cpp reads, and what GGUF's own came from
        return "f32" if ctypes.c_float(value).value == value else "f64"
    return {bool: "bool", str: "str", list: "[str]"}[type(value)]


def gguf_pairs(source: Checkpoint, v: Vocabulary | None, tensors: list[Planned], recoded: str | None) -> list[Pair]:
    """The keys of a GGUF file. From GGUF they are the source's own; else as llama.cpp's converter spells them."""
    file_type: Pair = ("general.file_type", "u32", FILE_TYPES.get(most_common_format(tensors), 1))
    if source.container.startswith("GGUF"):
        m: Any = source.metadata
        dropped = ("split.", "general.alignment") + (("general.file_type",) if recoded else ())
        pairs = [(key, m.kind(key), m[key]) for key in m if not key.startswith(dropped)]
        return [*pairs, file_type] if recoded else pairs
    c, name = source.config, source.config.architecture.gguf
    pairs = [("general.architecture", "str", name), ("general.type", "str", "model")]
    pairs += [(k, gguf_kind(x), x) for k, x in general(source).items() if k != "general.type"]
    pairs += [(f"{name}.{key}", "u32" if t is int else "f32", getattr(c, f)) for f, (key, t) in GGUF_KEYS.items()]
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        pairs += [(f"{name}.attention.{key}_length", "u32", c.head_dim) for key in ("key", "value")]
    pairs += [file_type, ("general.quantization_version", "u32", 2)]
    if v is None:
        return pairs
    v = padded(v, c.vocab_size)
    pairs += [
        ("tokenizer.ggml.model", "str", v.model),
        ("tokenizer.ggml.pre", "str", v.pre),
        ("tokenizer.ggml.tokens", "[str]", v.tokens),
        ("tokenizer.ggml.token_type", "[i32]", v.types),
        ("tokenizer.ggml.merges", "[str]", v.merges),
        ("tokenizer.ggml.add_bos_token", "bool", bool(v.prefix)),
        ("tokenizer.ggml.add_eos_token", "bool", bool(v.suffix)),
    ]
    ids = {"bos": v.bos_id, "padding": v.pad_id} | dict(zip(("eos", "eot", "eom"), told(v), strict=False))
    pairs += [(f"tokenizer.ggml.{name}_token_id", "u32", i) for name, i in ids.items() if i is not None]
    if v.chat_template is not None:
        pairs.append(("tokenizer.chat_template", "str", v.chat_template))
    if v.tokenizer_json is not None:
        pairs.append(("tokenizer.huggingface.json", "str", v.tokenizer_json))
    return pairs


def apr_metadata(source: Checkpoint, v: Vocabulary | None, tensors: list[Planned]) -> dict[str, Any]:
    """The JSON of an APR file, keys in the order of aprender's struct, then the flat ones; only canonical spellings."""
    c, a = source.config, source.config.architecture
    about = general(source)
    said: dict[str, Any] = {
        "model_type": a.model_type,
        "name": about.get("general.name"),
        "license": about.get("general.license"),
        "data_source": None,
        "data_license": None,
        "original_format": source.container.split()[0].lower(),
        "total_size": sum(t.size for t in tensors),
        "param_count": sum(prod(t.shape) for t in tensors),
        "chat_template": v.chat_template if v else None,
        "architecture": a.model_type,
        "hf_architecture": a.hf_class,
        "hf_model_type": a.model_type,
        "hidden_size": c.hidden_size,
        "num_layers": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "num_kv_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "rope_theta": shortest(c.rope_theta),
        "rope_type": APR_ROPE_TYPE,
        "rms_norm_eps": shortest(c.rms_norm_eps),
        "head_dim": c.head_dim,
        "tied_embeddings": c.tie_word_embeddings,
        "source_metadata": about or None,
    }
    if v is not None:
        v = padded(v, c.vocab_size)
        said |= {
            "tokenizer.model": v.model,
            "tokenizer.pre_type": v.pre,
            "tokenizer.vocabulary": v.tokens,
            "tokenizer.vocab_size": len(v.tokens),
            "tokenizer.merges": v.merges,
            "tokenizer.token_type": v.types,
            "tokenizer.bos_token_id": v.bos_id,
            "tokenizer.eos_token_id": v.eos_ids[0] if v.eos_ids else None,
            "tokenizer.eos_token_ids": list(v.eos_ids),
            "tokenizer.padding_token_id": v.pad_id,
            "tokenizer.add_bos_token": bool(v.prefix),
            "tokenizer.add_eos_token": bool(v.suffix),
        }
    explicit = ("license", "data_source", "data_license")  # aprender wants to see these, be they null
    return {key: value for key, value in said.items() if value is not None or key in explicit}


def shortest(x: float) -> float:
    """The shortest decimal that is this float32, as Rust's serde writes one."""
    return float(str(np.float32(x)))


def write_folder(source: Checkpoint, v: Vocabulary | None, folder: Path, tensors: list[Planned], told: Any) -> None:
    """config.json, generation_config.json, tokenizer.json, tokenizer_config.json, model.safetensors."""
    c, a = source.config, source.config.architecture
    config = dict(source.metadata["config"]) if source.container == "safetensors" else {}
    for said_anew in ("torch_dtype", "rope_scaling", "partial_rotary_factor", "layer_types", "sliding_window"):
        config.pop(said_anew, None)
    config |= {"architectures": [a.hf_class], "dtype": DTYPES[most_common_format(tensors)]}
    config |= asdict(c) | {"rms_norm_eps": shortest(c.rms_norm_eps), "rope_theta": shortest(c.rope_theta)}
    config |= {"rope_parameters": {"rope_theta": shortest(c.rope_theta), "rope_type": "default"}}
    config |= {"hidden_act": "silu", **a.hf_full}
    if v is not None:
        eos = stops(v)
        ids = {"bos_token_id": v.bos_id, "eos_token_id": eos[0] if eos else None, "pad_token_id": v.pad_id}
        config |= ids
        generation = dict(source.metadata["generation_config"]) if source.container == "safetensors" else {}
        if not Fields(generation, "generation_config.json").ids("eos_token_id"):
            generation.pop("eos_token_id", None)
        save(folder / "generation_config.json", ids | {"eos_token_id": eos} | generation)
        (folder / "tokenizer.json").write_text(spell(v), encoding="utf-8")

        def spelled(i: int | None) -> str | None:
            return None if i is None or i >= len(v.tokens) else v.tokens[i]

        settings = {
            "tokenizer_class": a.tokenizer_class,
            "add_bos_token": bool(v.prefix),
            "add_eos_token": bool(v.suffix),
            "add_prefix_space": False,
            "bos_token": spelled(v.bos_id) if v.prefix else None,
            "eos_token": spelled(eos[0]) if eos else None,
            "pad_token": spelled(v.pad_id),
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": c.max_position_embeddings,
            "split_special_tokens": False,
        }
        if v.chat_template is not None:
            settings["chat_template"] = v.chat_template
        save(folder / "tokenizer_config.json", settings)
    save(folder / "config.json", config)
    with (folder / "model.safetensors").open("xb") as file:
        write_safetensors(file, {"format": "pt"}, tensors, told)


def save(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
