"""tokenizer.json, the file of Hugging Face's tokenizers library: read into plain typed parts, and written from them.

What it means is what Transformers 5 makes of it. For a model of type qwen2, AutoTokenizer is Qwen2Tokenizer whatever
tokenizer_config.json names (models/auto/tokenization_auto.py): vocabulary, merges, added tokens and post-processor are
the file's, normalizer (NFC) and pre-tokenizer are Qwen2's own. A file that leaves the normalizer out, as DeepSeek's
distillations do, gets NFC all the same; a file that says something else is refused. Of other models the file is read
as it stands. A regex of the file is never run, only compared (pre_tokenizers.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...errors import BadInput
from . import sentencepiece
from .end_of_generation import CONTROL_TEXTS
from .fields import Fields
from .pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer, recognised
from .strict_json import parse_object
from .vocabulary import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is found in the text before anything else is done to it. flags: those of FLAGS that are true."""

    content: str
    special: bool
    flags: tuple[str, ...] = ()

    @property
    def type(self) -> int:
        """ggml's. DeepSeek's <｜User｜> is not marked special, and is a control token all the same, as for ggml."""
        looks = re.fullmatch(r"<[|｜].*[|｜]>", self.content) or self.content in CONTROL_TEXTS
        return CONTROL if self.special or looks else USER_DEFINED


@dataclass(frozen=True, slots=True)
class Parts:
    """A BPE; the fields are those of Vocabulary. nfc: the file brings the text to NFC."""

    tokens: list[str]
    merges: list[str]
    types: list[int]
    flags: dict[int, tuple[str, ...]]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    pre: str = "qwen2"
    whole: bool = False
    nfc: bool = False
    model: str = "gpt2"
    spaces: str = ""
    strip: bool = False


def parse(text: str, where: str) -> Parts:
    """What the file says. Raises BadInput, beginning with `where`, for what is no tokenizer, or none of this kind."""
    file = Fields(parse_object(text.encode("utf-8", "surrogatepass"), where), where)
    model = file.object("model")
    if model is None:
        raise BadInput(f"{where}: not a tokenizer: it has no model")
    kind = model.text("type") or "BPE"
    if kind != "BPE":
        raise BadInput(f"{where}: model {kind!r:.80} is not supported, only byte-level and SentencePiece's BPE are")
    # unk_token and fuse_unk are for bytes without a token, of which there are none here.
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.values.get(option):
            raise BadInput(f"{where}: model.{option} = {model.values[option]!r:.80} is not supported")
    cut = _steps(file.object("pre_tokenizer"), "pretokenizers")
    if model.flag("byte_fallback") and not any(step.get("type") == "ByteLevel" for step in cut):
        pre, nfc, (spaces, strip) = sentencepiece.PRE, False, _spaces(file)
    else:
        pre, nfc, (spaces, strip) = _pre_tokenizer(file), _normalizes(file.object("normalizer")), ("", False)
        if nfc and not PRE_TOKENIZERS[pre].nfc:
            raise BadInput(f"{where}: normalizer 'NFC' before the pre-tokenizer of {pre} is not supported, only none")
    vocab, merges = model.object("vocab"), model.array("merges")
    if vocab is None or merges is None:
        raise BadInput(f"{where}: model.{'vocab' if vocab is None else 'merges'} is missing")
    added: dict[int, Added] = {}
    for f in file.objects("added_tokens"):
        i, token = read_id(f), added_token(f)
        if added.setdefault(i, token) != token:
            raise BadInput(f"{f.where}: id {i} is another added token's too; ids must be 0 to n-1, each once")
    parts = assemble(vocab.values, _merges(merges, where), added, where)
    prefix, suffix = _template(file.object("post_processor"))
    for i in (*prefix, *suffix):
        if i >= len(parts.tokens):
            raise BadInput(f"{where}: post_processor adds id {i}; ids are 0 to {len(parts.tokens) - 1}")
    whole = bool(model.flag("ignore_merges"))
    parts = replace(parts, prefix=prefix, suffix=suffix, pre=pre, whole=whole, nfc=nfc, spaces=spaces, strip=strip)
    if not spaces:
        return parts
    return replace(parts, model=sentencepiece.MODEL, types=sentencepiece.with_bytes(parts.tokens, parts.types))


def read_id(f: Fields) -> int:
    i = f.whole("id")
    if i is None or i < 0:
        raise f.bad("id", "a token id")
    return i


def added_token(f: Fields) -> Added:
    """An entry of added_tokens, of added_tokens_decoder, or a special token that is spelled as an object."""
    content = f.text("content")
    if content is None:
        raise f.bad("content", "text")
    special = bool(f.flag("special"))
    said = {flag: f.flag(flag) for flag in FLAGS}
    if said["normalized"] is None:
        said["normalized"] = not special  # the library's own default
    return Added(content, special, tuple(flag for flag in FLAGS if said[flag]))


