"""Text <-> ids: byte-level BPE with Qwen2's pre-tokenizer. The `tokenizers` library merges; the checks are here.

Control tokens (<|im_start|>) in a text are text unless the caller says otherwise.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..quant.errors import BadInput
from .files import Vocabulary
from .files.hf_tokenizer import QWEN2_PATTERN

# ggml's token types (gguf.TokenType).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp reads "deepseek-r1-qwen" as "qwen2" (llama-vocab.cpp), and Transformers loads the R1 distills with
# Qwen2Tokenizer (huggingface/transformers#48211).
PRE_TOKENIZERS = ("qwen2", "deepseek-r1-qwen")

# GPT-2's byte alphabet (bytes_to_unicode of openai/gpt-2): printable Latin-1 is itself, the rest goes on from U+0100.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}


class Tokens:
    """Ids -> text: all that an answer needs.

    vocab_size: ids that decode, padding rows included; eos_ids: those that end an answer.
    """

    def __init__(self, tokens: list[str], types: list[int], vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self.vocab_size, self.eos_ids = vocab_size, eos_ids
        self._tokens, self._types = tokens, types

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens spelled out, padding empty; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def stream(self) -> Callable[[int | None], str]:
        """A decoder for ids that come one by one; it holds back a character until it is whole.

        None ends the text, and returns what was held back. All pieces, joined, are `decode` of all ids.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda id: utf8.decode(b"", final=True) if id is None else utf8.decode(self.token_bytes(id))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that an id stands for; none for a padding row. Raises BadInput for an id out of range."""
        if not 0 <= id < self.vocab_size:
            raise BadInput(f"token id {id} is out of range: the vocabulary has ids 0 to {self.vocab_size - 1}")
        if id >= len(self._tokens) or self._types[id] == UNUSED:
            return b""
        token = self._tokens[id]
        if self._types[id] == NORMAL:
            try:
                return bytes([_BYTE[c] for c in token])
            except KeyError:  # not in the byte alphabet: itself, as in the tokenizers library
                pass
        return token.encode()

    def name(self, id: int) -> str:
        """The id's token as the file spells it ("Ġthe"), "[PAD n]" where the file has none, for tables and traces."""
        return self._tokens[id] if 0 <= id < len(self._tokens) else f"[PAD{id}]"


class Tokenizer(Tokens):
    """A vocabulary at work, both ways.

    bos_id, pad_id: as the file has them; add_bos: a raw prompt begins with bos_id; control: ids of control tokens.
    """

    def __init__(self, v: Vocabulary, vocab_size: int, nfc: bool):
        super().__init__(v.tokens, v.types, vocab_size, v.eos_ids)
        self.bos_id, self.pad_id, self.add_bos = v.bos_id, v.pad_id, v.add_bos
        self._ids = {token: id for id, token in enumerate(v.tokens)}
        _check(v, self._ids, vocab_size)
        self._bpe = _library_tokenizer(v, self._ids, nfc)
        self.control = {v.tokens[i]: i for i, t in enumerate(v.types) if t == CONTROL}
        longest = sorted(self.control, key=len, reverse=True)
        self._control: re.Pattern[str] | None = (
            re.compile(f"({'|'.join(map(re.escape, longest))})") if longest else None
        )

    @classmethod
    def from_vocabulary(cls, v: Vocabulary, vocab_size: int | None = None) -> Tokenizer:
        """The tokenizer that a model file describes; its tokenizer_json rules where there is one.

        vocab_size: the embedding's rows, where known; the ids between the last token and it are padding.
        Text is brought to NFC first: Qwen2's tokenizer.json says so, GGUF has no field for it.
        Raises BadInput, naming what is wrong: another algorithm or pre-tokenizer, ids and merges that do not fit.
        """
        nfc = True
        if v.tokenizer_json is not None:
            v, nfc = vocabulary_of_json(v, v.tokenizer_json)
        if v.model != "gpt2":
            raise BadInput(f"tokenizer: model {v.model!r:.80} is not supported, only byte-level BPE ('gpt2') is")
        if v.pre not in PRE_TOKENIZERS:
            raise BadInput(f"tokenizer: pre-tokenizer {v.pre!r:.80} is not supported, only {', '.join(PRE_TOKENIZERS)}")
        return cls(v, len(v.tokens) if vocab_size is None else vocab_size, nfc)

    def spelling(self) -> Tokens:
        """What spells its ids out, without the memory that encoding takes."""
        return Tokens(self._tokens, self._types, self.vocab_size, self.eos_ids)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text. special: control tokens in it count as such (what Hugging Face does unless told otherwise).

        User-defined tokens (<tool_call>) always do, as in Hugging Face and llama.cpp. Never adds BOS.
        """
        if not special:
            return self._encode_plain(text)
        ids: list[int] = []
        for part in self.split(text):
            ids += [part] if isinstance(part, int) else self._encode_plain(part)
        return ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a raw prompt, as Hugging Face's `tokenizer(text)`: control tokens count; BOS first if asked for."""
        return ([self.bos_id] if self.add_bos and self.bos_id is not None else []) + self.encode(text, special=True)

    def split(self, text: str) -> Iterator[int | str]:
        """A text cut at its control tokens: their ids, and the pieces of plain text between them."""
        pieces = self._control.split(text) if self._control else [text]
        for n, piece in enumerate(pieces):
            if piece:
                yield self._ids[piece] if n % 2 else piece

    def _encode_plain(self, text: str) -> list[int]:
        try:
            return self._bpe.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise BadInput(
                "the text is not Unicode: it holds half of a surrogate pair (was it read as UTF-8?)"
            ) from None


