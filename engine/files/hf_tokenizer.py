"""The tokenizer beside Hugging Face weights: tokenizer.json, or vocab.json and merges.txt; what lies beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadInput
from ..models import meant
from ..models.architecture import Architecture
from . import sentencepiece_model
from .end_of_generation import by_text, ends
from .fields import Fields, one
from .mapped import read_head
from .pre_tokenizers import PRE_TOKENIZERS
from .strict_json import parse_object
from .tokenizer_json import Added, Parts, added_token, assemble, parse, with_added
from .vocabulary import BYTE, CONTROL, NORMAL, Vocabulary

MAX_BYTES = 100_000_000  # Qwen's tokenizer.json has 7 to 11 million
TOKENIZER, VOCAB, MERGES, SENTENCEPIECE = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"
LLAMAS = ("LlamaTokenizer", "LlamaTokenizerFast")  # Transformers' classes, as files name them
AS_IT_STANDS = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
SETTINGS, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
QWEN2_DEFAULTS = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
LLAMA_DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; {} where there is none."""
    return parse_object(_read(path), str(path)) if path.exists() else {}


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json; {} where it is not there or has no byte, which Transformers takes for the same."""
    path = folder / GENERATION
    return parse_object(raw, str(path)) if path.exists() and (raw := _read(path)) else {}


def read_vocabulary(folder: Path, config: Mapping[str, Any], rows: int) -> Vocabulary | None:
    """The Vocabulary of a folder, None without a tokenizer. config: config.json's content; rows: of the embedding.

    What AutoTokenizer of Transformers 5 makes of the files: with tokenizer.json, its post-processor alone says what is
    put round a prompt; without, add_bos_token and add_eos_token do. An answer ends where `generate` or llama.cpp ends
    it. Raises BadInput that names the file.
    """
    settings = Fields(read_object(folder / SETTINGS), str(folder / SETTINGS))
    a = meant(config.get("model_type"))
    qwen2 = a is None or a.tokenizer_class == "Qwen2Tokenizer"  # which has its own way, whatever the files say
    text = _text(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None
    own = None if text is None else parse(text, str(folder / TOKENIZER))
    llama = own is not None and bool(own.spaces) and _is_llamas(a, settings, config, str(folder / TOKENIZER))
    model = None
    if text is None and not (folder / VOCAB).exists() and (folder / SENTENCEPIECE).exists():
        where = str(folder / SENTENCEPIECE)
        llama = _is_llamas(a, settings, config, where)
        model = sentencepiece_model.read(_read(folder / SENTENCEPIECE), where, rows)
    defaults = QWEN2_DEFAULTS if qwen2 else LLAMA_DEFAULTS if llama else model.named if model else {}
    named = _named(folder, settings, defaults)
    if model is not None:
        parts = model.parts(llama, settings.flag("legacy") is not False, where)
        parts = with_added(_with_spaces(parts, settings) if llama else parts, _decoder(settings), settings.where)
    elif own is not None:
        parts = with_added(own, _decoder(settings), settings.where)
        if llama:
            parts = _as_llamas(parts, settings)
        elif not own.spaces:
            _check_pre_tokenizer(own, qwen2, str(folder / TOKENIZER))
    elif (folder / VOCAB).exists() and (folder / MERGES).exists():
        if a is not None and not qwen2:
            why = f"which pre-tokenizer a {a.title} model has, only tokenizer.json says"
            raise BadInput(f"{folder / VOCAB}: {why}; give token ids, as --tokens 1,2,3, instead of text")
        parts = _read_parts(folder, settings, named.values())
    else:
        return None
    for option in ("add_prefix_space", "split_special_tokens"):
        if settings.flag(option) and not (option == "add_prefix_space" and parts.spaces):
            raise BadInput(f"{settings.where}: {option} is true, which is not supported")
    parts, tokenizer_ids = _with_special(parts, named, qwen2)
    c = Fields(config, str(folder / "config.json"))
    generation = Fields(read_generation_config(folder), str(folder / GENERATION))

    def checked(ids: list[int], what: str) -> list[int]:
        for i in ids:
            if i >= rows:
                raise BadInput(f"{what}: {i} is no token id; the embedding has rows 0 to {rows - 1}")
        return ids

    def token_id(name: str) -> int | None:
        """The tokenizer's own, else config.json's."""
        said = checked(c.ids(f"{name}_token_id"), f"{c.where}: {name}_token_id")
        own = tokenizer_ids.get(f"{name}_token")
        return own if own is not None else said[0] if said else None

    eos = tokenizer_ids.get("eos_token")
    ending = [("tokenizer_config.json's eos_token", eos)] if eos is not None else []
    stops = stop_ids(config, generation.values)
    checked([i for _, i in stops], str(folder))
    end = ends([*ending, *stops], by_text(parts.tokens), {})
    prefix, suffix = parts.prefix, parts.suffix
    templates = _chat_templates(folder, settings)
    if text is None:
        prefix = _asked(settings, "add_bos_token", tokenizer_ids.get("bos_token"))
        suffix = _asked(settings, "add_eos_token", eos)
    return Vocabulary(
        tokens=parts.tokens,
        merges=parts.merges,
        types=parts.types,
        model=parts.model,
        pre=parts.pre,
        whole=parts.whole,
        spaces=parts.spaces,
        strip=parts.strip,
        bos_id=token_id("bos"),
        eos_ids=tuple(end),
        eos_from=tuple(end.values()),
        pad_id=token_id("pad"),
        prefix=prefix,
        suffix=suffix,
        flags=parts.flags,
        chat_template=templates.pop("default", None),
        other_templates=templates,
        tokenizer_json=text if parts == own else None,
    )


def _is_llamas(a: Architecture | None, settings: Fields, config: Mapping[str, Any], where: str) -> bool:
    """Whether Transformers 5 reads a SentencePiece tokenizer by its LlamaTokenizer, and not as it stands.

    A Mistral's is read as it stands, whatever class it names. Raises BadInput where neither would do it.
    """
    if a is None or a.model_type not in ("llama", "mistral"):
        told = (
            "SentencePiece's BPE is not supported with this model; give token ids, as --tokens 1,2,3, instead of text"
        )
        raise BadInput(f"{where}: {told}")
    kind = settings.text("tokenizer_class") or Fields(config, "config.json").text("tokenizer_class")
    if kind not in (None, *AS_IT_STANDS, *LLAMAS):
        raise BadInput(f"{where}: tokenizer_class {kind!r:.60} is not supported with it, only LlamaTokenizer is")
    return a.model_type == "llama" and kind in LLAMAS


def _with_spaces(parts: Parts, settings: Fields) -> Parts:
    """Where LlamaTokenizer puts spaces."""
    before, legacy = settings.flag("add_prefix_space"), settings.flag("legacy")
    strip = before is None or before
    return replace(parts, spaces="never" if not strip else "always" if legacy else "first", strip=strip, whole=False)


def _as_llamas(parts: Parts, settings: Fields) -> Parts:
    """As LlamaTokenizer of Transformers 5 has it: tokens, merges and what is put round a prompt are the file's, and
    where spaces are put says tokenizer_config.json. Of a token that its added_tokens_decoder leaves out, it knows
    nothing more than that it is in the vocabulary."""
    parts = _with_spaces(parts, settings)
    added = _decoder(settings)
    if not added:
        return parts
    types = [t if i in added or t == BYTE else NORMAL for i, t in enumerate(parts.types)]
    return replace(parts, types=types, flags={i: said for i, said in parts.flags.items() if i in added})


def _check_pre_tokenizer(parts: Parts, qwen2: bool, where: str) -> None:
    """Raises BadInput where Transformers would cut the text in another way than the file says."""
    row = PRE_TOKENIZERS[parts.pre]
    if qwen2 and (parts.whole or not row.nfc):
        said = "model.ignore_merges = True" if parts.whole else f"its pre-tokenizer, that of {parts.pre},"
        raise BadInput(f"{where}: {said} is not supported with this model, which is read by Qwen2Tokenizer")
    if not qwen2 and row.nfc and not parts.nfc:
        raise BadInput(f"{where}: its pre-tokenizer is that of {parts.pre}, but without its normalizer NFC")


def stop_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[tuple[str, int]]:
    """(file, id) where `generate` ends: the ids of generation_config.json, or else config.json's."""
    for name, values in ((GENERATION, generation), ("config.json", config)):
        if ids := Fields(values, name).ids("eos_token_id"):
            return [(f"{name}'s eos_token_id", i) for i in ids]
    return []


