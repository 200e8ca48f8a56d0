"""tokenizer.model, which SentencePiece's trainer writes: a protobuf (google/sentencepiece, sentencepiece_model.proto).

Read are the pieces and what is done to a text; of other fields protobuf wants to be left alone. What Transformers makes
of it where a folder has no tokenizer.json: LlamaTokenizer merges by the pieces' ids and asks for nothing else (see
hf_tokenizer.py); any other class by their scores, and does with spaces what the file says.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import BadInput
from . import sentencepiece
from .tokenizer_json import Parts
from .vocabulary import BYTE, NORMAL, USER_DEFINED

MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "words", 4: "characters"}

Value = int | bytes  # of a varint or four or eight bytes little-endian; of what has a length


@dataclass(frozen=True, slots=True)
class Model:
    """pieces: (text, score, ggml's type) by id; prefix: a space is put before a text; named: bos_token ... -> piece."""

    pieces: list[tuple[str, float, int]]
    prefix: bool
    named: dict[str, str]

    def parts(self, by_id: bool, legacy: bool, where: str) -> Parts:
        """by_id: merged as LlamaTokenizer has it; legacy: a space is put behind added tokens, too.

        Raises BadInput for user-defined pieces where it is not LlamaTokenizer: Transformers cuts them out by a regex.
        """
        texts = [text for text, _, _ in self.pieces]
        types = [kind for _, _, kind in self.pieces]
        if by_id:
            order = [text for text, _, kind in self.pieces if kind in (NORMAL, USER_DEFINED)]
        else:
            if USER_DEFINED in types:
                piece = texts[types.index(USER_DEFINED)]
                raise BadInput(
                    f"{where}: its user-defined pieces ({piece!r:.40}) are not supported without tokenizer.json"
                )
            normal = [(-score, i) for i, (_, score, kind) in enumerate(self.pieces) if kind == NORMAL]
            order = [texts[i] for _, i in sorted(normal)]
        spaces = "plain" if not self.prefix else "doubled" if legacy else "replaced first"
        return Parts(
            tokens=texts,
            merges=sentencepiece.merges_in(order),
            types=types,
            flags={},
            pre=sentencepiece.PRE,
            model=sentencepiece.MODEL,
            spaces=spaces,
            strip=self.prefix,
        )


def read(raw: bytes, where: str, rows: int) -> Model:
    """The model. rows: of the embedding; there can not be more pieces.

    Raises BadInput that begins with `where` for what is no such file, is another algorithm than BPE with bytes, or
    does more to a text than Llama's and Mistral's do.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer, normalizer = dict[int, Value](), dict[int, Value]()
    for number, value in _fields(raw, where):
        if number == 1:
            if len(pieces) == rows:
                raise BadInput(f"{where}: has more pieces than the embedding has rows, {rows}")
            pieces.append(_piece(_message(value, where), len(pieces), where))
        elif number in (2, 3):
            (trainer if number == 2 else normalizer).update(_fields(_message(value, where), where))
    if not pieces:
        raise BadInput(f"{where}: not a SentencePiece model: it has no pieces")
    kind = trainer.get(3, 1)
    if kind != 2:
        said = MODEL_TYPES.get(kind, kind) if isinstance(kind, int) else kind
        raise BadInput(f"{where}: its algorithm is {said!r:.20}; of SentencePiece's only BPE is supported")
    for what, wrong in (
        ("has no byte_fallback", not trainer.get(35, 0)),
        ("has treat_whitespace_as_suffix", bool(trainer.get(24, 0))),
        ("normalizes text (precompiled_charsmap)", bool(normalizer.get(2, b""))),
        ("has remove_extra_whitespaces", bool(normalizer.get(4, 1))),
        ("does not have escape_whitespaces", not normalizer.get(5, 1)),
    ):
        if wrong:
            raise BadInput(f"{where}: it {what}, which is not supported; a tokenizer.json beside it may be")
    named = {}
    for name, id_at, piece_at, usual, text in (
        ("unk_token", 40, 45, 0, "<unk>"),
        ("bos_token", 41, 46, 1, "<s>"),
        ("eos_token", 42, 47, 2, "</s>"),
    ):
        id, piece = trainer.get(id_at, usual), trainer.get(piece_at, text.encode())
        if isinstance(id, int) and id < 1 << 31:  # a negative one is there for none
            named[name] = _text(_message(piece, where), where)
    return Model(pieces, bool(normalizer.get(3, 1)), named)


def _piece(raw: bytes, number: int, where: str) -> tuple[str, float, int]:
    said = dict(_fields(raw, where))
    text = _text(_message(said.get(1, b""), where), where)
    bits, kind = said.get(2, 0), said.get(3, NORMAL)
    if not isinstance(bits, int) or not isinstance(kind, int) or not NORMAL <= kind <= BYTE or bits >> 32:
        raise BadInput(f"{where}: piece {number} {text!r:.40} is no piece of SentencePiece's")
    score = float(struct.unpack("<f", struct.pack("<I", bits))[0])
    if not math.isfinite(score):
        raise BadInput(f"{where}: piece {number} {text!r:.40} has the score {score}")
    if len(text) > sentencepiece.LONGEST:
        raise BadInput(
            f"{where}: piece {number} has {len(text)} characters; up to {sentencepiece.LONGEST} are supported"
        )
    return text, score, kind


def _fields(raw: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """The fields of a message, in their order. Nothing in it is followed further: a message in it is bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at, where)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(raw, at, where)
            yield number, value
            continue
        size = 0
        if wire == 2:
            size, at = _varint(raw, at, where)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise BadInput(f"{where}: not a SentencePiece model: a field of wire type {wire}")
        if number == 0 or size > len(raw) - at:
            raise BadInput(f"{where}: not a SentencePiece model: field {number} goes past the end of what it is in")
        data = raw[at : at + size]
        at += size
        yield number, data if wire == 2 else int.from_bytes(data, "little")


def _varint(raw: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, at + n + 1
    raise BadInput(f"{where}: not a SentencePiece model: a number in it does not end")


def _message(value: Value, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise BadInput(f"{where}: not a SentencePiece model: a number is where a message or text should be")
    return value


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{where}: a piece in it is not UTF-8") from None