def _library_tokenizer(v: Vocabulary, ids: dict[str, int], nfc: bool) -> Any:
    from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    try:
        bpe = Library(models.BPE(vocab=ids, merges=[(a, b) for a, b in (m.split(" ") for m in v.merges)]))
    except Exception:  # the library says "Token `x` out of vocabulary", or less
        raise BadInput(f"tokenizer: {_bad_merge(v.merges, ids)}") from None
    if nfc:
        bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.add_tokens([AddedToken(v.tokens[i], normalized=False) for i, t in enumerate(v.types) if t == USER_DEFINED])
    return bpe


def _check(v: Vocabulary, ids: dict[str, int], vocab_size: int) -> None:
    """What the library would accept, and should not."""
    if len(v.types) != len(v.tokens):
        raise BadInput(f"tokenizer: {len(v.types)} token types for {len(v.tokens)} tokens")
    if len(v.tokens) > vocab_size:
        raise BadInput(f"tokenizer: {len(v.tokens)} tokens, but the embedding has {vocab_size} rows")
    if len(ids) != len(v.tokens):
        token, n = Counter(v.tokens).most_common(1)[0]
        raise BadInput(f"tokenizer: token {token!r:.80} stands {n} times in the vocabulary")
    if "" in ids:
        raise BadInput(f"tokenizer: token {ids['']} is empty")
    if other := set(v.types) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}:
        id = next(i for i, t in enumerate(v.types) if t in other)
        raise BadInput(
            f"tokenizer: token {id} {v.tokens[id]!r:.80} has type {v.types[id]}, which byte-level BPE does not know"
        )
    if lost := [b for c, b in _BYTE.items() if c not in ids]:  # the library would drop such bytes without a word
        raise BadInput(f"tokenizer: no token for {len(lost)} of the 256 bytes, the first 0x{min(lost):02X}")
    if len(set(v.merges)) != len(v.merges):
        raise BadInput(f"tokenizer: merge {Counter(v.merges).most_common(1)[0][0]!r:.80} stands twice")
    for field, special in [("bos", v.bos_id), ("pad", v.pad_id), *(("eos", id) for id in v.eos_ids)]:
        if special is not None and not 0 <= special < vocab_size:
            raise BadInput(f"tokenizer: {field} token id {special} is out of range (0 to {vocab_size - 1})")