def _asked(settings: Fields, option: str, i: int | None) -> tuple[int, ...]:
    """The id where the option asks for it; as in Transformers, nothing where there is no such token."""
    return (i,) if settings.flag(option) and i is not None else ()


def _named(folder: Path, settings: Fields, defaults: Mapping[str, str]) -> dict[str, str]:
    """What the special tokens are spelled as, by the names of their fields, those in lists too.

    special_tokens_map.json is read where tokenizer_config.json has no added_tokens_decoder, as Transformers does.
    """
    sources = [settings]
    if settings.values.get("added_tokens_decoder") is None:
        sources.append(Fields(read_object(folder / "special_tokens_map.json"), str(folder / "special_tokens_map.json")))
    found: dict[str, str] = {}
    for source in sources:
        for name in NAMED:
            value = source.values.get(name)
            if value is not None:
                found[name] = _special(value, f"{source.where}: {name}")
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = source.values.get(name)
            listed = list(value.values()) if isinstance(value, dict) else source.array(name) or []
            found |= {f"{name}[{n}]": _special(v, f"{source.where}: {name}[{n}]") for n, v in enumerate(listed)}
    for name, token in defaults.items():
        if name not in settings.values:
            found.setdefault(name, token)
    return found


def _special(value: Any, where: str) -> str:
    return value if isinstance(value, str) else added_token(one(value, where)).content


