"""The tokenizer beside Hugging Face weights: tokenizer.json, tokenizer_config.json, chat_template.jinja."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...quant.errors import BadInput
from . import Vocabulary
from .mapped import read_head
from .strict_json import parse_object

MAX_BYTES = 100_000_000  # Qwen's tokenizer.json has 7 to 11 million

# The Split pattern of Qwen2's tokenizer.json, which ggml calls the pre-tokenizer "qwen2".
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; {} where there is none."""
    return parse_object(_read(path), str(path)) if path.exists() else {}


def read_vocabulary(folder: Path, config: Mapping[str, Any], rows: int) -> Vocabulary | None:
    """The Vocabulary of a folder, None without tokenizer.json. config: config.json's content; rows: of the embedding.

    tokenizer_json rules (engine/tokenizer.py reads it): tokens, merges and types stay empty. An answer ends where
    transformers' `generate` ends it: at generation_config's eos ids, else config's, else the tokenizer's eos token.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    text, settings = _text(path), read_object(folder / "tokenizer_config.json")

    def check(field: str, i: Any) -> int:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < rows:
            raise BadInput(f"{folder}: {field} {i!r:.40} is no token id; the embedding has rows 0 to {rows - 1}")
        return i

    def token_id(name: str) -> int | None:
        """By the id in config.json, else by the spelling in tokenizer_config.json. -1 is none (Transformers warns)."""
        if type(config.get(f"{name}_token_id")) is int and config[f"{name}_token_id"] == -1:
            return None
        if config.get(f"{name}_token_id") is not None:
            return check(f"{name}_token_id", config[f"{name}_token_id"])
        spelled = settings.get(f"{name}_token")
        spelled = spelled.get("content") if isinstance(spelled, dict) else spelled
        added = parse_object(text.encode(), str(path)).get("added_tokens") if spelled is not None else None
        ids = [a.get("id") for a in added or [] if isinstance(a, dict) and a.get("content") == spelled]
        return check(f"{name}_token", ids[0]) if ids else None

    said = read_object(folder / "generation_config.json").get("eos_token_id") or config.get("eos_token_id")
    ends = said if isinstance(said, list) else [token_id("eos") if said is None else said]
    ends = [None if type(i) is int and i == -1 else i for i in ends]
    return Vocabulary(
        tokens=[],
        merges=[],
        types=[],
        model="gpt2",
        pre="",
        bos_id=token_id("bos"),
        eos_ids=tuple(check("eos_token_id", i) for i in ends if i is not None),
        pad_id=token_id("pad"),
        add_bos=settings.get("add_bos_token") is True,
        chat_template=_chat_template(folder, settings),
        tokenizer_json=text,
    )


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The file of its own rules, as in transformers; of a list of named templates, the one named default."""
    if (folder / "chat_template.jinja").exists():
        return _text(folder / "chat_template.jinja")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}.get("default")
    if template is not None and not isinstance(template, str):
        raise BadInput(f"{folder / 'tokenizer_config.json'}: chat_template must be text")
    return template


def last_used(v: Vocabulary) -> int:
    """The last id that is a token; rows behind it are padding, which has no name of its own."""
    return max((i for i, kind in enumerate(v.types) if kind != 5), default=-1)


def tokenizer_json(v: Vocabulary) -> str:
    """A tokenizer.json for a byte-level BPE of Qwen2's kind: the model's own, or one made from its parts."""
    if v.tokenizer_json is not None:
        return v.tokenizer_json
    used = last_used(v) + 1
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": v.tokens[i], **added, "special": v.types[i] == 3}
                for i in range(used)
                if v.types[i] in (3, 4)
            ],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {v.tokens[i]: i for i in range(used) if v.types[i] not in (3, 4)},
                "merges": v.merges,
            },
        },
        ensure_ascii=False,
    )


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 at byte {error.start}") from None


def _read(path: Path) -> bytes:
    raw = read_head(path, MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise BadInput(f"{path}: larger than {MAX_BYTES} bytes")
    return raw
