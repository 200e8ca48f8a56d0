"""What an APR file's JSON says: hyper-parameters under many spellings, the tokenizer under flat keys; null is
absent."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from ...errors import BadInput
from ..config import Config, from_hf
from ..config_keys import APR_ALIASES, APR_OWN, APR_ROPE_TYPE
from ..models import meant
from .end_of_generation import by_text, ends, with_control
from .fields import Fields
from .pre_tokenizers import taken_whole
from .strict_json import parse_object
from .vocabulary import Vocabulary

DOTTED = ("tokenizer.", "model.", "general.")  # the tokenizer; copies for people; what came from GGUF


def read_config(metadata: Mapping[str, Any], own_head: bool) -> tuple[Config, list[str]]:
    """The Config, and notes. What is not APR's own is read as a field of config.json, which importers copy.

    Raises BadInput for a value that is missing or contradicts another spelling of itself.
    """
    inner = metadata.get("model_config")  # entrenar's checkpoints: the config as text inside the metadata
    if isinstance(inner, str):
        inner = parse_object(inner.encode(), "model_config", repeats=True)
    sources = (metadata, inner if isinstance(inner, dict) else {})
    spelled = {*APR_OWN, *APR_ALIASES, *(name for names in APR_ALIASES.values() for name in names)}
    data: dict[str, Any] = {}
    for source in reversed(sources):
        data |= {k: v for k, v in source.items() if k not in spelled and v is not None and not k.startswith(DOTTED)}
    for name, others in APR_ALIASES.items():
        for source in sources:
            said = {k: source[k] for k in (name, *others) if source.get(k) is not None}
            if len(set(map(repr, said.values()))) > 1:
                raise BadInput(f"{brief(said)} should be one value")
            if said:
                data[name] = next(iter(said.values()))
                break
    kinds = [s.get(k) for s in sources for k in ("architecture", "hf_model_type", "hf_architecture", "model_type")]
    kind = next((k for k in kinds if k), None)
    a = meant(kind)
    data["model_type"] = a.model_type if a else kind
    if a and metadata.get("rope_type") not in (None, APR_ROPE_TYPE):
        told = f"{a.model_type} rotates split halves, which is {APR_ROPE_TYPE}"
        raise BadInput(f"rope_type is {metadata['rope_type']!r:.20}; {told}")
    if type(data.get("tie_word_embeddings", True)) is bool:
        data["tie_word_embeddings"] = not own_head  # the tensors decide; realizar's files say nothing of it
    return from_hf(data, own_head)


def read_vocabulary(metadata: Mapping[str, Any], where: str, c: Config) -> Vocabulary | None:
    """The Vocabulary of the flat tokenizer.* keys, None if there is none.

    Files without token types: what is neither one byte nor made by a merge was added, and is taken for a control token.
    """
    said = {
        k.removeprefix("tokenizer."): v for k, v in metadata.items() if k.startswith("tokenizer.") and v is not None
    }
    if not said.get("vocabulary"):
        return None

    def texts(key: str, value: Any) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise BadInput(f"{where}: tokenizer.{key} must be a list of text")
        return value

    tokens, merges = texts("vocabulary", said["vocabulary"]), texts("merges", said.get("merges", []))
    merges = list(dict.fromkeys(merges))
    f = Fields(said, f"{where}: tokenizer")

    def checked(key: str, i: int) -> int:
        if i >= len(tokens):
            raise BadInput(f"{where}: tokenizer.{key} {i!r:.20} is no id; ids are 0 to {len(tokens) - 1}")
        return i

    def token_id(key: str) -> int | None:
        i = f.id(key)
        return None if i is None else checked(key, i)

    if len(tokens) > c.vocab_size:
        raise BadInput(f"{where}: {len(tokens)} tokens, but the embedding has {c.vocab_size} rows")
    for merge in merges:
        if merge.count(" ") != 1:
            raise BadInput(f"{where}: merge {merge!r:.60} is not a pair of tokens")
    model = str(said.get("model", said.get("model_type", "gpt2"))).lower()
    if model not in ("gpt2", "bpe"):
        raise BadInput(f"{where}: tokenizer model {model!r:.40} is not supported; only byte-level BPE (gpt2) is")
    types = said.get("token_type")
    if types is None:
        made = {merge.replace(" ", "", 1) for merge in merges}
        types = [1 if len(t) == 1 or t in made else 5 if t == f"[PAD{i}]" else 3 for i, t in enumerate(tokens)]
    if not isinstance(types, list) or len(types) != len(tokens) or not all(type(t) is int for t in types):
        raise BadInput(f"{where}: tokenizer.token_type must be {len(tokens)} whole numbers, one for each token")
    named = [(name, checked(name, i)) for name in ("eos_token_id", "eos_token_ids") for i in f.ids(name)]
    found = by_text(tokens)
    end = ends(named, found, {})
    bos = token_id("bos_token_id")

    def asked(option: str, i: int | None) -> tuple[int, ...]:
        if not f.flag(option):
            return ()
        if i is None:
            raise BadInput(f"{where}: tokenizer.{option} is true, but there is no such token")
        return (i,)

    template = Fields(metadata, where).text("chat_template") or f.text("chat_template")
    pre = str(said.get("pre_type", c.architecture.pre))
    return Vocabulary(
        tokens=tokens,
        merges=merges,
        types=with_control(types, found, merges),
        model="gpt2",
        # Older files do not name it; aprender too takes the architecture's own.
        pre=pre,
        whole=taken_whole(pre),
        bos_id=bos,
        eos_ids=tuple(end),
        eos_from=tuple(end.values()),
        pad_id=token_id("padding_token_id"),
        prefix=asked("add_bos_token", bos),
        suffix=asked("add_eos_token", named[0][1] if named else None),
        chat_template=template,
    )
