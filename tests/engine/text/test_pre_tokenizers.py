"""Llama 3's, Mistral Nemo's, SmolLM's and GPT-2's pre-tokenizers: ids and texts are those of the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library

from qwenref.engine.files.hf_tokenizer import read_vocabulary
from qwenref.engine.files.pre_tokenizers import ROWS
from qwenref.engine.files.tokenizer_json import spell
from qwenref.engine.files.vocabulary import Vocabulary
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput

from ...pre_tokenized import PUBLISHED, TEXTS, published

MODEL = {"qwen2": "qwen3"}  # which has that pre-tokenizer; the others are Llama's


def read(folder: Path, text: str, model: str = "llama") -> Vocabulary:
    (folder / "tokenizer.json").write_text(text, "utf-8")
    v = read_vocabulary(folder, {"model_type": model}, 1000)
    assert v is not None
    return v


def test_every_row_has_a_published_file() -> None:
    assert {row.names[0] for row in ROWS} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_librarys_ids_and_texts(name: str, tmp_path: Path) -> None:
    file, library = published(name), Library.from_str(published(name))
    v = read(tmp_path, file, MODEL.get(name, "llama"))
    assert v.pre == name
    ours = Tokenizer.from_vocabulary(v)
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == ids, text
        assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False), text
        stream = ours.stream()
        assert "".join(map(stream, ids)) + stream(None) == ours.decode(ids)


def test_the_texts_tell_the_pre_tokenizers_apart() -> None:
    """By the same merges: of a tokenizer with another's pre-tokenizer the ids are others."""
    found = {}
    for name, said in PUBLISHED.items():
        file = json.loads(published("gpt-2")) | {"pre_tokenizer": said["pre_tokenizer"]}
        found[name] = tuple(tuple(Library.from_str(json.dumps(file)).encode(text).ids) for text in TEXTS)
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_made_from_the_parts_does_the_same(name: str, tmp_path: Path) -> None:
    v = read(tmp_path, published(name), MODEL.get(name, "llama"))
    from dataclasses import replace

    made, library = Library.from_str(spell(replace(v, tokenizer_json=None))), Library.from_str(published(name))
    for text in TEXTS:
        assert made.encode(text).ids == library.encode(text).ids
        assert made.decode(made.encode(text).ids) == library.decode(library.encode(text).ids)


def changed(name: str, **changes: Any) -> str:
    return json.dumps(json.loads(published(name)) | changes)


@pytest.mark.parametrize(
    ("text", "model", "words"),
    [
        (published("llama-bpe"), "qwen2", "model.ignore_merges = True is not supported with this model"),
        (published("smollm"), "qwen2", "that of smollm, is not supported with this model"),
        (
            changed("llama-bpe", normalizer={"type": "NFC"}),
            "llama",
            "normalizer 'NFC' before the pre-tokenizer",
        ),
        (changed("qwen2", normalizer=None), "llama", "that of qwen2, but without its normalizer NFC"),
        (
            changed("smollm", pre_tokenizer={"type": "Whitespace"}),
            "llama",
            "only those of qwen2, deepseek",
        ),
        (changed("llama-bpe", pre_tokenizer=None), "llama", "its pre-tokenizer is not supported"),
    ],
)
def test_bad_input(text: str, model: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json") as error:
        read(tmp_path, text, model)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_tokenizer_json_a_llama_says_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(BadInput, match=r"a Llama model has, only tokenizer\.json says; give token ids"):
        read_vocabulary(tmp_path, {"model_type": "llama"}, 1000)