def assemble(vocab: Mapping[str, Any], merges: list[str], added: Mapping[int, Added], where: str) -> Parts:
    """The parts out of the model's tokens and the added ones. Raises BadInput unless ids are 0 to n-1, each once."""
    ids: dict[str, Any] = dict(vocab)
    types = dict.fromkeys(ids, NORMAL)
    flags: dict[int, tuple[str, ...]] = {}
    for i, a in added.items():
        if ids.setdefault(a.content, i) != i:
            raise BadInput(f"{where}: token {a.content!r:.80} has two ids, {ids[a.content]!r:.40} and {i}")
        types[a.content] = a.type
        if a.flags:
            flags[i] = a.flags
    for token, i in ids.items():
        if type(i) is not int:
            raise BadInput(f"{where}: id {i!r:.40} of token {token!r:.80}: ids must be 0 to n-1, each once")
    tokens = sorted(ids, key=ids.__getitem__)
    for n, token in enumerate(tokens):
        if ids[token] != n:
            raise BadInput(f"{where}: id {ids[token]} of token {token!r:.80}: ids must be 0 to n-1, each once")
    merges = list(dict.fromkeys(reversed(merges)))[::-1]  # of a merge that stands twice, the library takes the last
    return Parts(tokens, merges, [types[token] for token in tokens], flags)


def with_added(parts: Parts, added: Mapping[int, Added], where: str) -> Parts:
    """The parts with more added tokens, or with what these say of those that are there."""
    tokens, types, flags = list(parts.tokens), list(parts.types), dict(parts.flags)
    for i, a in sorted(added.items()):
        if i == len(tokens):
            tokens.append(a.content)
            types.append(a.type)
        elif i > len(tokens) or tokens[i] != a.content:
            raise BadInput(f"{where}: token {a.content!r:.80} is no. {i} here, and not in the tokenizer's vocabulary")
        types[i] = a.type
        flags.pop(i, None)
        if a.flags:
            flags[i] = a.flags
    return replace(parts, tokens=tokens, types=types, flags=flags)


def _merges(merges: list[Any], where: str) -> list[str]:
    """As "left right"; newer files have pairs."""
    found = []
    for n, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) and " " not in t for t in pair):
            raise BadInput(f"{where}: merge {n} {merge!r:.80} is not a pair of tokens")
        found.append(f"{pair[0]} {pair[1]}")
    return found


def _pre_tokenizer(file: Fields) -> str:
    """ggml's name of it. Raises BadInput for one that is none of ours."""
    pre = file.object("pre_tokenizer")
    steps = [] if pre is None else pre.objects("pretokenizers") if pre.text("type") == "Sequence" else [pre]
    if (name := recognised([dict(s.values) for s in steps])) is None:
        said = file.values.get("pre_tokenizer")
        names = ", ".join(PRE_TOKENIZERS)
        raise BadInput(f"{file.where}: its pre-tokenizer is not supported, only those of {names} are: {said!r:.80}")
    return name


def _steps(said: Fields | None, inner: str) -> list[dict[str, Any]]:
    """A normalizer's, pre-tokenizer's or decoder's steps, those of sequences in their places."""
    if said is None:
        return []
    if said.text("type") != "Sequence":
        return [dict(said.values)]
    return [step for one in said.objects(inner) for step in _steps(one, inner)]


def _spaces(file: Fields) -> tuple[str, bool]:
    """Vocabulary's spaces and strip. Raises BadInput for a file with byte_fallback that does anything else to text."""
    normalizer, pre = file.object("normalizer"), file.object("pre_tokenizer")
    spaces = sentencepiece.recognised(_steps(normalizer, "normalizers"), _steps(pre, "pretokenizers"))
    if spaces is None:
        said = [f.values for f in (normalizer, pre) if f is not None]
        ways = "Prepend and Replace, or Metaspace with prepend_scheme and without split"
        raise BadInput(f"{file.where}: of what byte_fallback comes with only {ways} are supported: {said!r:.160}")
    strip = sentencepiece.strips(_steps(file.object("decoder"), "decoders"))
    if strip is None:
        ways = "Replace, ByteFallback, Fuse, and Strip of one space"
        raise BadInput(f"{file.where}: decoder: only {ways} are supported: {file.values.get('decoder')!r:.160}")
    return spaces, strip


def _normalizes(normalizer: Fields | None) -> bool:
    """Whether it is NFC. Raises BadInput for another one than that or none."""
    if normalizer is None:
        return False
    kind = normalizer.text("type")
    if kind == "Sequence":
        return any([_normalizes(step) for step in normalizer.objects("normalizers")])
    if kind != "NFC":
        raise BadInput(f"{normalizer.where} {kind!r:.80} is not supported, only NFC or none")
    return True