def _bad_merge(merges: list[str], ids: dict[str, int]) -> str:
    for n, merge in enumerate(merges):
        pair = merge.split(" ")
        if len(pair) != 2:
            return f"merge {n} {merge!r:.80} is not a pair"
        for token in (*pair, "".join(pair)):
            if token not in ids:
                return f"merge {n} {merge!r:.80} needs the token {token!r:.80}, which is not in the vocabulary"
    return "the library refuses the merges"


def vocabulary_of_json(v: Vocabulary, text: str) -> tuple[Vocabulary, bool]:
    """The vocabulary that a tokenizer.json describes, and whether it normalises to NFC.

    A regex of the file is never run, only compared. Its post-processor (BOS) is not read; v.add_bos says it.
    """
    try:
        file = json.loads(text)
        model, added = file["model"], file.get("added_tokens") or []
        kind = model.get("type", "BPE")
        if kind != "BPE":
            raise BadInput(f"tokenizer.json: model {kind!r:.80} is not supported, only byte-level BPE is")
        for option in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(option):
                raise BadInput(f"tokenizer.json: model.{option} = {model[option]!r:.80} is not supported")
        ids, types = _ids_from_json(model["vocab"], added)
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    except BadInput:
        raise
    except RecursionError:
        raise BadInput("tokenizer.json: nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"tokenizer.json: not a tokenizer ({type(e).__name__}: {str(e)[:80]!r})") from None
    tokens = sorted(ids, key=ids.__getitem__)
    pre = "qwen2" if _is_qwen2(file.get("pre_tokenizer")) else "of tokenizer.json"
    return replace(v, tokens=tokens, types=types, merges=merges, model="gpt2", pre=pre), _is_nfc(file.get("normalizer"))


def _ids_from_json(vocab: dict[str, int], added: list[dict[str, Any]]) -> tuple[dict[str, int], list[int]]:
    ids, types = dict(vocab), dict.fromkeys(vocab, NORMAL)
    for a in added:
        token = a["content"]
        if type(token) is not str:
            raise BadInput(f"tokenizer.json: added token {token!r:.80} is no text")
        if any(a.get(flag) for flag in ("single_word", "lstrip", "rstrip")):
            raise BadInput(
                f"tokenizer.json: added token {token!r:.80} strips or wants whole words, which is not supported"
            )
        if ids.setdefault(token, a["id"]) != a["id"]:
            raise BadInput(f"tokenizer.json: token {token!r:.80} has two ids, {ids[token]} and {a['id']}")
        # DeepSeek's <｜User｜> is not marked special, and is a control token all the same (as for ggml's converter).
        types[token] = CONTROL if a.get("special") or re.fullmatch(r"<[|｜].*[|｜]>", token) else USER_DEFINED
    by_id = sorted(ids, key=ids.__getitem__)
    for id, token in enumerate(by_id):
        if type(ids[token]) is not int or ids[token] != id:
            raise BadInput(f"tokenizer.json: id {ids[token]} of token {token!r:.80}: ids must be 0 to n-1, each once")
    return ids, [types[token] for token in by_id]


def _is_qwen2(pre: Any) -> bool:
    """Split(QWEN2_PATTERN), then ByteLevel without a pattern of its own, spelled as the tokenizers library does."""
    if not isinstance(pre, dict) or pre.get("type") != "Sequence" or not isinstance(pre.get("pretokenizers"), list):
        return False
    want = [
        {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    steps = [p for p in pre["pretokenizers"] if isinstance(p, dict)]
    return [{k: v for k, v in p.items() if k != "trim_offsets"} for p in steps] == want and steps == pre[
        "pretokenizers"
    ]


def _is_nfc(normalizer: Any) -> bool:
    if normalizer == {"type": "NFC"}:
        return True
    if normalizer is None or normalizer == {"type": "Sequence", "normalizers": []}:
        return False
    raise BadInput(f"tokenizer.json: normalizer {str(normalizer)[:80]!r} is not supported, only NFC or none")
