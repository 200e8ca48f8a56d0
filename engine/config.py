"""Config: the hyper-parameters by Hugging Face's names. Every value comes from the model's file; no defaults."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from reprlib import repr as brief
from typing import Any, NoReturn

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


# config.json's fields that would change the forward pass, and the values with which they do not.
HF_INERT: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu"),
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
    "tie_word_embeddings": (None, True, False),
    "partial_rotary_factor": (None, 1.0),
}


def from_hf(data: Mapping[str, Any], own_head: bool) -> Config:
    """From a config.json's content; transformers 4 and 5 put RoPE's parameters in different places, and both are read.

    own_head: the file has an output matrix that is not the embedding. eps and theta are rounded to float32, as the
    other containers hold them. Raises BadInput that names the field for one that is missing or that asks for what is
    not computed here.
    """

    def refuse(field: str, why: str) -> NoReturn:
        raise BadInput(f"{field} {why}")

    def need(field: str) -> Any:
        if data.get(field) is None:
            refuse(field, "is missing, and nothing may be guessed for it")
        return data[field]

    def real(field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 3e38:
            refuse(field, f"is {brief(value)}; it must be a finite positive number")
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
        return rounded

    architectures = data.get("architectures")
    if architectures and architectures != ["Qwen2ForCausalLM"]:
        refuse("architectures", f"is {brief(architectures)}; only Qwen2ForCausalLM is supported")
    check_architecture(data.get("model_type"))
    for field, harmless in HF_INERT.items():
        if data.get(field) not in harmless:
            refuse(field, f"is {brief(data[field])}; that is not supported, only {brief(harmless[-1])} is")
    layer_types = data.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        refuse("layer_types", "names another type of attention than full_attention; that is not supported")

    rope, scaling = (data.get(field) or {} for field in ("rope_parameters", "rope_scaling"))
    for field, value in (("rope_parameters", rope), ("rope_scaling", scaling)):
        if not isinstance(value, dict):
            refuse(field, f"is {brief(value)}; it must be an object")
        kind = value.get("rope_type", value.get("type", "default"))
        if kind != "default" or value.keys() - {"rope_type", "type", "rope_theta"}:
            asked = f"RoPE scaling of type {brief(kind)}" if kind != "default" else f"{brief(sorted(value))}"
            refuse(field, f"asks for {asked}; that is not supported, only the default is")
    places = [place["rope_theta"] for place in (rope, scaling, data) if place.get("rope_theta") is not None]
    thetas = {real("rope_theta", theta) for theta in places}
    if len(thetas) > 1:
        refuse("rope_theta", f"has two values, {sorted(thetas)}")

    width, heads = need("hidden_size"), need("num_attention_heads")
    head_dim = data.get("head_dim")
    if head_dim is None:
        if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
            refuse("num_attention_heads", f"is {brief(heads)}, which does not divide hidden_size, {brief(width)}")
        head_dim = width // heads
    tied = data.get("tie_word_embeddings")
    if tied is own_head:
        has = "another output matrix than the embedding" if own_head else "no output matrix"
        refuse("tie_word_embeddings", f"is {str(tied).lower()}, but the tensors hold {has}")
    return Config(
        model_type=data["model_type"],
        hidden_size=width,
        num_hidden_layers=need("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=need("num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=need("intermediate_size"),
        vocab_size=need("vocab_size"),
        max_position_embeddings=need("max_position_embeddings"),
        rope_theta=thetas.pop() if thetas else need("rope_theta"),
        rms_norm_eps=real("rms_norm_eps", need("rms_norm_eps")),
        tie_word_embeddings=not own_head,
    )
