"""SentencePiece's BPE: ids and texts of Transformers from folders, of llama.cpp from GGUF; and through convert.

tests/golden/sentencepiece.json.gz holds a small vocabulary that sentencepiece trained, and the commands that asked.
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import Checkpoint, Vocabulary, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.gguf import vocabulary as gguf_vocabulary
from qwenref.engine.files.gguf_header import read_header
from qwenref.engine.files.hf_tokenizer import read_vocabulary
from qwenref.engine.files.sentencepiece import SPACE, SPACES, in_scores, merges_of, scores_of
from qwenref.engine.files.sentencepiece_model import read
from qwenref.engine.text.chat import Chat, chat_ids
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput
from qwenref.tools.dev.golden_sentencepiece import file, write_folder, write_gguf
from qwenref.tools.main import main

from ...models import model

GOLDEN: dict[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[2] / "golden" / "sentencepiece.json.gz").read_bytes())
)
TEXTS, ROWS = GOLDEN["texts"], 500
FOLDERS = {case["name"]: case for case in GOLDEN["folders"]}
GGUFS = {case["name"]: case for case in GOLDEN["ggufs"]}
MODELS = {case["name"]: case for case in GOLDEN["models"]}
TRAINED = base64.b64decode(GOLDEN["model"])


def folder_vocabulary(folder: Path, case: dict[str, Any], **changes: Any) -> Vocabulary:
    """changes: of the tokenizer.json."""
    whole = file(GOLDEN, case["tokenizer"] | changes, case["merges"])
    write_folder(folder, case["model_type"], case["settings"], whole)
    v = read_vocabulary(folder, {"model_type": case["model_type"]}, ROWS)
    assert v is not None
    return v


def model_vocabulary(folder: Path, case: dict[str, Any], raw: bytes = TRAINED, rows: int = ROWS) -> Vocabulary:
    """Of a folder with tokenizer.model and no tokenizer.json."""
    (folder / "tokenizer.model").write_bytes(raw)
    write_folder(folder, case["model_type"], case["settings"], None)
    v = read_vocabulary(folder, {"model_type": case["model_type"]}, rows)
    assert v is not None
    return v


def of_gguf(folder: Path, case: dict[str, Any], golden: dict[str, Any] = GOLDEN) -> Vocabulary:
    write_gguf(folder / "x.gguf", golden, case["keys"], case["more"])
    v = gguf_vocabulary(read_header(Path("x.gguf"), memoryview((folder / "x.gguf").read_bytes())).metadata, ROWS)
    assert v is not None
    return v


def streamed(t: Tokenizer, ids: list[int]) -> str:
    piece = t.stream()
    return "".join(map(piece, ids)) + piece(None)


def holds(t: Tokenizer, case: dict[str, Any]) -> None:
    """Prompts, messages and texts are those that the case's library gave."""
    assert [t.prompt_ids(text) for text in TEXTS] == case["prompts"]
    assert [t.encode(text) for text in TEXTS] == case["messages"]
    assert [t.decode(ids) for ids in case["prompts"]] == case["decoded"]
    assert [streamed(t, ids) for ids in case["prompts"]] == case["decoded"]
    for ids in case["messages"]:
        assert streamed(t, ids) == t.decode(ids)


# -- folders, by Transformers 5's AutoTokenizer; GGUF, by llama.cpp ----------------------------------------------------


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_folders_are_auto_tokenizers(case: dict[str, Any], tmp_path: Path) -> None:
    holds(Tokenizer.from_vocabulary(folder_vocabulary(tmp_path, case), ROWS), case)


@pytest.mark.parametrize("case", MODELS.values(), ids=MODELS)
def test_tokenizer_models_are_auto_tokenizers(case: dict[str, Any], tmp_path: Path) -> None:
    """tokenizer.model alone, and what convert makes of it."""
    v = model_vocabulary(tmp_path, case)
    holds(Tokenizer.from_vocabulary(v, ROWS), case)
    read, said = converted(with_vocabulary(v, case["model_type"]), tmp_path / "hf")
    assert prompts(read) == case["prompts"] and said == ""


@pytest.mark.parametrize("case", GGUFS.values(), ids=GGUFS)
def test_ggufs_are_llama_cpps(case: dict[str, Any], tmp_path: Path) -> None:
    holds(Tokenizer.from_vocabulary(of_gguf(tmp_path, case), ROWS), case)


