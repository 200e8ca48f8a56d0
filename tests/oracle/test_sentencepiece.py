"""SentencePiece's BPE, asked anew: Transformers and llama.cpp as they are installed, on random texts, on what engine
convert writes, and on llama.cpp's own vocabularies of Llama 2 and Baichuan."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.gguf import vocabulary as gguf_vocabulary
from qwenref.engine.files.gguf_header import read_header
from qwenref.engine.files.hf_tokenizer import read_vocabulary
from qwenref.engine.files.mapped import map_file
from qwenref.engine.files.sentencepiece import SPACE, merges_of
from qwenref.engine.files.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary
from qwenref.engine.text.chat import Chat, chat_ids
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.tools.dev.golden_sentencepiece import TEXTS, write_folder

from ..engine.text.test_sentencepiece import (
    FOLDERS,
    GGUFS,
    LLAMA2,
    MESSAGES,
    MISTRAL,
    PLAIN,
    ROWS,
    folder_vocabulary,
    of_gguf,
    with_vocabulary,
)

pytestmark = pytest.mark.oracle

MODELS = os.environ.get("QWENREF_LLAMA_CPP_MODELS")
REAL = ("llama-spm", "baichuan")


def texts(v: Vocabulary, count: int, seed: int) -> Iterator[str]:
    """The golden file's, and random ones: pieces, control tokens, runs, and characters from all over Unicode."""
    yield from TEXTS
    r = random.Random(seed)
    words = [t.replace(SPACE, " ") for t, kind in zip(v.tokens, v.types, strict=True) if kind == NORMAL]
    own = [t for t, kind in zip(v.tokens, v.types, strict=True) if kind in (CONTROL, USER_DEFINED)]

    def character() -> str:
        ranges = ((0x20, 0x7E), (0x20, 0x7E), (1, 0x2FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F6FF))
        return chr(r.randint(*r.choice(ranges)))

    for _ in range(count):
        unit = "".join(r.choice(words) for _ in range(r.randint(1, 2)))
        yield r.choice((
            "".join(r.choice(words) for _ in range(r.randint(1, 12))),
            "".join(r.choice((r.choice(words), r.choice(own), " ", "\n")) for _ in range(r.randint(1, 8))),
            "".join(character() for _ in range(r.randint(1, 30))),
            "".join(r.choice(r.choice(("ab", "a ", "\t\n ", "-="))) for _ in range(r.randint(1, 40))),
            unit * r.randint(2, 20),
            r.choice(" \n\ta-=") * r.randint(1, 300),
        ))  # fmt: skip


def same_as_transformers(folder: Path, v: Vocabulary, count: int) -> None:
    import transformers

    hf, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_vocabulary(v)
    for text in texts(v, count, seed=1):
        ids = hf(text).input_ids
        assert ours.prompt_ids(text) == ids, text
        assert ours.decode(ids) == hf.decode(ids), text
        assert ours.encode(text) == hf.encode(text, add_special_tokens=False, split_special_tokens=True), text


def same_as_llama_cpp(path: Path, v: Vocabulary, count: int) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")
    theirs, ours = llama_cpp.Llama(str(path), vocab_only=True, verbose=False), Tokenizer.from_vocabulary(v)
    for text in texts(v, count, seed=2):
        raw = text.encode()
        assert ours.prompt_ids(text) == theirs.tokenize(raw, add_bos=True, special=True), text
        assert ours.encode(text) == theirs.tokenize(raw, add_bos=False, special=False), text


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_and_what_convert_makes_of_them(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="Transformers is not installed (README: make oracle)")
    case = FOLDERS[name]
    v = folder_vocabulary(tmp_path, case)
    same_as_transformers(tmp_path, v, 100)
    convert(with_vocabulary(v, case["model_type"]), tmp_path / "hf")
    again = open_checkpoint(tmp_path / "hf").vocabulary()
    assert again is not None
    same_as_transformers(tmp_path / "hf", again, 100)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("template", [MISTRAL, LLAMA2])
