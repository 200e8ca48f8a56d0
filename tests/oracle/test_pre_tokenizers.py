"""GGUF vocabularies of the family's pre-tokenizers, by gguf-py: the ids are llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path
from unicodedata import category

import gguf
import numpy as np
import pytest

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")

from qwenref.engine.files import open_checkpoint  # noqa: E402
from qwenref.engine.text.tokenizer import Tokenizer  # noqa: E402

from ..pre_tokenized import PUBLISHED, SPECIAL, TEXTS, published  # noqa: E402
from ..tiny import tiny_weights, write_gguf  # noqa: E402

pytestmark = pytest.mark.oracle


def written(folder: Path, name: str, add_bos: bool | None) -> Path:
    """A whole small model: its weights by our writer, its vocabulary by gguf-py."""
    file = json.loads(published(name))
    vocab = {t["content"]: t["id"] for t in file["added_tokens"]} | file["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    plain = gguf.GGUFReader(write_gguf(folder / "plain.gguf", tiny_weights(vocab=len(tokens))))
    w = gguf.GGUFWriter(folder / f"{name}.gguf", "qwen2")
    for field in plain.fields.values():
        if field.name.startswith("qwen2."):
            value, kind = field.contents(), field.types[0]
            w.add_key_value(field.name, value, kind)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(name)
    w.add_token_list(tokens)
    w.add_token_types([3 if t in SPECIAL else 1 for t in tokens])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in file["model"]["merges"]])
    w.add_bos_token_id(vocab[SPECIAL[0]])
    w.add_eos_token_id(vocab[SPECIAL[1]])
    if add_bos is not None:
        w.add_add_bos_token(add_bos)
    for t in plain.tensors:
        w.add_tensor(t.name, np.array(t.data), raw_dtype=t.tensor_type)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return folder / f"{name}.gguf"


def differs(name: str, text: str) -> bool:
    """Where llama.cpp does otherwise than the published file: it brings no text to NFC, and of Tekken's words knows
    capitals of ASCII only, and no combining marks (docs/tokenizer.md)."""
    if name == "qwen2":
        return "e\u0301" in text
    return name == "tekken" and any(
        not c.isascii() and (c.upper() != c.lower() or category(c).startswith("M")) for c in text
    )


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_ids_are_llama_cpps(name: str, add_bos: bool | None, tmp_path: Path) -> None:
    path = written(tmp_path, name, add_bos)
    v = open_checkpoint(path).vocabulary()
    assert v is not None
    ours = Tokenizer.from_vocabulary(v)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXTS:
        if differs(name, text):
            continue
        raw = text.encode()
        assert ours.prompt_ids(text) == theirs.tokenize(raw, add_bos=True, special=True), text
        assert ours.encode(text) == theirs.tokenize(raw, add_bos=False, special=False), text
        ids = ours.encode(text, special=True)
        assert ours.decode(ids).encode() == theirs.detokenize(ids, special=True), text
