"""What an APR file's JSON says: hyper-parameters under many spellings, the tokenizer under flat keys; null is
absent."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from ...quant.errors import BadInput
from ..config import Config, from_hf
from ..config_keys import APR_ALIASES, APR_OWN
from . import Vocabulary
from .strict_json import parse_object

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
    data["model_type"] = "qwen2" if isinstance(kind, str) and kind.lower() in ("qwen2", "qwen2forcausallm") else kind
    if metadata.get("rope_type") not in (None, 2):
        raise BadInput(f"rope_type is {metadata['rope_type']!r:.20}; qwen2 rotates split halves, which is 2")
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

    def token_id(key: str) -> int | None:
        value = said.get(key)
        if type(value) is int and value == -1:  # Hugging Face's spelling of none
            return None
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens)
        ):
            raise BadInput(f"{where}: tokenizer.{key} {value!r:.20} is no id; ids are 0 to {len(tokens) - 1}")
        return value

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
    if not isinstance(types, list) or len(types) != len(tokens) or not all(isinstance(t, int) for t in types):
        raise BadInput(f"{where}: tokenizer.token_type must be {len(tokens)} whole numbers, one for each token")
    eos = said.get("eos_token_ids", [said.get("eos_token_id")])
    for i in eos if isinstance(eos, list) else [eos]:
        said["eos_token_id"] = i
        token_id("eos_token_id")
    template = metadata.get("chat_template") or said.get("chat_template")
    return Vocabulary(
        tokens=tokens,
        merges=merges,
        types=types,
        model="gpt2",
        # Older files do not name it; aprender too takes the one that every model of architecture qwen2 has.
        pre=str(said.get("pre_type", "qwen2")),
        bos_id=token_id("bos_token_id"),
        eos_ids=tuple(i for i in (eos if isinstance(eos, list) else [eos]) if i is not None and i != -1),
        pad_id=token_id("padding_token_id"),
        add_bos=said.get("add_bos_token") is True,
        chat_template=template if isinstance(template, str) else None,
    )