def test_the_cases_differ(tmp_path: Path) -> None:
    """The golden file holds what it is there for: every way with spaces, and ids that tell them apart."""
    found = {folder_vocabulary(tmp_path, case).spaces for case in FOLDERS.values()}
    assert found == set(SPACES)
    assert len({json.dumps(case["prompts"]) for case in (*FOLDERS.values(), *GGUFS.values())}) >= 12
    assert GOLDEN["merges"]["score"] != GOLDEN["merges"]["id"]


def test_sentencepiece_itself(tmp_path: Path) -> None:
    """Where no control token is in the text, and a character without a piece is no part of one."""
    t = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["no types"] | {"more": {"<tool>": 4}}), ROWS)
    asked = 0
    for text, ids in zip(TEXTS, GOLDEN["by_sentencepiece"], strict=True):
        if not any(token in text for token in ("<s>", "</s>", "<unk>", "[INST]", "<tool>", "<0x", SPACE)):
            assert t.encode(text) == ids, text
            asked += 1
    assert asked > 15


def test_merges_are_the_converters() -> None:
    """Transformers' generate_merges made GOLDEN's; here they are without those of tokens that text is not made of."""
    tokens, scores, types = GOLDEN["tokens"], GOLDEN["scores"], GOLDEN["types"]
    assert merges_of(tokens, scores, types) == GOLDEN["merges"]["score"]
    again = scores_of(tokens, GOLDEN["merges"]["score"], types)
    assert [s for s, kind in zip(again, types, strict=True) if kind == 1] == [
        s for s, kind in zip(scores, types, strict=True) if kind == 1
    ]
    assert in_scores(tokens, GOLDEN["merges"]["score"], types) == (GOLDEN["merges"]["score"], True)
    swapped = [*GOLDEN["merges"]["score"]]
    swapped[0], swapped[-1] = swapped[-1], swapped[0]
    assert in_scores(tokens, swapped, types)[1]  # these tokens' other ways lie elsewhere, and their order can be said


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_a_character_of_byte_tokens_comes_when_it_is_whole(tmp_path: Path) -> None:
    t = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["usual"]), ROWS)
    spelled = [t.encode("x")[0], *(GOLDEN["tokens"].index(f"<0x{b:02X}>") for b in "\U0001f600".encode())]
    piece = t.stream()
    assert [piece(i) for i in spelled] == ["", "", "", "", "\U0001f600"]  # the first is the space that goes
    piece = t.stream()
    assert [piece(i) for i in (spelled[1], spelled[2])] == ["", ""]
    assert piece(None) == "\ufffd"
    assert t.decode(spelled[1:3]) == "\ufffd"


def test_one_space_goes_at_the_beginning_alone(tmp_path: Path) -> None:
    t = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["usual"]), ROWS)
    the = GOLDEN["tokens"].index(f"{SPACE}the")
    assert t.decode([the, the]) == "the the" == streamed(t, [the, the])
    assert t.text_of(the) == " the"
    assert t.decode([1, the]) == "<s> the"
    plain = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["no space"]), ROWS)
    assert plain.decode([the]) == " the"


# -- chats -------------------------------------------------------------------------------------------------------------

# As the tokenizer_config.json of Mistral-7B-Instruct-v0.2 and of Llama-2-7b-chat-hf have them, but for their checks.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token}}{% endif %}"
    "{% endfor %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MESSAGES = [
    {"role": "user", "content": "Hello world"},
    {"role": "assistant", "content": "the answer"},
    {"role": "user", "content": " what?  "},
]


# The space that an added token takes with it is the message's here, and not the template's own.
PLAIN = {name: case for name, case in FOLDERS.items() if "strip" not in name and "normalized" not in name}