def _template(processor: Fields | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and behind a single text's."""
    if processor is None:
        return (), ()
    kind = processor.text("type")
    if kind == "ByteLevel":  # moves offsets only
        return (), ()
    if kind == "Sequence":
        found = [_template(step) for step in processor.objects("processors")]
        adding = [template for template in found if template != ((), ())]
        if len(adding) > 1:  # the library itself stops at the second
            raise BadInput(f"{processor.where}: {len(adding)} of its steps add tokens; one may")
        return adding[0] if adding else ((), ())
    if kind in ("RobertaProcessing", "BertProcessing"):
        return _pair(processor, "cls"), _pair(processor, "sep")
    if kind != "TemplateProcessing":
        raise BadInput(f"{processor.where} {kind!r:.80} is not supported")
    around: tuple[list[int], list[int]] = ([], [])
    texts = 0
    special = processor.object("special_tokens") or Fields({}, processor.where)
    for piece in processor.objects("single"):
        if (sequence := piece.object("Sequence")) is not None:
            texts += sequence.text("id") == "A"
            if sequence.text("id") != "A":
                raise BadInput(f"{piece.where}: a single text is A, and no other")
        elif (token := piece.object("SpecialToken")) is not None:
            name = token.text("id")
            entry = special.object(name) if name is not None else None
            if entry is None or any(i < 0 for i in _whole(entry, "ids")):
                raise BadInput(f"{piece.where}: its ids are not in special_tokens")
            around[min(texts, 1)].extend(_whole(entry, "ids"))
        else:
            raise BadInput(f"{piece.where}: is neither Sequence nor SpecialToken")
    if texts != 1:
        raise BadInput(f"{processor.where}: single holds the text {texts} times; only once is supported")
    return tuple(around[0]), tuple(around[1])


def _whole(f: Fields, name: str) -> list[int]:
    found = f.array(name)
    if not found or not all(type(i) is int for i in found):
        raise f.bad(name, "a list of token ids")
    return found


def _pair(f: Fields, name: str) -> tuple[int, ...]:
    """[text, id]"""
    said = f.array(name)
    if said is None or len(said) != 2 or type(said[1]) is not int or said[1] < 0:
        raise f.bad(name, "a token and its id")
    return (said[1],)


def last_used(v: Vocabulary) -> int:
    """The last id that is a token; rows behind it are padding, which has no name of its own."""
    return max((i for i, kind in enumerate(v.types) if kind != UNUSED), default=-1)


def spell(v: Vocabulary) -> str:
    """A tokenizer.json: the model's own, or one made from its parts."""
    if v.tokenizer_json is not None:
        return v.tokenizer_json
    used = last_used(v) + 1
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [i for i in range(used) if v.types[i] not in (NORMAL, UNUSED, BYTE)]
    plain: Iterable[int]
    steps: dict[str, Any]
    if v.model == sentencepiece.MODEL:  # whose added tokens have ids among those of the model
        plain = range(used)
        steps = {
            "normalizer": sentencepiece.normalizer(v.spaces),
            "pre_tokenizer": sentencepiece.pre_tokenizer(v.spaces),
            "post_processor": _post_processor(v),
            "decoder": sentencepiece.decoder(v.strip),
        }
    else:
        plain = [i for i in range(used) if v.types[i] in (NORMAL, UNUSED)]
        steps = {
            "normalizer": {"type": "NFC"} if PRE_TOKENIZERS[v.pre].nfc else None,
            "pre_tokenizer": pre_tokenizer(PRE_TOKENIZERS[v.pre]),
            "post_processor": _post_processor(v, byte_level),
            "decoder": byte_level,
        }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": v.tokens[i]}
                | {flag: flag in v.flags.get(i, ()) for flag in FLAGS}
                | {"special": v.types[i] != USER_DEFINED}
                for i in added
            ],
            **steps,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": v.model == sentencepiece.MODEL,
                "byte_fallback": v.model == sentencepiece.MODEL,
                "ignore_merges": v.whole,
                "vocab": {v.tokens[i]: i for i in plain},
                "merges": v.merges,
            },
        },
        ensure_ascii=False,
    )


def _post_processor(v: Vocabulary, byte_level: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """ByteLevel, as Qwen2 has it, and behind it what adds prefix and suffix."""
    if not v.prefix and not v.suffix:
        return None if byte_level is None else dict(byte_level)

    def pieces(ids: Iterable[int], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": v.tokens[i], "type_id": type_id}} for i in ids]

    def single(name: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": type_id}}
        return [*pieces(v.prefix, type_id), text, *pieces(v.suffix, type_id)]

    template = {
        "type": "TemplateProcessing",
        "single": single("A", 0),
        "pair": [*single("A", 0), *single("B", 1)],
        "special_tokens": {
            v.tokens[i]: {"id": v.tokens[i], "ids": [i], "tokens": [v.tokens[i]]} for i in (*v.prefix, *v.suffix)
        },
    }
    return template if byte_level is None else {"type": "Sequence", "processors": [dict(byte_level), template]}
