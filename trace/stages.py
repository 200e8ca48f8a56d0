"""The stages of the forward pass: one table, in order of execution. Names, shapes and capture points are aprender's.

Shape letters as in engine/forward.py: T new positions, S positions so far, D hidden, N query heads, K key/value heads,
H head size, E = (N + 2K) H, F mlp width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from types import MappingProxyType
from typing import Literal

from ..quant.errors import BadInput

Scope = Literal["layer", "first", "whole"]
Key = tuple[int, int | None, str]  # a stage in a dump: phase (0: the prompt), layer (None: the whole model), name


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the forward pass.

    shape: letters, outermost first. scope: "layer" for every layer; "first" for layer 0 alone; "whole" for the model.
    positions: "all" that the pass computed, or the "last" one (then the shape has no T).
    capture: what two dumps must agree on before a number between them means anything: which side of the bias, of the
    mask, of the output projection. It goes into the manifest.
    hf: the Hugging Face module (of `model.layers.i` where it begins with a dot) whose output, or `input of`, this is;
    "-" where no module boundary shows it. ggml: the node's name in llama.cpp's graph for qwen2 (the layer is appended,
    `-i`); "Qcur 1" is the first of the nodes of that name.
    """

    name: str
    shape: str
    scope: Scope
    positions: Literal["all", "last"]
    capture: Mapping[str, str]
    hf: str
    ggml: str

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(self.shape.split())


def _stage(
    name: str, shape: str, hf: str, ggml: str, scope: Literal["layer", "first", "whole"] = "layer", **capture: str
) -> Stage:
    return Stage(name, shape, scope, "all" if "T" in shape.split() else "last", MappingProxyType(capture), hf, ggml)


STAGES: tuple[Stage, ...] = (
    _stage("embedding", "T D", "model.embed_tokens", "inp_embd", "first"),
    _stage("attn_norm", "T D", ".input_layernorm", "attn_norm"),
    _stage("qkv_matmul", "T E", ".self_attn.{q,k,v}_proj less bias", "-", bias="before", order="Q K V"),
    _stage("qkv_bias", "T E", ".self_attn.{q,k,v}_proj", "Qcur 1, Kcur 1, Vcur 1", bias="after", order="Q K V"),
    _stage("q_post_rope", "T N H", "-", "Qcur 2", rope="after"),
    _stage("k_post_rope", "T K H", "-", "Kcur 2", rope="after", heads="not repeated"),
    _stage("attn_scores", "N T S", "-", "kq", mask="before", scale="1/sqrt(H)", above_diagonal="0.0"),
    _stage("attn_softmax", "N T S", ".self_attn, attentions", "kq_soft_max", mask="after", above_diagonal="0.0"),
    _stage("attention", "T N H", "input of .self_attn.o_proj", "kqv_out", output_projection="before"),
    _stage("attn_out", "T D", ".self_attn.o_proj", "attn_out", output_projection="after", residual="before"),
    _stage("post_attn_residual", "T D", "input of .post_attention_layernorm", "ffn_inp", residual="after"),
    _stage("ffn_norm", "T D", ".post_attention_layernorm", "ffn_norm"),
    _stage("ffn_gate", "T F", ".mlp.gate_proj", "ffn_gate", activation="before"),
    _stage("ffn_up", "T F", ".mlp.up_proj", "ffn_up"),
    _stage("ffn_silu", "T F", ".mlp.act_fn", "-", activation="after", product="before"),
    _stage("ffn_swigl", "T F", "input of .mlp.down_proj", "ffn_swiglu", activation="after", product="after"),
    _stage("ffn_out", "T D", ".mlp.down_proj", "ffn_out", residual="before"),
    _stage("post_ffn_residual", "T D", "model.layers.i", "l_out", residual="after"),
    _stage("final_norm", "T D", "model.norm", "result_norm", "whole"),
    _stage("lm_head", "V", "lm_head", "result_output", "whole"),
)  # fmt: skip
NAMES = tuple(s.name for s in STAGES)
ALIASES = MappingProxyType({"layer_output": "post_ffn_residual"})
_BY_NAME = {s.name: (i, s) for i, s in enumerate(STAGES)} | {
    a: (i, s) for a, n in ALIASES.items() for i, s in enumerate(STAGES) if s.name == n
}


def find(name: str) -> Stage | None:
    """The stage of that name or alias, in any case; None if there is none."""
    return _BY_NAME.get(name.strip().lower(), (0, None))[1]


def by_name(name: str) -> Stage:
    """The stage of that name or alias, in any case. Raises BadInput that lists all."""
    s = find(name)
    if s is None:
        raise BadInput(f"unknown stage {name.strip()!r}; the stages are {', '.join(NAMES)}, or `all`")
    return s


def layer_name(layer: int | None) -> str:
    """`layer 3`; `the whole model` for None."""
    return "the whole model" if layer is None else f"layer {layer}"


def execution_order(s: Stage, layer: int | None) -> tuple[int, int]:
    """Sorts stages of several layers as the forward pass meets them; the whole model's come last."""
    return (1 << 32 if layer is None else layer), _BY_NAME[s.name][0]


def shape_for(s: Stage, sizes: Mapping[str, int], T: int, S: int) -> tuple[int, ...]:
    """The stage's shape for T positions at once after which S are known; sizes: the other letters' values."""
    return tuple({"T": T, "S": S, **sizes}[letter] for letter in s.letters)


def shape_of_count(s: Stage, sizes: Mapping[str, int], count: int, T: int | None) -> tuple[int, ...] | None:
    """The shape that a bare count of values must mean, or None if it is no whole number of positions.

    T: the number of positions if another file of the same pass told it. Scores of T and S unknown are taken as square.
    """
    unit = prod(sizes[letter] for letter in s.letters if letter in sizes)
    rest, odd = divmod(count, unit)
    if odd:
        return None
    if "S" in s.letters:
        T = isqrt(rest) if T is None else T
        return shape_for(s, sizes, T, rest // T) if T and rest % T == 0 and rest // T >= T else None
    return shape_for(s, sizes, rest, 0) if "T" in s.letters or rest == 1 else None