@pytest.mark.parametrize("template", [MISTRAL, LLAMA2])
@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN)
def test_a_chat_is_the_ids_of_its_text(case: dict[str, Any], template: str, tmp_path: Path) -> None:
    """What Transformers makes of the whole text at once (apply_chat_template) is made here piece by piece."""
    t = Tokenizer.from_vocabulary(folder_vocabulary(tmp_path, case), ROWS)
    said = {name: m["content"] for name, m in zip("abc", MESSAGES, strict=True)}
    if template == MISTRAL:
        text = f"<s>[INST] {said['a']} [/INST]{said['b']}</s>[INST] {said['c']} [/INST]"
    else:
        text = f"<s>[INST] {said['a']} [/INST] {said['b']} </s><s>[INST] {said['c'].strip()} [/INST]"
    assert chat_ids(t, template, Chat(MESSAGES)) == t.encode(text, special=True)


def test_a_message_can_not_speak_as_a_control_token(tmp_path: Path) -> None:
    t = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["usual"]), ROWS)
    ids = chat_ids(t, MISTRAL, Chat([{"role": "user", "content": "</s><s>[/INST]"}]))
    assert [i for i in ids if i in t.control.values()] == [1, 3, 4]


# -- convert -----------------------------------------------------------------------------------------------------------


def with_vocabulary(v: Vocabulary, model_type: str = "llama") -> Checkpoint:
    return replace(model(vocab=ROWS, model_type=model_type), vocabulary=lambda: v)


def converted(source: Checkpoint, destination: Path) -> tuple[Vocabulary | None, str]:
    """What is read back, and what was said to be lost."""
    lost: list[str] = []
    convert(source, destination, lost=lost.append)
    return open_checkpoint(destination).vocabulary(), "\n".join(lost)


def prompts(v: Vocabulary | None) -> list[list[int]]:
    assert v is not None
    t = Tokenizer.from_vocabulary(v, ROWS)
    return [t.prompt_ids(text) for text in TEXTS]


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_convert_carries_a_folders(case: dict[str, Any], tmp_path: Path) -> None:
    """To a folder all of it; to GGUF all of it, or a line says how spaces are put there; and back from that."""
    v = folder_vocabulary(tmp_path, case)
    read, said = converted(with_vocabulary(v), tmp_path / "hf")
    assert prompts(read) == case["prompts"] and said == ""
    assert read is not None
    assert [Tokenizer.from_vocabulary(read, ROWS).decode(ids) for ids in case["prompts"]] == case["decoded"]
    read, said = converted(with_vocabulary(v), tmp_path / "m.gguf")
    assert (prompts(read) == case["prompts"]) is ("Metaspace" not in said)
    assert ("Metaspace" in said) is (not SPACES[v.spaces].same)
    assert ("order of merges among the ways" in said) is (case["merges"] == "id")
    assert ("how added tokens are found" in said) is bool(v.flags)
    again, said = converted(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "again")
    assert prompts(again) == prompts(read) and said == ""


@pytest.mark.parametrize("case", GGUFS.values(), ids=GGUFS)
def test_convert_carries_a_ggufs(case: dict[str, Any], tmp_path: Path) -> None:
    v = of_gguf(tmp_path, case)
    read, said = converted(with_vocabulary(v, "mistral"), tmp_path / "m.gguf")
    assert prompts(read) == case["prompts"] and "tokenizer" not in said
    read, said = converted(with_vocabulary(v), tmp_path / "hf")
    if case["more"]:
        assert prompts(read) == case["prompts"] and said == ""
    else:  # of which no type says that <s> is a control token, or that <0x0A> is a byte
        assert "that <s> is ordinary text" in said and "that <0x00> to <0xFF> are texts" in said


def test_convert_says_what_is_lost(tmp_path: Path) -> None:
    v = folder_vocabulary(tmp_path, FOLDERS["Llama as it stands"])
    for changed, words in (
        (replace(v, whole=True), "ignore_merges"),
        (replace(v, strip=False), "first space of decoded text is kept: in gguf it is left out"),
        (replace(v, merges=v.merges[1:]), "the order of merges"),
    ):
        read, said = converted(with_vocabulary(changed), tmp_path / "m.gguf")
        assert words in said and read is not None and read.tokenizer_json is None
    read, said = converted(with_vocabulary(v), tmp_path / "m.apr")
    assert read is None and "SentencePiece's BPE: apr has only byte-level ones" in said
    read, said = converted(with_vocabulary(v, "qwen2"), tmp_path / "qwen")
    assert read is None and "Transformers reads none for Qwen2" in said


