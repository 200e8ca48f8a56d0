"""Text <-> ids: byte-level BPE, and SentencePiece's. The `tokenizers` library merges; the checks are here.

Control tokens (<|im_start|>) in a text are text unless the caller says otherwise. Which tokens are found in a text
before anything else, and what of the space round them they take, is the library's work too (AddedToken).
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...errors import BadInput
from ..files import sentencepiece
from ..files.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer
from ..files.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

# GPT-2's byte alphabet (bytes_to_unicode of openai/gpt-2): printable Latin-1 is itself, the rest goes on from U+0100.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE = {chr(b): b for b in _PRINTABLE} | {
    chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in _PRINTABLE)
}


_SPELLED_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Tokens:
    """Ids -> text: all that an answer needs.

    vocab_size: ids that decode, padding rows included; eos_ids: those that end an answer; spaces, strip: Vocabulary's;
    led: the ids of tokens that are spelled with a space before them.
    """

    def __init__(
        self,
        tokens: list[str],
        types: list[int],
        vocab_size: int,
        eos_ids: tuple[int, ...],
        spaces: str = "",
        strip: bool = False,
        led: frozenset[int] = frozenset(),
    ) -> None:
        self.vocab_size, self.eos_ids = vocab_size, eos_ids
        self._tokens, self._types = tokens, types
        self._spaces, self._strip, self._led = spaces, strip, led

    @classmethod
    def of(cls, v: Vocabulary, vocab_size: int) -> Tokens:
        """Those of a vocabulary."""
        return Tokens(v.tokens, v.types, vocab_size, v.eos_ids, v.spaces, v.strip, _led(v))

    @property
    def spells(self) -> bool:
        """Whether it has any token: without, each id's text is empty."""
        return bool(self._tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens spelled out, padding empty; bytes that are not UTF-8 become U+FFFD.

        The space that SentencePiece has before a text is no part of it.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._strip else text

    def text_of(self, id: int) -> str:
        """The text that one id adds to what is before it."""
        return self.token_bytes(id).decode("utf-8", errors="replace")

    def stream(self) -> Callable[[int | None], str]:
        """A decoder for ids that come one by one; it holds back a character until it is whole.

        None ends the text, and returns what was held back. All pieces, joined, are `decode` of all ids.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        at_start = self._strip

        def piece(id: int | None) -> str:
            nonlocal at_start
            text = utf8.decode(b"", final=True) if id is None else utf8.decode(self.token_bytes(id))
            if at_start and text:
                at_start, text = False, text.removeprefix(" ")
            return text

        return piece

    def token_bytes(self, id: int) -> bytes:
        """The bytes that an id stands for; none for a padding row. Raises BadInput for an id out of range."""
        if not 0 <= id < self.vocab_size:
            raise BadInput(f"token id {id} is out of range: the vocabulary has ids 0 to {self.vocab_size - 1}")
        if id >= len(self._tokens) or self._types[id] == UNUSED:
            return b""
        token = self._tokens[id]
        if self._types[id] == BYTE and _SPELLED_BYTE.fullmatch(token):
            return bytes.fromhex(token[3:5])
        if self._spaces:
            return (" " * (id in self._led) + token.replace(sentencepiece.SPACE, " ")).encode()
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

    bos_id, pad_id: as the file has them; prefix, suffix: what a raw prompt has before and behind its text's ids;
    control: the control tokens, spelling -> id.
    """

    def __init__(self, v: Vocabulary, vocab_size: int):
        super().__init__(v.tokens, v.types, vocab_size, v.eos_ids, v.spaces, v.strip, _led(v))
        self.bos_id, self.pad_id, self.prefix, self.suffix = v.bos_id, v.pad_id, v.prefix, v.suffix
        self._ids = {token: id for id, token in enumerate(v.tokens)}
        self._lost = _check(v, self._ids, vocab_size)
        self.control = {v.tokens[id]: id for id, type_ in enumerate(v.types) if type_ in (UNKNOWN, CONTROL)}
        self._bpe = _library_tokenizer(v, self._ids)
        inner = sentencepiece.SPACES[v.spaces].inner if v.spaces else None
        self._inner = _library_tokenizer(replace(v, spaces=inner), self._ids) if inner else None
        self._splitter, self._added = _library_splitter(v), [token.content for token in _added(v)]

    @classmethod
    def from_vocabulary(cls, v: Vocabulary, vocab_size: int | None = None) -> Tokenizer:
        """The tokenizer that a model file describes.

        vocab_size: the embedding's rows, where known; the ids between the last token and it are padding.
        Qwen2's text is brought to NFC first: its tokenizer.json says so, Transformers' Qwen2Tokenizer does so whatever
        the file says, GGUF has no field for it.
        Raises BadInput, naming what is wrong: another algorithm or pre-tokenizer, ids and merges that do not fit.
        """
        if v.model not in ("gpt2", sentencepiece.MODEL) or bool(v.spaces) != (v.model == sentencepiece.MODEL):
            raise BadInput(
                f"tokenizer: model {v.model!r:.80} is not supported, only byte-level and SentencePiece's BPE are"
            )
        if v.pre not in PRE_TOKENIZERS and not v.spaces:
            raise BadInput(f"tokenizer: pre-tokenizer {v.pre!r:.80} is not supported, only {', '.join(PRE_TOKENIZERS)}")
        return cls(v, len(v.tokens) if vocab_size is None else vocab_size)

    def spelling(self) -> Tokens:
        """What spells its ids out, without the memory that encoding takes."""
        return Tokens(self._tokens, self._types, self.vocab_size, self.eos_ids, self._spaces, self._strip, self._led)

    def encode(self, text: str, special: bool = False, start: bool = True) -> list[int]:
        """Ids of a text. special: control tokens in it count as such (what Hugging Face does unless told otherwise).

        User-defined tokens (<tool_call>) always do, as in Hugging Face and llama.cpp. Adds nothing round the text.
        start: it is a text's beginning, and not what follows a control token.
        Raises BadInput for a byte that has no token (SmolLM2's vocabulary lacks 21): the library would drop it without
        a word, and so would llama.cpp.
        """
        bpe = self._bpe if start or self._inner is None else self._inner
        bpe.encode_special_tokens = not special
        ids: list[int] = self._run(bpe, text).ids
        if self._lost and (lost := self._lost.intersection(bpe.normalizer.normalize_str(text).encode())):
            raise BadInput(f"the text holds byte 0x{min(lost):02X}, of which this model has no token; take it out")
        return ids

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of a raw prompt, as of `tokenizer(text)`: prefix and suffix round it; control tokens count."""
        return [*self.prefix, *self.encode(text, special=True), *self.suffix]

    def split(self, text: str) -> Iterator[int | str]:
        """A text cut at its control tokens: their ids, and the pieces of plain text between them."""
        found = self._run(self._splitter, text)
        at = 0
        for own, (start, end) in zip(found.ids, found.offsets, strict=True):
            if (id := self.control.get(self._added[own])) is not None:
                if at < start:
                    yield text[at:start]
                yield id
                at = end
        if at < len(text):
            yield text[at:]

    @staticmethod
    def _run(library: Any, text: str) -> Any:
        try:
            return library.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise BadInput(
                "the text is not Unicode: it holds half of a surrogate pair (was it read as UTF-8?)"
            ) from None


def _library_tokenizer(v: Vocabulary, ids: dict[str, int]) -> Any:
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    try:
        merges = [(a, b) for a, b in (m.split(" ") for m in v.merges)]
        bpe = Library(models.BPE(vocab=ids, merges=merges, ignore_merges=v.whole, byte_fallback=bool(v.spaces)))
    except Exception:  # the library says "Token `x` out of vocabulary", or less
        raise BadInput(f"tokenizer: {_bad_merge(v.merges, ids)}") from None
    settings = _settings(v)
    bpe.normalizer, bpe.pre_tokenizer = settings.normalizer, settings.pre_tokenizer
    bpe.add_tokens(_added(v))
    return bpe


def _settings(v: Vocabulary) -> Any:
    """A tokenizer without tokens that has the normalizer and the pre-tokenizer."""
    from tokenizers import Tokenizer as Library

    if v.spaces:
        steps = sentencepiece.normalizer(v.spaces), sentencepiece.pre_tokenizer(v.spaces)
    else:
        row = PRE_TOKENIZERS[v.pre]
        steps = {"type": "NFC"} if row.nfc else {"type": "Sequence", "normalizers": []}, pre_tokenizer(row)
    plain = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Library.from_str(json.dumps(plain | dict(zip(("normalizer", "pre_tokenizer"), steps, strict=True))))


def _library_splitter(v: Vocabulary) -> Any:
    """Finds the added tokens, with the library's own rules, and drops all other text."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    found = Library(models.BPE())
    found.normalizer = _settings(v).normalizer
    found.add_tokens(_added(v))
    return found


def _led(v: Vocabulary) -> frozenset[int]:
    """Added tokens that the library looks for in normalized text, and so spells as the normalizer does."""
    return frozenset(i for i, said in v.flags.items() if v.spaces == "prepend" and "normalized" in said)


def _added(v: Vocabulary) -> list[Any]:
    from tokenizers import AddedToken

    return [
        AddedToken(
            v.tokens[i], special=t != USER_DEFINED, **{"normalized": False} | dict.fromkeys(v.flags.get(i, ()), True)
        )
        for i, t in enumerate(v.types)
        if t in (UNKNOWN, CONTROL, USER_DEFINED)
    ]


def _check(v: Vocabulary, ids: dict[str, int], vocab_size: int) -> frozenset[int]:
    """What the library would accept, and should not. The bytes that have no token."""
    if len(v.types) != len(v.tokens):
        raise BadInput(f"tokenizer: {len(v.types)} token types for {len(v.tokens)} tokens")
    if len(v.tokens) > vocab_size:
        raise BadInput(f"tokenizer: {len(v.tokens)} tokens, but the embedding has {vocab_size} rows")
    if len(ids) != len(v.tokens):
        token, n = Counter(v.tokens).most_common(1)[0]
        raise BadInput(f"tokenizer: token {token!r:.80} stands {n} times in the vocabulary")
    if "" in ids:
        raise BadInput(f"tokenizer: token {ids['']} is empty")
    for id, type_ in enumerate(v.types):
        if not NORMAL <= type_ <= BYTE or (type_ == BYTE and not _SPELLED_BYTE.fullmatch(v.tokens[id])):
            raise BadInput(f"tokenizer: token {id} {v.tokens[id]!r:.80} can not be of type {type_}")
    byte = {token: b for b, token in enumerate(sentencepiece.BYTES)} if v.spaces else _BYTE
    lost = frozenset(b for c, b in byte.items() if c not in ids)
    if lost and v.spaces:  # which are what any other text falls back to
        raise BadInput(f"tokenizer: no token for {len(lost)} of the 256 bytes, the first 0x{min(lost):02X}")
    for field, special in [("bos", v.bos_id), ("pad", v.pad_id), *(("eos", id) for id in v.eos_ids)]:
        if special is not None and not 0 <= special < vocab_size:
            raise BadInput(f"tokenizer: {field} token id {special} is out of range (0 to {vocab_size - 1})")
    return lost


def _bad_merge(merges: list[str], ids: dict[str, int]) -> str:
    for n, merge in enumerate(merges):
        pair = merge.split(" ")
        if len(pair) != 2:
            return f"merge {n} {merge!r:.80} is not a pair"
        for token in (*pair, "".join(pair)):
            if token not in ids:
                return f"merge {n} {merge!r:.80} needs the token {token!r:.80}, which is not in the vocabulary"
    return "the library refuses the merges"
