"""Config: the hyper-parameters by Hugging Face's names. Every value comes from the model's file; no defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from reprlib import repr as brief
from typing import Any

from ..quant.errors import BadInput
from ..quant.tensor import QTensor

ARCHITECTURES = {"qwen2": "Qwen2, Qwen2.5, Qwen2.5-Coder, DeepSeek-R1-Distill-Qwen"}


def check_architecture(name: object) -> None:
    """Raises BadInput that says what is supported, unless that architecture is."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = "; ".join(f"{known} is ({models})" for known, models in ARCHITECTURES.items())
        raise BadInput(f"architecture {brief(name)} is not supported; {supported}")


@dataclass(frozen=True, slots=True)
class Config:
    """A Qwen2 model's sizes and constants. Raises BadInput that names the field if one can not be.

    model_type: "qwen2", the only architecture there is.
    rms_norm_eps, rope_theta: as the file has them (float32 values widened).
    tie_word_embeddings: the head is the embedding; the file has no tensor of its own for it.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        check_architecture(self.model_type)
        for field in fields(self):
            value = getattr(self, field.name)
            # Positions and ids are int32; whether sizes fit the file shows when each tensor's shape is checked (bind).
            if field.type == "int" and not (type(value) is int and 0 < value < 1 << 31):
                raise BadInput(f"{field.name} is {brief(value)}; it must be a whole number from 1 to 2^31 - 1")
            if field.type == "float" and not (type(value) is float and isfinite(value) and value > 0):
                raise BadInput(f"{field.name} is {brief(value)}; it must be a finite positive number")
            if field.type == "bool" and type(value) is not bool:
                raise BadInput(f"{field.name} is {brief(value)}; it must be true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            heads = f"{self.num_attention_heads} query heads"
            raise BadInput(f"num_key_value_heads is {self.num_key_value_heads}, which does not divide {heads}")
        if self.head_dim % 2:
            raise BadInput(f"head_dim is {self.head_dim}; rotary embedding needs an even one")

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by shape letter (engine/forward.py) that every prompt shares."""
        N, K, H = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        D, F, V = self.hidden_size, self.intermediate_size, self.vocab_size
        return {"D": D, "N": N, "K": K, "H": H, "E": (N + 2 * K) * H, "F": F, "V": V}


# Config's fields and their GGUF keys, which follow the architecture's name.
GGUF_KEYS: dict[str, tuple[str, type]] = {
    "hidden_size": ("embedding_length", int),
    "num_hidden_layers": ("block_count", int),
    "num_attention_heads": ("attention.head_count", int),
    "num_key_value_heads": ("attention.head_count_kv", int),
    "intermediate_size": ("feed_forward_length", int),
    "max_position_embeddings": ("context_length", int),
    "rope_theta": ("rope.freq_base", float),
    "rms_norm_eps": ("attention.layer_norm_rms_epsilon", float),
}
# GGUF keys that would change the forward pass, and the values with which they do not; {} is the architecture.
INERT: dict[str, tuple[Any, ...]] = {
    "general.quantization_version": (2,),
    "{}.rope.scaling.type": ("none",),
    "{}.rope.scaling.factor": (1, 0),
    "{}.rope.scaling.attn_factor": (1,),
    "{}.rope.scale_linear": (1,),
    "{}.attention.causal": (True,),
    "{}.attention.scale": (0,),
    "{}.attention.clamp_kqv": (0,),
    "{}.attention.max_alibi_bias": (0,),
    "{}.attn_logit_softcapping": (0,),
    "{}.final_logit_softcapping": (0,),
    "{}.logit_scale": (1, 0),
    "{}.residual_scale": (1, 0),
    "{}.embedding_scale": (1, 0),
    "{}.expert_count": (0,),
    "{}.use_parallel_residual": (False,),
}
CHECKED = (
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "rope.dimension_count",
    "vocab_size",
)


def unknown_gguf_keys(metadata: Mapping[str, Any]) -> list[str]:
    """Keys about the architecture that nothing here reads: perhaps a variant of it that is not computed right."""
    prefix = f"{metadata['general.architecture']}."
    known = {prefix + name for name in (*CHECKED, *(name for name, _ in GGUF_KEYS.values()))}
    known |= {key.format(prefix[:-1]) for key in INERT}
    return [key for key in metadata if key.startswith(prefix) and key not in known]


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, QTensor]) -> Config:
    """From a GGUF file's key/value pairs; its tensors tell the vocabulary's size, and whether the head is tied.

    Raises BadInput that names the key for one that is missing or that asks for what is not computed here.
    """
    architecture = metadata.get("general.architecture")
    check_architecture(architecture)

    def need(name: str, kind: type) -> Any:
        key = f"{architecture}.{name}"
        if key not in metadata:
            raise BadInput(f"key {key} is missing, and nothing may be guessed for it")
        value = metadata[key]
        if type(value) is not kind:
            raise BadInput(f"key {key} is {brief(value)}; it must be {'an integer' if kind is int else 'a float'}")
        return value

    for pattern, harmless in INERT.items():
        key = pattern.format(architecture)
        value = metadata.get(key, harmless[0])
        if not isinstance(value, str | int | float) or value not in harmless:
            raise BadInput(f"key {key} is {brief(value)}; that is not supported, only {harmless[0]!r} is")
    if "token_embd.weight" not in tensors:
        raise BadInput("tensor token_embd.weight is missing")

    found = {field: need(name, kind) for field, (name, kind) in GGUF_KEYS.items()}
    width, heads, V = found["hidden_size"], found["num_attention_heads"], tensors["token_embd.weight"].shape[0]
    if f"{architecture}.attention.key_length" in metadata:
        head_dim = need("attention.key_length", int)
    elif heads and width % heads == 0:
        head_dim = width // heads
    else:
        raise BadInput(f"key {architecture}.attention.head_count is {heads}, which does not divide {width}")
    same = {"attention.value_length": head_dim, "rope.dimension_count": head_dim, "vocab_size": V}
    for name, value in same.items():
        if f"{architecture}.{name}" in metadata and need(name, int) != value:
            raise BadInput(f"key {architecture}.{name} is {need(name, int)}; in this model it must be {value}")
    if f"{architecture}.attention.sliding_window" in metadata:
        window = need("attention.sliding_window", int)
        if 0 < window < found["max_position_embeddings"]:
            raise BadInput(f"key {architecture}.attention.sliding_window is {window}; that is not supported")
    return Config(
        model_type=str(architecture),
        head_dim=head_dim,
        vocab_size=V,
        tie_word_embeddings="output.weight" not in tensors,
        **found,
    )