def test_chats(name: str, template: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed (README: make oracle)")
    ours = Tokenizer.from_vocabulary(folder_vocabulary(tmp_path, FOLDERS[name]), ROWS)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs = hf.apply_chat_template(MESSAGES, chat_template=template, add_generation_prompt=True)
    assert chat_ids(ours, template, Chat(MESSAGES)) == theirs["input_ids"]


@pytest.mark.parametrize("name", GGUFS)
def test_ggufs_and_what_convert_makes_of_them(name: str, tmp_path: Path) -> None:
    case = GGUFS[name]
    v = of_gguf(tmp_path, case)
    same_as_llama_cpp(tmp_path / "x.gguf", v, 100)
    convert(with_vocabulary(v), tmp_path / "m.gguf")
    again = open_checkpoint(tmp_path / "m.gguf").vocabulary()
    assert again is not None
    same_as_llama_cpp(tmp_path / "m.gguf", again, 100)


@pytest.mark.parametrize("name", PLAIN)
def test_folders_as_ggufs(name: str, tmp_path: Path) -> None:
    """However the folder has it, llama.cpp reads what was written as it is read here; but for how tokens are found."""
    convert(with_vocabulary(folder_vocabulary(tmp_path, FOLDERS[name])), tmp_path / "m.gguf")
    v = open_checkpoint(tmp_path / "m.gguf").vocabulary()
    assert v is not None
    same_as_llama_cpp(tmp_path / "m.gguf", v, 100)


# -- real vocabularies -------------------------------------------------------------------------------------------------


def real(name: str) -> tuple[Path, Any]:
    if MODELS is None:
        pytest.skip("QWENREF_LLAMA_CPP_MODELS names no folder: vendor/llama.cpp/models of llama-cpp-python's sdist")
    path = Path(MODELS) / f"ggml-vocab-{name}.gguf"
    return path, read_header(path, map_file(path).data).metadata


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_are_llama_cpps(name: str) -> None:
    path, metadata = real(name)
    v = gguf_vocabulary(metadata, 1 << 20)
    assert v is not None
    same_as_llama_cpp(path, v, 3000)


def test_llama_cpps_own_cases() -> None:
    """The .inp and .out files that it tests its own tokenizer with."""
    path, metadata = real("llama-spm")
    v = gguf_vocabulary(metadata, 1 << 20)
    assert v is not None
    ours = Tokenizer.from_vocabulary(v)
    given = path.with_name(f"{path.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    wanted = [[*map(int, line.split())] for line in path.with_name(f"{path.name}.out").read_text().splitlines()]
    assert len(wanted) > 40
    assert [ours.encode(text) for text in given[: len(wanted)]] == wanted


@pytest.mark.parametrize("order", ["score", "id"])
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("like", ["Llama 2", "TinyLlama", "Mistral, legacy", "Mistral"])
def test_real_vocabularies_are_transformers(like: str, name: str, order: str, tmp_path: Path) -> None:
    """As folders: the merges that its converter makes of these tokens and scores."""
    pytest.importorskip("transformers", reason="Transformers is not installed (README: make oracle)")
    from transformers.tokenization_utils_base import generate_merges

    _, metadata = real(name)
    tokens, case = metadata["tokenizer.ggml.tokens"], FOLDERS[like]
    ids, scores = {t: i for i, t in enumerate(tokens)}, metadata["tokenizer.ggml.scores"].tolist()
    merges = generate_merges(ids, dict(zip(tokens, scores, strict=True)) if order == "score" else None)
    if order == "score":
        types = metadata["tokenizer.ggml.token_type"].tolist()
        assert merges_of(tokens, scores, types) == [" ".join(m) for m in merges]
    whole = json.loads(json.dumps(case["tokenizer"]))
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["id"] < 3]
    whole["model"] |= {"vocab": ids, "merges": [" ".join(m) for m in merges]}
    write_folder(tmp_path, case["model_type"], case["settings"], whole)
    v = read_vocabulary(tmp_path, {"model_type": case["model_type"]}, 1 << 20)
    assert v is not None
    same_as_transformers(tmp_path, v, 1000)