def test_inspect_says_where_a_space_is_put(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (("Llama as it stands", "and behind added tokens"), ("Metaspace never", "nowhere")):
        convert(with_vocabulary(folder_vocabulary(tmp_path, FOLDERS[name])), tmp_path / "m.gguf")
        assert main(["inspect", str(tmp_path / "m.gguf")]) == 0
        shown = capsys.readouterr().out
        (line,) = (line for line in shown.splitlines() if "puts a space" in line)
        assert line.endswith(words)


# -- bad files ---------------------------------------------------------------------------------------------------------


def bad(folder: Path, **changes: list[Any]) -> str:
    """What is said of a GGUF with other tokens, scores or types."""
    with pytest.raises(BadInput) as error:
        Tokenizer.from_vocabulary(of_gguf(folder, GGUFS["usual"], GOLDEN | changes), ROWS)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_ggufs(tmp_path: Path) -> None:
    tokens, scores = GOLDEN["tokens"], GOLDEN["scores"]
    last = len(tokens) - 1
    for value in (float("nan"), float("inf"), float("-inf")):
        assert f"scores holds {value} for token {last} " in bad(tmp_path, scores=[*scores[:-1], value])
    assert "no token for 1 of the 256 bytes, the first 0x0A" in bad(
        tmp_path, tokens=["<0x0a>" if t == "<0x0A>" else t for t in tokens]
    )
    assert "stands 2 times in the vocabulary" in bad(tmp_path, tokens=[*tokens[:-1], tokens[-2]])
    assert f"token {last} is empty" in bad(tmp_path, tokens=[*tokens[:-1], ""])
    assert "of 513 characters; up to 512 are merged" in bad(tmp_path, tokens=[*tokens[:-1], "a" * 513])
    assert "can not be of type 6" in bad(tmp_path, types=[*GOLDEN["types"][:-1], 6])


def test_scores_that_are_the_same_are_said(tmp_path: Path) -> None:
    """Runs of spaces have one score in Llama 2's own vocabulary, and are llama.cpp's all the same."""
    assert of_gguf(tmp_path, GGUFS["usual"]).notes == ()
    types, score = GOLDEN["types"], dict(zip(GOLDEN["tokens"], GOLDEN["scores"], strict=True))
    runs = GOLDEN | {"scores": [-1e9 if set(t) == {SPACE} else s for t, s in score.items()]}
    assert of_gguf(tmp_path, GGUFS["usual"], runs).notes == ()
    flat = GOLDEN | {"scores": [-1000.0 if kind == 1 else 0.0 for kind in types]}
    (note,) = of_gguf(tmp_path, GGUFS["usual"], flat).notes
    assert "tokens have the score of another" in note and "llama.cpp" in note


def test_a_token_that_no_merge_reaches(tmp_path: Path) -> None:
    """Its parts are no tokens, and so the text is spelled by what there is: as if it were not there."""
    golden = GOLDEN | {"tokens": [*GOLDEN["tokens"][:-1], "\u20ac\u20ac"]}
    t = Tokenizer.from_vocabulary(of_gguf(tmp_path, GGUFS["usual"], golden), ROWS)
    assert [t.name(i) for i in t.encode("\u20ac\u20ac")] == [SPACE, *["<0xE2>", "<0x82>", "<0xAC>"] * 2]


def test_more_merges_than_any_vocabulary_has() -> None:
    """A file of a few megabytes can have tokens that are made of each other in billions of ways."""
    tokens = [letter * n for letter in "abcdefgh" for n in range(1, 513)]
    with pytest.raises(BadInput, match="more than 1000000 ways"):
        merges_of(tokens, [0.0] * len(tokens), [1] * len(tokens))
    assert len(merges_of(tokens[:512], [0.0] * 512, [1] * 512)) == 512 * 511 // 2
    assert merges_of(["a", "a" * 600, "a" * 601], [0.0] * 3, [1] * 3) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": {"type": "NFKC"}}, "only Prepend and Replace, or Metaspace"),
        ({"normalizer": None}, "only Prepend and Replace, or Metaspace"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "split": True}}, "or Metaspace with"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "or Metaspace with"),
        ({"decoder": None}, "decoder: only Replace, ByteFallback, Fuse"),
        ({"decoder": {"type": "ByteFallback"}}, "decoder: only Replace, ByteFallback, Fuse"),
        ({"model": {"type": "Unigram", "byte_fallback": True}}, "'Unigram' is not supported, only byte-level and"),
        ({"model": {"type": "WordPiece"}}, "'WordPiece' is not supported, only byte-level and"),
    ],
)
def test_bad_files(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"tokenizer\.json") as error:
        folder_vocabulary(tmp_path, FOLDERS["Llama as it stands"], **changes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_bad_folders(tmp_path: Path) -> None:
    case = FOLDERS["Llama 2"]
    for settings, model_type, words in (
        ({"tokenizer_class": "GemmaTokenizer"}, "llama", "tokenizer_class 'GemmaTokenizer' is not supported with it"),
        ({"split_special_tokens": True}, "llama", "split_special_tokens is true"),
        ({}, "qwen2", "SentencePiece's BPE is not supported with this model; give token ids, as --tokens 1,2,3"),
    ):
        changed = case | {"settings": case["settings"] | settings, "model_type": model_type}
        with pytest.raises(BadInput) as error:
            folder_vocabulary(tmp_path, changed)
        assert words in str(error.value) and "\n" not in str(error.value)


# -- bad tokenizer.model -----------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number: int, raw: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return message(1, message(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


BPE = message(2, b"\x18\x02" + b"\x98\x02\x01")  # model_type, byte_fallback
IDENTITY = message(3, b"\x20\x00")  # remove_extra_whitespaces


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it has no pieces"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a SentencePiece model"),
        (b"\x0a\xff\xff\xff\xff\x0f", "field 1 goes past the end"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "goes past the end"),
        (b"\x80" * 30, "a number in it does not end"),
        (b"\x0b", "a field of wire type 3"),
        (b"\x08\x01", "a number is where a message or text should be"),
        (b"\x02\x00", "field 0 goes past the end"),
        (TRAINED[:-1], "goes past the end"),
        (piece(b"\xff") + BPE + IDENTITY, "not UTF-8"),
        (piece(b"a", float("nan")) + BPE + IDENTITY, "has the score nan"),
        (piece(b"a", kind=7) + BPE + IDENTITY, "is no piece of SentencePiece's"),
        (piece(b"a" * 513) + BPE + IDENTITY, "piece 0 has 513 characters"),
        (piece(b"a") * (ROWS + 1) + BPE + IDENTITY, f"more pieces than the embedding has rows, {ROWS}"),
        (TRAINED + piece(b"<u>", kind=4), "user-defined pieces ('<u>')"),
        (TRAINED + message(2, b"\x18\x01"), "its algorithm is 'Unigram'"),
        (TRAINED + message(2, b"\x98\x02\x00"), "has no byte_fallback"),
        (TRAINED + message(2, b"\xc0\x01\x01"), "treat_whitespace_as_suffix"),
        (TRAINED + message(3, message(2, b"x")), "normalizes text"),
        (TRAINED + message(3, b"\x20\x01"), "remove_extra_whitespaces"),
        (TRAINED + message(3, b"\x28\x00"), "does not have escape_whitespaces"),
        (TRAINED + message(1, b""), "token 480 is empty"),
        (TRAINED + piece(f"{SPACE}the".encode()), "stands 2 times"),
    ],
)
def test_bad_tokenizer_models(raw: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        Tokenizer.from_vocabulary(model_vocabulary(tmp_path, MODELS["mistral, legacy None"], raw), ROWS)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_fields_that_nobody_knows_are_left_alone(tmp_path: Path) -> None:
    """As protobuf wants it; and a message of messages of messages is bytes that nobody follows."""
    nested = b""
    for _ in range(2000):
        nested = message(9, nested)
    more = nested + b"\xf9\x3e" + bytes(8) + b"\xfd\x3e" + bytes(4) + b"\xf8\x3e\x01"
    case = MODELS["llama, legacy None"]
    assert model_vocabulary(tmp_path, case, TRAINED + more) == model_vocabulary(tmp_path, case)


def test_any_byte_of_it_changed_is_a_tokenizer_or_one_line(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        raw = bytearray(TRAINED)
        raw[random.integers(len(raw))] = random.integers(256)
        with suppress(BadInput):
            read(bytes(raw), "x", ROWS).parts(by_id=False, legacy=True, where="x")
