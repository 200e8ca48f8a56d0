"""What an APR file's JSON says: hyper-parameters under many spellings, the tokenizer under flat keys; null is
absent."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

from ...quant.errors import BadInput
from ..config import Config, from_hf
from . import Vocabulary
from .end_of_generation import by_text, ends, with_control
from .fields import Fields
from .strict_json import parse_object

# Hugging Face's name: the spellings that aprender's and realizar's writers use (realizar's serde aliases, PMAT-111).
ALIASES = {
    "hidden_size": ("hidden_dim", "d_model", "n_embd"),
    "num_hidden_layers": ("num_layers", "n_layers", "n_layer"),
    "num_attention_heads": ("num_heads", "n_heads", "n_head"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads"),
    "vocab_size": ("n_vocab",),
    "intermediate_size": ("ffn_dim", "intermediate_dim", "n_inner"),
    "max_position_embeddings": ("max_seq_len", "context_length", "n_ctx"),
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "rope_theta": (),
    "head_dim": (),
    "tie_word_embeddings": (),
}


def read_config(metadata: Mapping[str, Any], own_head: bool) -> Config:
    """The Config. Raises BadInput for a value that is missing or contradicts another spelling of itself."""
    inner = metadata.get("model_config")  # entrenar's checkpoints: the config as text inside the metadata
    if isinstance(inner, str):
        inner = parse_object(inner.encode(), "model_config", repeats=True)
    sources = (metadata, inner if isinstance(inner, dict) else {})
    data: dict[str, Any] = {}
    for name, others in ALIASES.items():
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
    if own_head or data.get("tie_word_embeddings") is False:
        data.pop("tie_word_embeddings", None)  # the tensors decide; realizar's files say nothing of it
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
    return Vocabulary(
        tokens=tokens,
        merges=merges,
        types=with_control(types, found, merges),
        model="gpt2",
        # Older files do not name it; aprender too takes the one that every model of architecture qwen2 has.
        pre=str(said.get("pre_type", "qwen2")),
        bos_id=bos,
        eos_ids=tuple(end),
        eos_from=tuple(end.values()),
        pad_id=token_id("padding_token_id"),
        prefix=asked("add_bos_token", bos),
        suffix=asked("add_eos_token", named[0][1] if named else None),
        chat_template=template,
    )