def _decoder(settings: Fields) -> dict[int, Added]:
    """tokenizer_config.json's added_tokens_decoder."""
    said = settings.object("added_tokens_decoder")
    if said is None:
        return {}
    found = {}
    for key, value in said.values.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise BadInput(f"{said.where}: {key!r:.40} is no token id")
        found[int(key)] = added_token(one(value, f"{said.where}[{key}]"))
    return found


def _with_special(parts: Parts, named: Mapping[str, str], qwen2: bool) -> tuple[Parts, dict[str, int]]:
    """The named tokens that are in the vocabulary become control tokens; their ids by the names of their fields.

    Qwen2Tokenizer adds them once more at the end, as plain ones, whatever else says of the space round them.
    """
    wanted = set(named.values())
    where = {token: i for i, token in enumerate(parts.tokens) if token in wanted}
    types = list(parts.types)
    for i in where.values():
        types[i] = CONTROL
    flags = {i: said for i, said in parts.flags.items() if not (qwen2 and parts.tokens[i] in wanted)}
    return replace(parts, types=types, flags=flags), {n: where[token] for n, token in named.items() if token in where}


def _read_parts(folder: Path, settings: Fields, special: Collection[str]) -> Parts:
    """vocab.json, merges.txt, and the added tokens of tokenizer_config.json or added_tokens.json."""
    lines = _text(folder / MERGES).removesuffix("\n").split("\n")
    merges = [line.removesuffix("\r") for line in lines if line and not line.startswith("#version")]
    for n, merge in enumerate(merges):
        if len(merge.split(" ")) != 2:
            raise BadInput(f"{folder / MERGES}: merge {n} {merge!r:.80} is not a pair of tokens")
    added = _decoder(settings)
    if not added:
        said = Fields(read_object(folder / "added_tokens.json"), str(folder / "added_tokens.json"))
        for content in said.values:
            i = said.id(content)
            if i is None:
                raise said.bad(content, "a token id")
            is_special = content in special
            added[i] = Added(content, is_special, () if is_special else ("normalized",))
    return assemble(read_object(folder / VOCAB), merges, added, str(folder / VOCAB))


def _chat_templates(folder: Path, settings: Fields) -> dict[str, str]:
    """By name; a file of their own goes before tokenizer_config.json, as in Transformers."""
    if isinstance(settings.values.get("chat_template"), list):
        said = {t.text("name") or "": t.text("template") for t in settings.objects("chat_template")}
    else:
        said = {"default": settings.text("chat_template")}
    found = {name: text for name, text in said.items() if text is not None}
    if (folder / TEMPLATE).exists():
        found["default"] = _text(folder / TEMPLATE)
    return found | {path.stem: _text(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}


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
