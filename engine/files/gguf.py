"""GGUF, llama.cpp's container (ggml/docs/gguf.md): versions 2 and 3, little-endian, whole or split into parts."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput, blamed_on
from ...quant.ggml import NAMES, size_of
from ...quant.tensor import QTensor
from ..config import from_gguf
from ..config_keys import brief
from ..rope_gguf import DIVISORS
from . import Checkpoint, sentencepiece
from .end_of_generation import FILL_IN, by_text, ends, with_control
from .foreign import gguf_kind
from .gguf_header import Header, Metadata, read_header
from .mapped import map_file
from .pre_tokenizers import PRE_TOKENIZERS, taken_whole
from .tokenizer_json import last_used, parse
from .vocabulary import NORMAL, Vocabulary

# What llama.cpp's `gguf-split` calls part i of n; nothing inside a file names another file.
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)

LAST_TYPE = 6  # llama_token_type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
NAMED_TEMPLATE = "tokenizer.chat_template."
USUAL = {"bos": 1, "eos": 2}  # llama.cpp's for SentencePiece's BPE, where a file does not say
NO_ID = (-1, 0xFFFFFFFF)  # LLAMA_TOKEN_NULL, and the same as a u32


def recognises(path: Path, head: bytes) -> bool:
    return head.startswith(b"GGUF")


def open(path: Path) -> Checkpoint:
    """Opens a GGUF file, or all parts of one, given any. Raises BadInput that names the file and what is wrong."""
    paths = parts(path)
    tensors: dict[str, QTensor] = {}
    notes: list[str] = []
    headers = []
    for number, part in enumerate(paths):
        file = map_file(part)
        if not recognises(part, file[:4].tobytes()):
            raise BadInput(f"{part}: not a GGUF file")
        header = read_header(part, file.data)
        check_part(part, header, number, len(paths))
        more = tensors_of(part, header, file, notes)
        if twice := tensors.keys() & more.keys():
            raise BadInput(f"{part}: tensor {min(twice)!r} is in another part too")
        tensors |= more
        headers.append(header)

    first, metadata = paths[0], headers[0].metadata
    total = metadata.get("split.tensors.count", 0)  # 0 is unsaid
    if type(total) is not int or total not in (0, len(tensors)):
        raise BadInput(f"{first}: split.tensors.count is {brief(total)}, but the parts hold {len(tensors)} tensors")
    if kind := gguf_kind(metadata, len(tensors)):
        raise BadInput(f"{first}: {kind}")
    with blamed_on(first):
        config, more_notes = from_gguf(metadata, tensors)
    notes += [f"{first}: {note}" for note in more_notes]
    return Checkpoint(
        path=first,
        container=f"GGUF v{headers[0].version}",
        config=config,
        tensors=config.architecture.unstacked(
            {name: w for name, w in tensors.items() if name not in DIVISORS}, config.sizes
        ),
        metadata=metadata,
        vocabulary=lambda: vocabulary(metadata, config.vocab_size),
        files=tuple(paths),
        notes=tuple(notes),
    )


def parts(path: Path) -> list[Path]:
    """All files of a model, given any: the path itself unless its name says that it is one part of several."""
    name = PART.fullmatch(path.name)
    if name is None:
        return [path]
    number, count = int(name[2]), int(name[3])
    if not 1 <= number <= count:
        raise BadInput(f"{path}: is named as part {number} of {count}")
    return [path.with_name(f"{name[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def check_part(path: Path, header: Header, number: int, count: int) -> None:
    """Raises BadInput unless the file says what its name says: that it is part `number`, from 0, of `count`.

    A count of 0 is what llama.cpp's `gguf-split --merge` leaves in a whole file.
    """
    for key, by_name, whole in (("split.count", count, (0, 1)), ("split.no", number, (0,))):
        said = header.metadata.get(key, whole[0])
        if type(said) is not int or (said != by_name and not (count == 1 and said in whole)):
            rule = "parts are named NAME-00001-of-0000N.gguf and lie in one folder"
            raise header.metadata.bad(key, f"is {brief(said)}, but by the file's name it is {by_name}; {rule}")


def tensors_of(path: Path, header: Header, file: NDArray[np.uint8], notes: list[str]) -> dict[str, QTensor]:
    """The tensors of one file as views of it, by name. Raises BadInput unless they follow each other without a gap."""
    tensors: dict[str, QTensor] = {}
    offset = 0
    for t in header.tensors:
        what = f"{path}: tensor {t.name!r}"
        if t.type not in NAMES:
            raise BadInput(f"{what} is of type {t.type}, which ggml does not have or no longer has")
        name = NAMES[t.type]
        block, block_bytes = size_of(name)
        if t.dims[0] % block:
            raise BadInput(f"{what}: its rows of {t.dims[0]} values are not whole {name} blocks of {block}")
        if t.offset != offset:
            expected = f"{offset}: each follows the one before, aligned to {header.alignment}, without gap or overlap"
            raise BadInput(f"{what} is at byte {t.offset} of the data section, and must be at {expected}")
        begin = header.data_at + offset
        end = begin + prod(t.dims) // block * block_bytes
        if end > len(file):
            raise BadInput(f"{what} ends at byte {end} of a file of {len(file)}; is the download complete?")
        tensors[t.name] = QTensor(name, t.dims[::-1], file[begin:end], t.name)
        offset = -(-(end - header.data_at) // header.alignment) * header.alignment
    if len(file) > header.data_at + offset:
        notes.append(f"{path}: {len(file) - header.data_at - offset} bytes after the last tensor are not used")
    return tensors


def vocabulary(metadata: Metadata, rows: int) -> Vocabulary | None:
    """The tokenizer.ggml.* keys, None where the file has no tokenizer. rows: of the embedding; no id may reach it.

    They rule, as for llama.cpp: tokenizer.huggingface.json, which llama.cpp does not read, only adds what they have no
    field for, and only where it describes the same tokenizer. A prompt begins with BOS and ends with EOS where
    add_bos_token and add_eos_token say so; where they are absent, with BOS as is usual with the algorithm and the
    pre-tokenizer (llama-vocab.cpp).
    Raises BadInput that names the key.
    """

    def get(name: str, kind: str) -> Any:
        key = f"tokenizer.{name}"
        if key in metadata and metadata.kind(key) != kind:
            raise metadata.bad(key, f"is of type {metadata.kind(key)}; it must be {kind}")
        return metadata.get(key)

    model = get("ggml.model", "str") or "no_vocab"
    if model in ("no_vocab", "none"):
        return None
    spm = model == sentencepiece.MODEL
    if model != "gpt2" and not spm:
        known = "only gpt2, byte-level BPE, and llama, SentencePiece's, are supported"
        raise metadata.bad("tokenizer.ggml.model", f"is {brief(model)}; {known}")

    def need(name: str, kind: str) -> Any:
        value = get(name, kind)
        if value is None:
            raise metadata.bad(f"tokenizer.{name}", "is missing")
        return value

    tokens = need("ggml.tokens", "[str]")
    types = get("ggml.token_type", "[i32]")
    if types is None:
        types = np.full(len(tokens), NORMAL, np.int32)  # as in llama.cpp, which then goes by the tokens' texts
    scores = get("ggml.scores", "[f32]")
    for name, array in (("token_type", types), ("scores", scores)):
        if array is not None and len(array) != len(tokens):
            raise metadata.bad(f"tokenizer.ggml.{name}", f"has {len(array)} elements for {len(tokens)} tokens")
    if not 0 < len(tokens) <= rows:
        raise metadata.bad("tokenizer.ggml.tokens", f"has {len(tokens)} tokens for {rows} rows of the embedding")
    if types.min() < 1 or types.max() > LAST_TYPE:
        raise metadata.bad("tokenizer.ggml.token_type", f"holds types other than 1 to {LAST_TYPE}")

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is None or (type(value) is int and value in NO_ID):
            usual = USUAL.get(name, len(tokens)) if spm else len(tokens)
            return usual if usual < len(tokens) else None
        if type(value) is not int or not 0 <= value < len(tokens):
            raise metadata.bad(key, f"is {brief(value)}; the file has tokens 0 to {len(tokens) - 1}")
        return value

    pre = sentencepiece.PRE if spm else need("ggml.pre", "str")
    row = PRE_TOKENIZERS.get(pre)
    bos_first = spm or (row is not None and row.bos)

    def asked(option: str, name: str) -> tuple[int, ...]:
        told = get(f"ggml.{option}", "bool")
        usual = bos_first and name == "bos" and token_id(name) is not None
        if not (usual if told is None else told):
            return ()
        if (i := token_id(name)) is None:
            raise metadata.bad(f"tokenizer.ggml.{option}", f"is true, but there is no tokenizer.ggml.{name}_token_id")
        return (i,)

    found = by_text(tokens)
    spaces, notes = "", tuple[str, ...]()
    if spm:
        types = np.asarray(with_control(types.tolist(), found, ()), np.int32)
        scores = need("ggml.scores", "[f32]")
        if wrong := sentencepiece.bad_scores(tokens, scores.tolist(), types.tolist()):
            raise metadata.bad("tokenizer.ggml.scores", wrong)
        merges = sentencepiece.merges_of(tokens, scores.tolist(), types.tolist())
        if tied := sentencepiece.tied(tokens, scores.tolist(), merges):
            told = f"{len(tied)} tokens have the score of another ({', '.join(map(repr, tied[:3]))}, ...)"
            notes = (f"tokenizer.ggml.scores: {told}: which of them llama.cpp merges first depends on the text",)
        spaces = "plain" if get("ggml.add_space_prefix", "bool") is False else "prepend"
    else:
        # Of a merge that stands twice, llama.cpp takes the first.
        merges = list(dict.fromkeys(need("ggml.merges", "[str]")))
    named = [(f"{name}_token_id", i) for name in ("eos", "eot", "eom") if (i := token_id(name)) is not None]
    end = ends(named, found, {key: i for key in FILL_IN if (i := token_id(key)) is not None})
    v = Vocabulary(
        tokens=tokens,
        merges=merges,
        types=with_control(types.tolist(), found, merges),
        model=model,
        pre=pre,
        bos_id=token_id("bos"),
        eos_ids=tuple(end),
        eos_from=tuple(end.values()),
        pad_id=token_id("padding"),
        whole=taken_whole(pre),
        spaces=spaces,
        strip=spaces == "prepend",
        notes=notes,
        prefix=asked("add_bos_token", "bos"),
        suffix=asked("add_eos_token", "eos"),
        chat_template=get("chat_template", "str"),
        other_templates={
            key.removeprefix(NAMED_TEMPLATE): need(key.removeprefix("tokenizer."), "str")
            for key in metadata
            if key.startswith(NAMED_TEMPLATE)
        },
    )
    text = get("huggingface.json", "str")
    return v if text is None else _with_json(v, text)


def _with_json(v: Vocabulary, text: str) -> Vocabulary:
    """The Vocabulary with what tokenizer.huggingface.json says beyond the keys, or a note why it was not used."""
    key = "tokenizer.huggingface.json"
    try:
        said = parse(text, key)
    except BadInput as error:
        return replace(v, notes=(*v.notes, f"{error}; the other keys are used"))
    used, row = last_used(v) + 1, PRE_TOKENIZERS.get(v.pre)
    for field, a, b in (
        ("tokens", said.tokens, v.tokens[:used]),
        ("merges", (said.merges, said.whole), (v.merges, v.whole)),
        ("spaces", (said.spaces, said.strip), (v.spaces, v.strip)),
        ("pre-tokenizer", said.pre, row.names[0] if row else v.pre),
        ("post-processor", (said.prefix, said.suffix), (v.prefix, v.suffix)),
    ):
        if a != b:
            return replace(
                v,
                notes=(
                    *v.notes,
                    f"{key} has other {field} than the tokenizer.ggml keys; those are used",
                ),
            )
    return replace(v, flags=said.flags, tokenizer_json=text)
