"""The tokenizer: ids of Hugging Face and llama.cpp (tests/golden/tokenizer.json.gz), hostile vocabularies, streaming.

Hostile cases are numbered T01 to T23 here and T24 to T30 in test_chat.py; T21 and T22 (empty and overlong prompt) are
the run command's, in test_cli.py.
"""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenref.engine.files import Vocabulary, open_checkpoint
from qwenref.engine.files.pre_tokenizers import QWEN2_PATTERN
from qwenref.engine.files.tokenizer_json import parse
from qwenref.engine.text.chat import Chat, chat_ids
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput

GOLDEN = Path(__file__).parents[2] / "golden" / "tokenizer.json.gz"

# GPT-2's byte alphabet, spelled by its own rule: printable Latin-1 is itself, the others follow from U+0100 on.
PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
ALPHABET = [chr(b) for b in sorted(PRINTABLE)] + [chr(0x100 + n) for n in range(256 - len(PRINTABLE))]
MERGES = ["Ġ t", "h e", "Ġt he", "Ã ©", "1 2"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def small(**changes: Any) -> Vocabulary:
    """All bytes, five merges, three control tokens, one user-defined, two padding rows."""
    normal = [*ALPHABET, *(m.replace(" ", "") for m in MERGES)]
    tokens = [*normal, *CONTROL, "<tool_call>", "[PAD1]", "[PAD2]"]
    types = [1] * len(normal) + [3, 3, 3, 4, 5, 5]
    end = len(normal)
    whole = Vocabulary(tokens, MERGES, types, "gpt2", "qwen2", end, (end + 2,), end, None)
    return replace(whole, **changes)


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    v = small()
    return {
        "added_tokens": [
            {"id": n, "content": t, "special": v.types[n] == 3} for n, t in enumerate(v.tokens) if v.types[n] in (3, 4)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {t: n for n, t in enumerate(v.tokens) if v.types[n] == 1},
            "merges": list(MERGES),
        },
    } | changes


def from_json(file: Any, vocab_size: int | None = None) -> Tokenizer:
    text = file if isinstance(file, str) else json.dumps(file)
    parts = parse(text, "tokenizer.json")
    v = small(**{name: getattr(parts, name) for name in ("tokens", "merges", "types", "flags", "prefix", "suffix")})
    return Tokenizer.from_vocabulary(v, vocab_size)


def refused(v: Any, *words: str, vocab_size: int | None = None) -> None:
    """v: a Vocabulary, or what stands in a tokenizer.json."""
    started = time.process_time()
    with pytest.raises(BadInput) as error:
        Tokenizer.from_vocabulary(v, vocab_size) if isinstance(v, Vocabulary) else from_json(v, vocab_size)
    assert time.process_time() - started < 2  # that it ends, on a busy machine too; not how fast
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    for word in words:
        assert word in message


def names(t: Tokenizer, ids: list[int]) -> list[str]:
    return [t.name(i) for i in ids]


# -- the real vocabulary ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    return loaded


@pytest.fixture(scope="module")
def real(model_path: Path) -> Tokenizer:
    vocabulary = open_checkpoint(model_path).vocabulary()
    assert vocabulary is not None
    return Tokenizer.from_vocabulary(vocabulary)


def test_the_corpus_is_what_it_claims(golden: dict[str, Any]) -> None:
    texts, ids = golden["texts"], golden["ids"]
    assert len(texts) == len(set(texts)) == len(ids) >= 2000
    assert len(golden["nfc_matters"]) > 50 and len(golden["plain"]) > 50 and len(golden["decoded"]) > 500
    assert all("</s>" in texts[n] for n in golden["llama_cpp_differs"])  # the one known difference


@pytest.mark.model
def test_ids_are_hugging_faces(real: Tokenizer, golden: dict[str, Any]) -> None:
    wrong = [t for t, ids in zip(golden["texts"], golden["ids"], strict=True) if real.encode(t, special=True) != ids]
    assert wrong == []
    assert real.prompt_ids("What is 2+2?") == [3838, 374, 220, 17, 10, 17, 30]


@pytest.mark.model
def test_control_tokens_as_text_are_llama_cpps(real: Tokenizer, golden: dict[str, Any]) -> None:
    plain = dict(golden["plain"])
    wrong = [t for n, t in enumerate(golden["texts"]) if real.encode(t) != plain.get(n, golden["ids"][n])]
    assert wrong == []


@pytest.mark.model
def test_decode_is_hugging_faces(real: Tokenizer, golden: dict[str, Any]) -> None:
    wrong = [ids for ids, text in golden["decoded"] if real.decode(ids) != text]
    assert wrong == []
    assert any("\ufffd" in text for _, text in golden["decoded"])


@pytest.mark.model
def test_t23_padding_rows_of_the_real_vocabulary(real: Tokenizer) -> None:
    assert real.vocab_size == 151936
    assert real.decode([3838, 151700, 374, 151935]) == "What is"
    with pytest.raises(BadInput, match="151936 is out of range"):
        real.decode([151936])


@pytest.mark.model
@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "\r\n", "\t", "7", "中", "👨‍👩‍👧", "\0", "\u0301", "<|im_start|>", " a", "=", "'s"]
)
def test_t14_100_kilobytes_of_one_character_in_linear_time(real: Tokenizer, unit: str) -> None:
    def seconds(text: str) -> float:
        runs = []
        for _ in range(3):
            started = time.process_time()  # whatever else runs on this machine
            ids = real.encode(text, special=True)
            runs.append(time.process_time() - started)
        assert real.decode(ids) == text
        return min(runs)

    text = unit * (100_000 // len(unit.encode()))
    whole, quarter = seconds(text), seconds(text[: len(text) // 4])
    assert whole < 8 * quarter + 0.02  # quadratic time would be 16 times


# -- the logic, on a small vocabulary ---------------------------------------------------------------------------------


def test_merges_pre_tokenizer_and_normaliser() -> None:
    t = Tokenizer.from_vocabulary(small())
    assert names(t, t.encode(" the the")) == ["Ġthe", "Ġthe"]
    assert names(t, t.encode("12")) == ["1", "2"]  # \p{N} stands alone: the merge "1 2" never gets its chance
    assert t.encode("e\u0301") == t.encode("é") and names(t, t.encode("é")) == ["Ã©"]  # T16
    assert t.encode("") == []


def test_t17_control_tokens_are_text_unless_asked() -> None:
    t = Tokenizer.from_vocabulary(small())
    text = "a<|im_start|>b<tool_call><|im_end|>"
    assert names(t, t.encode(text, special=True)) == ["a", "<|im_start|>", "b", "<tool_call>", "<|im_end|>"]
    assert not set(names(t, t.encode(text))) & set(CONTROL)
    assert "<tool_call>" in names(t, t.encode(text))
    assert t.decode(t.encode(text)) == t.decode(t.encode(text, special=True)) == text
    assert list(t.split(text)) == ["a", t.encode("<|im_start|>", special=True)[0], "b<tool_call>", t.eos_ids[0]]


def test_round_a_prompt_only_what_the_file_asks_for() -> None:
    t, more = Tokenizer.from_vocabulary(small()), Tokenizer.from_vocabulary(small(prefix=(261, 262), suffix=(263,)))
    assert more.prompt_ids("a") == [261, 262, *t.prompt_ids("a"), 263]
    assert more.encode("a") == more.encode("a", special=True) == t.prompt_ids("a")


def test_no_control_tokens_at_all() -> None:
    n = len(ALPHABET) + len(MERGES)
    v = small(tokens=small().tokens[:n], types=[1] * n, bos_id=None, pad_id=None, eos_ids=())
    assert Tokenizer.from_vocabulary(v).encode("<|im_end|>", special=True) == Tokenizer.from_vocabulary(v).encode(
        "<|im_end|>"
    )


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_t15_lone_surrogates(text: str) -> None:
    t = Tokenizer.from_vocabulary(small())
    for special in (False, True):
        with pytest.raises(BadInput, match="surrogate"):
            t.encode(text, special)


def test_t15_bom_and_crlf_are_kept() -> None:
    t = Tokenizer.from_vocabulary(small())
    for text in ("\ufeffa\r\nb", "\r\n", "\0"):
        assert t.decode(t.encode(text)) == text


@given(st.text())
def test_any_text_comes_back_in_nfc(text: str) -> None:
    import unicodedata

    t = SMALL
    decoded = t.decode(t.encode(text))
    if text.isascii():
        assert decoded == text
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", text)


@given(st.lists(st.integers(0, 300 - 30), max_size=40))
@example([195 - 1])
def test_t19_streaming_holds_back_half_a_character(ids: list[int]) -> None:
    ids = [i % SMALL.vocab_size for i in ids]
    text_of = SMALL.stream()
    pieces = [*map(text_of, ids), text_of(None)]
    assert "".join(pieces) == SMALL.decode(ids)


def test_t19_an_emoji_in_four_pieces() -> None:
    text_of = SMALL.stream()
    ids = SMALL.encode("👍a")
    assert [text_of(i) for i in ids] == ["", "", "", "👍", "a"] and text_of(None) == ""
    assert [text_of(i) for i in ids[:2]] == ["", ""] and text_of(None) == "\ufffd"


def test_decode_of_bytes_that_are_not_utf8_is_the_librarys() -> None:
    """The tokenizers library's ByteLevel decoder is the judge, on every pair and many triples of bytes."""
    from tokenizers import decoders

    judge = decoders.ByteLevel()
    for first in range(256):
        for second in range(256):
            ids = [first, second, (first * 7 + second * 13) % 256]
            assert SMALL.decode(ids) == judge.decode([SMALL.name(i) for i in ids])


@pytest.mark.parametrize("id", [-1, 270, 10**12])
def test_t20_ids_out_of_range(id: int) -> None:
    with pytest.raises(BadInput, match=f"token id {id} is out of range: the vocabulary has ids 0 to 266"):
        SMALL.decode([1, id])


def test_t23_padding_rows_decode_to_nothing() -> None:
    t = Tokenizer.from_vocabulary(small(), vocab_size=300)
    assert t.decode([64, 265, 266, 299, 64]) == "aa"
    assert t.name(265) == "[PAD1]" and t.name(299) == "[PAD299]"


SMALL = Tokenizer.from_vocabulary(small())


# -- what a file may get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "1", '{"model": 1}', "{}", '{"model": {"type": "BPE"}}', '{"a":' * 99_999]
)
def test_t01_not_a_tokenizer_json(text: str) -> None:
    refused(text, "tokenizer.json")


def test_t01_a_million_merges() -> None:
    refused(small(merges=[f"a b{n}" for n in range(1_000_000)]), "merge 0", "'b0'")


def test_t02_t03_merges_of_unknown_tokens() -> None:
    refused(small(merges=[*MERGES, "zz a"]), "merge 5 'zz a'", "'zz'")
    refused(small(merges=[*MERGES, "a b"]), "merge 5 'a b'", "'ab'")


def test_t04_duplicate_merge() -> None:
    """The library takes the last (held to it in test_vocabularies), which decides what comes first."""
    file = tokenizer_json()
    file["model"]["merges"] = [*MERGES, MERGES[0]]
    assert parse(json.dumps(file), "").merges == [*MERGES[1:], MERGES[0]]


def test_t05_two_tokens_one_id_and_one_token_two_ids() -> None:
    v = small()
    refused(small(tokens=[*v.tokens, "a"], types=[*v.types, 1]), "'a'", "2 times")
    file = tokenizer_json()
    file["model"]["vocab"]["extra"] = 5
    refused(file, "id 5", "each once")
    file = tokenizer_json()
    file["added_tokens"].append({"id": 999, "content": "a"})
    refused(file, "'a'", "two ids")
    file = tokenizer_json()
    file["added_tokens"].append(file["added_tokens"][0] | {"content": "<other>"})
    refused(file, "id 261", "each once")


@pytest.mark.parametrize("id", [300, 4_000_000_000, -1, 1.5, True, "1", None])  # T06, T07, T09
def test_ids_must_be_0_to_n(id: Any) -> None:
    for where in ("vocab", "added"):
        file = tokenizer_json()
        if where == "vocab":
            file["model"]["vocab"]["extra"] = id
        else:
            file["added_tokens"].append({"id": id, "content": "extra"})
        refused(file, "tokenizer.json")


def test_t06_more_tokens_than_the_embedding_has_rows() -> None:
    refused(small(), "267 tokens", "260 rows", vocab_size=260)


@pytest.mark.parametrize("field", ["bos_id", "pad_id", "eos_ids"])
@pytest.mark.parametrize("id", [-1, 267])
def test_special_ids_out_of_range(field: str, id: int) -> None:
    refused(small(**{field: (id,) if field == "eos_ids" else id}), field[:3], str(id))


def test_t08_empty_tokens() -> None:
    v = small()
    refused(small(tokens=[*v.tokens, ""], types=[*v.types, 1]), "token 267 is empty")
    file = tokenizer_json()
    file["added_tokens"].append({"id": 265, "content": "", "special": True})
    refused(file, "empty")


def test_t10_merges_as_pairs_or_strings_or_missing() -> None:
    file = tokenizer_json()
    file["model"]["merges"] = [m.split(" ") for m in MERGES]
    text = " the é 12<|im_end|>"
    assert from_json(file).encode(text) == from_json(tokenizer_json()).encode(text) == SMALL.encode(text)
    del file["model"]["merges"]
    refused(file, "merges")
    refused(small(merges=["ab", *MERGES]), "merge 0 'ab' is not a pair")


def test_t11_another_algorithm() -> None:
    refused(small(model="llama"), "'llama'", "not supported")
    for kind in ("Unigram", "WordPiece", "WordLevel"):
        refused(tokenizer_json(model={"type": kind, "vocab": {}}), kind)


@pytest.mark.parametrize("option", [{"end_of_word_suffix": "x"}, {"dropout": 0.1}])
def test_options_of_bpe_that_qwen2_does_not_use(option: dict[str, Any]) -> None:
    file = tokenizer_json()
    file["model"] |= option
    refused(file, *option)


@pytest.mark.parametrize("pre", ["bloom", "default", "", "Qwen2"])
def test_t12_another_pre_tokenizer(pre: str) -> None:
    refused(small(pre=pre), repr(pre), "qwen2, deepseek-r1-qwen")


def test_the_r1_distills_pre_tokenizer_is_qwen2s() -> None:
    text = "it's 12 the\r\n  x"
    assert Tokenizer.from_vocabulary(small(pre="deepseek-r1-qwen")).encode(text) == SMALL.encode(text)


@pytest.mark.parametrize("regex", [r"(a+)+$", r"(a|aa)+$", r"\p{N}{1,3}", QWEN2_PATTERN + "|x"])
def test_t13_a_files_regex_is_never_run(regex: str) -> None:
    file = tokenizer_json()
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": regex}
    refused(file, "pre-tokenizer")


@pytest.mark.parametrize(
    "change", [{"pre_tokenizer": None}, {"pre_tokenizer": {"type": "Whitespace"}}, {"normalizer": {"type": "NFKC"}}]
)
def test_t12_other_parts_of_tokenizer_json(change: dict[str, Any]) -> None:
    refused(tokenizer_json(**change), "not supported")


def test_tokenizer_json_may_have_no_normaliser() -> None:
    """As DeepSeek's distillations have none; Transformers' Qwen2Tokenizer normalises all the same."""
    t = from_json(tokenizer_json(normalizer=None), vocab_size=300)
    assert t.encode("e\u0301") == t.encode("é")
    assert names(t, t.encode("<|im_end|>", special=True)) == ["<|im_end|>"] and t.vocab_size == 300


def test_deepseeks_turn_markers_are_control_tokens() -> None:
    """Their tokenizer.json does not call <｜User｜> special; in a user's own text it must be text all the same."""
    file = tokenizer_json()
    file["added_tokens"].append({"id": 265, "content": "<｜User｜>", "special": False})
    t = from_json(file)
    assert t.encode("<｜User｜>", special=True) == [265] and 265 not in t.encode("<｜User｜>")


def test_t18_byte_tokens_and_unknown_types() -> None:
    v = small()
    for token, type_ in (("<0x-1>", 6), ("<0xGG>", 6), ("<0x0A>", 7), ("xyz", 0)):
        refused(small(tokens=[*v.tokens, token], types=[*v.types, type_]), f"267 '{token}'", f"type {type_}")
    refused(small(types=v.types[:-1]), "266 token types for 267 tokens")
    t = Tokenizer.from_vocabulary(small(tokens=[*v.tokens, "<0xC3>", "<0xA9>"], types=[*v.types, 6, 6]))
    assert t.decode([267, 268]) == "é" and 267 not in t.encode("<0xC3>", special=True)


def test_a_byte_without_a_token_is_named_and_not_dropped() -> None:
    """SmolLM2's vocabulary lacks 21 bytes (0x04, 0x13, 0xF1 ...), and has all that its texts are made of."""
    v = small()
    t = Tokenizer.from_vocabulary(small(tokens=["zz" if t == "a" else t for t in v.tokens]))
    assert t.encode("the b 12") == Tokenizer.from_vocabulary(v).encode("the b 12")
    for text in ("bab", "<|im_end|>a"):
        with pytest.raises(BadInput, match="the text holds byte 0x61, of which this model has no token"):
            t.prompt_ids(text)


def test_a_control_token_of_one_character() -> None:
    v = small()
    t = Tokenizer.from_vocabulary(small(tokens=[*v.tokens, "€"], types=[*v.types, 3]))
    assert t.encode("a€", special=True) == [*t.encode("a"), 267] and 267 not in t.encode("a€")
    assert list(t.split("a€b")) == ["a", 267, "b"]
    chat = Chat([{"role": "user", "content": "€5"}])
    ids = chat_ids(t, "€{{ messages[0].content }}", chat)
    assert ids == [267, *t.encode("€5")]


def test_space_round_a_control_token_is_its_own() -> None:
    v = small()
    t = Tokenizer.from_vocabulary(small(flags={v.tokens.index("<|im_end|>"): ("lstrip", "rstrip")}))
    assert names(t, t.encode("a \n<|im_end|>\t b", special=True)) == ["a", "<|im_end|>", "b"]
    assert list(t.split("a \n<|im_end|>\t b<|im_start|> c")) == ["a", t.eos_ids[0], "b", t.eos_ids[0] - 1, " c"]
    assert t.decode(t.encode("a \n<|im_end|>\t b")) == "a \n<|im_end|>\t b"
