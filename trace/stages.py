"""The stages of the forward pass: one table, in order of execution. Names, shapes and capture points are aprender's.

Shape letters as in engine/forward.py: T new positions, S positions so far, D hidden, N query heads, K key/value heads,
H head size, E = (N + 2K) H, F mlp width, V vocabulary.

STAGES has those of every architecture; `of_pieces` those of one, whose layers lack what it does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt, prod
from types import MappingProxyType
from typing import Literal

from ..errors import BadInput, meant

Scope = Literal["layer", "first", "whole"]
Key = tuple[int, int | None, str]  # a stage in a dump: phase (0: the prompt), layer (None: the whole model), name
Kind = Literal[
    "look-up", "norm", "product", "bias", "rotation", "scores", "soft-max", "mix", "activation", "gate", "residual"
]

BEFORE = "before"  # as an input: the residual that enters the layer, or the final norm


@dataclass(frozen=True, slots=True)
class Module:
    """A boundary of a torch module. path: of `model.layers.i` where it begins with a dot.

    later: the value stands at this boundary so many layers after its own; the final norm comes after the last.
    item: which of several outputs; None for the only or the first.
    """

    path: str
    side: Literal["output", "input"] = "output"
    later: int = 0
    item: int | None = None

    @property
    def part(self) -> str:
        """The last word of its name."""
        return self.path.rpartition(".")[2]

    @property
    def pattern(self) -> str:
        """The module's name, with {layer} for its number."""
        return f"model.layers.{{layer}}{self.path}".removesuffix(".") if self.path.startswith(".") else self.path

    def name(self, layer: int | None) -> str:
        """The module's own name; layer: of the stage."""
        return self.pattern.format(layer=(layer or 0) + self.later)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of llama.cpp's graph: its operation, and the weight that it reads or else its own name, both without the
    layer. (Qcur-0 is three nodes, node_31 any.) side: its result, or what it multiplies by the weight."""

    operation: str
    name: str
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the forward pass.

    shape: letters, outermost first. scope: "layer" for every layer; "first" for layer 0 alone; "whole" for the model.
    positions: "all" that the pass computed, or the "last" one (then the shape has no T).
    kind: the operation; inputs: the stages that it is made of, or BEFORE; weight: the field of Layer or Weights that it
    reads; part: which of that field's parts (of what has heads: which of Q, K and V), None for all side by side.
    capture: what two dumps must agree on before a number between them means anything: which side of the bias, of the
    mask, of the output projection. It goes into the manifest.
    hf: Transformers' modules that show it, the stage's parts side by side; hf_too: others that show the whole.
    fused, fused_too: the same of SGLang, vLLM, nano-vllm and TensorRT-LLM, where Q, K and V are one product, gate and
    up another, and a norm adds the residual that it also hands on. A module of two stages holds both side by side.
    mlx: what mlx-lm's modules show beyond Transformers' (mlx_lm/models/qwen2.py): `rope`, which is called for the
    queries, then for the keys, and has heads before positions. gguf: modules named after the tensors of a GGUF file,
    as candle's quantized models have them (candle-transformers/src/models/quantized_qwen2.rs): the bias is added after.
    meta: by the names of Meta's own Llama, which llama2.c and its ports have. trt: by TensorRT-LLM's own (tensorrt_llm/
    models/qwen/model.py, layers/mlp.py), where `fc` is the gate and `gate` is up. graph: by those that llama.cpp's
    callbacks are told, without the layer. onnx: nodes of an ONNX export that keeps the modules' names, part by part.
    ggml: llama.cpp's nodes, part by part; unless_ggml: why there is none.
    """

    name: str
    shape: str
    scope: Scope
    kind: Kind
    inputs: tuple[str, ...]
    weight: str | None
    part: int | None
    capture: Mapping[str, str]
    hf: tuple[Module, ...]
    hf_too: tuple[Module, ...]
    fused: tuple[Module, ...]
    fused_too: tuple[Module, ...]
    mlx: tuple[Module, ...]
    gguf: tuple[Module, ...]
    meta: tuple[Module, ...]
    trt: tuple[Module, ...]
    graph: str
    onnx: tuple[str, ...]
    ggml: tuple[tuple[Node, ...], ...]
    unless_ggml: str

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def letters(self) -> tuple[str, ...]:
        return tuple(self.shape.split())

    @property
    def positions(self) -> Literal["all", "last"]:
        return "last" if self.letters and "T" not in self.letters else "all"


def _modules(text: str) -> tuple[Module, ...]:
    """`.mlp.up_proj`, `input of .mlp.down_proj`, `input of .+1` (the layer after), `model.norm/1` (its second output),
    apart by commas."""
    found = []
    for word in filter(None, text.split(", ")):
        path = word.removeprefix("input of ")
        later = int(path.endswith("+1"))
        module, _, item = path.removesuffix("+1").partition("/")
        found.append(Module(module, "input" if path != word else "output", later, int(item) if item else None))
    return tuple(found)


def _nodes(text: str) -> tuple[tuple[Node, ...], ...]:
    """`MUL attn_norm.weight`, `input of MUL_MAT attn_output.weight`: parts apart by commas, alternatives of a part by
    `or`."""

    def node(words: str) -> Node:
        path = words.removeprefix("input of ")
        operation, name = path.split()
        return Node(operation, name, "input" if path != words else "output")

    return tuple(tuple(map(node, part.split(" or "))) for part in filter(None, text.split(", ")))


def _stage(
    name: str, shape: str, kind: Kind, inputs: str, weight: str | None = None, part: int | None = None, *,
    scope: Scope = "layer", hf: str = "", hf_too: str = "", fused: str = "", fused_too: str = "", mlx: str = "",
    gguf: str = "", meta: str = "", trt: str = "", graph: str = "", onnx: str = "", ggml: str = "",
    unless_ggml: str = "", **capture: str,
) -> Stage:  # fmt: skip
    return Stage(
        name, shape, scope, kind, tuple(inputs.split()), weight, part, MappingProxyType(capture),
        _modules(hf), _modules(hf_too), _modules(fused), _modules(fused_too), _modules(mlx), _modules(gguf),
        _modules(meta), _modules(trt), graph,
        tuple(filter(None, onnx.split(", "))), _nodes(ggml), unless_ggml,
    )  # fmt: skip


STAGES: tuple[Stage, ...] = (
    _stage("embedding", "T D", "look-up", "", "embed", scope="first",
           hf="model.embed_tokens", fused="model.embed_tokens", meta="tok_embeddings", graph="inp_embd",
           trt="vocab_embedding",
           gguf="token_embd",
           onnx="model/embed_tokens/Gather",
           ggml="GET_ROWS token_embd.weight"),
    _stage("attn_norm", "T D", "norm", BEFORE, "attn_norm_D",
           hf=".input_layernorm", fused=".input_layernorm", meta=".attention_norm", graph="attn_norm",
           trt=".input_layernorm",
           gguf="blk.{layer}.attn_norm",
           onnx="*/input_layernorm/Mul_1",
           ggml="MUL attn_norm.weight"),
    _stage("qkv_matmul", "T E", "product", "attn_norm", "qkv", bias="before", order="Q K V",
           gguf="blk.{layer}.attn_q, blk.{layer}.attn_k, blk.{layer}.attn_v",
           onnx="*/self_attn/q_proj/MatMul, */self_attn/k_proj/MatMul, */self_attn/v_proj/MatMul",
           ggml="MUL_MAT attn_q.weight, MUL_MAT attn_k.weight, MUL_MAT attn_v.weight"),
    _stage("qkv_bias", "T E", "bias", "qkv_matmul", "qkv_bias_E", bias="after", order="Q K V",
           hf=".self_attn.q_proj, .self_attn.k_proj, .self_attn.v_proj",
           fused=".self_attn.qkv_proj", meta=".attention.wq, .attention.wk, .attention.wv",
           trt=".attention.qkv",
           onnx="*/self_attn/q_proj/Add, */self_attn/k_proj/Add, */self_attn/v_proj/Add",
           ggml="ADD attn_q.bias, ADD attn_k.bias, ADD attn_v.bias"),
    _stage("q_norm", "T N H", "norm", "qkv_bias", "q_norm_H", 0, rope="before",
           hf=".self_attn.q_norm", fused=".self_attn.q_norm", graph="Qcur_normed",
           gguf="blk.{layer}.attn_q_norm",
           onnx="*/self_attn/q_norm/Mul_1",
           ggml="MUL attn_q_norm.weight"),
    _stage("k_norm", "T K H", "norm", "qkv_bias", "k_norm_H", 1, rope="before", heads="not repeated",
           hf=".self_attn.k_norm", fused=".self_attn.k_norm", graph="Kcur_normed",
           gguf="blk.{layer}.attn_k_norm",
           onnx="*/self_attn/k_norm/Mul_1",
           ggml="MUL attn_k_norm.weight"),
    _stage("q_post_rope", "T N H", "rotation", "q_norm", part=0, rope="after", fused=".self_attn.rotary_emb",
           graph="Qcur",
           mlx=".self_attn.rope/0",
           onnx="*/self_attn/Add",
           ggml="ROPE Qcur"),
    _stage("k_post_rope", "T K H", "rotation", "k_norm", part=1, rope="after", heads="not repeated",
           fused=".self_attn.rotary_emb/1", graph="Kcur",
           mlx=".self_attn.rope/1",
           onnx="*/self_attn/Add_1",
           ggml="ROPE Kcur"),
    _stage("attn_scores", "N T S", "scores", "q_post_rope k_post_rope", mask="before", scale="1/sqrt(H)",
           above_diagonal="0.0", graph="kq",
           ggml="MUL_MAT kq"),
    _stage("attn_softmax", "N T S", "soft-max", "attn_scores", mask="after", above_diagonal="0.0",
           graph="kq_soft_max",
           onnx="*/self_attn/Softmax",
           ggml="SOFT_MAX kq_soft_max"),
    _stage("attention", "T N H", "mix", "attn_softmax qkv_bias", output_projection="before",
           hf="input of .self_attn.o_proj", fused=".self_attn.attn", fused_too="input of .self_attn.o_proj",
           meta="input of .attention.wo", graph="kqv_out",
           trt="input of .attention.dense",
           gguf="input of blk.{layer}.attn_output",
           onnx="*/self_attn/MatMul_1",
           ggml="input of MUL_MAT attn_output.weight"),
    _stage("attn_out", "T D", "product", "attention", "attn_out", output_projection="after", residual="before",
           gguf="blk.{layer}.attn_output",
           onnx="*/self_attn/o_proj/MatMul",
           ggml="MUL_MAT attn_output.weight"),
    _stage("attn_out_bias", "T D", "bias", "attn_out", "attn_out_bias_D", bias="after", residual="before",
           hf=".self_attn.o_proj", fused=".self_attn.o_proj", fused_too=".self_attn", meta=".attention.wo",
           graph="attn_out",
           trt=".attention.dense",
           mlx=".self_attn",
           onnx="*/self_attn/o_proj/Add",
           ggml="ADD attn_output.bias"),
    _stage("post_attn_residual", "T D", "residual", f"{BEFORE} attn_out_bias", residual="after",
           hf="input of .post_attention_layernorm", fused=".post_attention_layernorm/1", fused_too="./1",
           meta="input of .ffn_norm", graph="ffn_inp",
           trt="input of .post_layernorm",
           gguf="input of blk.{layer}.ffn_norm",
           onnx="*/Add",
           ggml="ADD ffn_inp"),
    _stage("ffn_norm", "T D", "norm", "post_attn_residual", "ffn_norm_D",
           hf=".post_attention_layernorm", fused=".post_attention_layernorm", meta=".ffn_norm", graph="ffn_norm",
           trt=".post_layernorm",
           gguf="blk.{layer}.ffn_norm",
           onnx="*/post_attention_layernorm/Mul_1",
           ggml="MUL ffn_norm.weight"),
    _stage("ffn_gate", "T F", "product", "ffn_norm", "gate_up", 0, activation="before", graph="ffn_gate",
           gguf="blk.{layer}.ffn_gate",
           onnx="*/mlp/gate_proj/MatMul",
           ggml="MUL_MAT ffn_gate.weight"),
    _stage("ffn_gate_bias", "T F", "bias", "ffn_gate", "gate_bias_F", bias="after", activation="before",
           hf=".mlp.gate_proj", fused=".mlp.gate_up_proj", meta=".feed_forward.w1", graph="ffn_gate_b",
           trt=".mlp.fc",
           onnx="*/mlp/gate_proj/Add",
           ggml="ADD ffn_gate.bias"),
    _stage("ffn_up", "T F", "product", "ffn_norm", "gate_up", 1, graph="ffn_up",
           gguf="blk.{layer}.ffn_up",
           onnx="*/mlp/up_proj/MatMul",
           ggml="MUL_MAT ffn_up.weight"),
    _stage("ffn_up_bias", "T F", "bias", "ffn_up", "up_bias_F", bias="after",
           hf=".mlp.up_proj", fused=".mlp.gate_up_proj", meta=".feed_forward.w3", graph="ffn_up_b",
           trt=".mlp.gate",
           onnx="*/mlp/up_proj/Add",
           ggml="ADD ffn_up.bias"),
    _stage("ffn_silu", "T F", "activation", "ffn_gate_bias", activation="after", product="before",
           onnx="*/mlp/act_fn/Mul",
           hf=".mlp.act_fn", unless_ggml="llama.cpp computes silu(gate) * up in one operation"),
    _stage("ffn_swigl", "T F", "gate", "ffn_silu ffn_up_bias", activation="after", product="after",
           hf="input of .mlp.down_proj", fused=".mlp.act_fn", fused_too="input of .mlp.down_proj",
           meta="input of .feed_forward.w2", graph="ffn_swiglu",
           trt="input of .mlp.proj",
           gguf="input of blk.{layer}.ffn_down",
           onnx="*/mlp/Mul",
           ggml="SWIGLU ffn_swiglu"),
    _stage("ffn_out", "T D", "product", "ffn_swigl", "ffn_down", residual="before",
           gguf="blk.{layer}.ffn_down",
           onnx="*/mlp/down_proj/MatMul",
           ggml="MUL_MAT ffn_down.weight"),
    _stage("ffn_out_bias", "T D", "bias", "ffn_out", "ffn_down_bias_D", bias="after", residual="before",
           hf=".mlp.down_proj", fused=".mlp.down_proj", fused_too=".mlp, ./0", meta=".feed_forward.w2", graph="ffn_out",
           trt=".mlp.proj",
           mlx=".mlp",
           onnx="*/mlp/down_proj/Add",
           ggml="ADD ffn_down.bias"),
    _stage("post_ffn_residual", "T D", "residual", "post_attn_residual ffn_out_bias", residual="after",
           hf=".", hf_too="input of .+1, input of model.norm+1", fused=".input_layernorm/1+1",
           fused_too="model.norm/1+1", meta=".", graph="l_out",
           trt=".",
           gguf="blk.{layer}",
           onnx="*/Add_1",
           ggml="ADD l_out"),
    _stage("final_norm", "T D", "norm", BEFORE, "final_norm_D", scope="whole",
           hf="model.norm", fused="model.norm", fused_too="model", mlx="model", meta="norm", graph="result_norm",
           trt="ln_f",
           gguf="output_norm",
           onnx="model/norm/Mul_1",
           ggml="MUL output_norm.weight"),
    _stage("lm_head", "V", "product", "final_norm", "lm_head", scope="whole",
           hf="lm_head", fused="lm_head", fused_too="logits_processor", meta="output", graph="result_output",
           trt="lm_head",
           gguf="output",
           onnx="lm_head/MatMul",
           ggml="MUL_MAT output.weight or MUL_MAT token_embd.weight"),  # the embedding, where it is tied
)  # fmt: skip
# Where others' names stand.
SHOWN = ("hf", "hf_too", "fused", "fused_too", "mlx", "gguf", "meta", "trt", "graph", "onnx", "ggml")


@lru_cache
def of_pieces(pieces: frozenset[str]) -> Mapping[str, Stage]:
    """The stages of a model that has these fields (engine/weights.py), by name, in order of execution.

    What a missing stage would have been made of stands for it: what comes after is made of that, and what would have
    shown the missing stage (q_proj of Qwen2 puts out the biased product, of Llama the product) shows that.
    """
    table = {s.name: s for s in STAGES}
    for name in [s.name for s in STAGES if s.weight and s.weight not in pieces]:
        gone = table.pop(name)
        (left,) = gone.inputs
        table = {n: replace(s, inputs=tuple(left if i == name else i for i in s.inputs)) for n, s in table.items()}
        if table[left].shape == gone.shape:
            shown = {x: getattr(gone, x) for x in SHOWN if not getattr(table[left], x)}
            table[left] = replace(table[left], **shown)
    return MappingProxyType(table)


# Of a model that is not known: its output projection and its MLP have no biases, as nearly all have none.
USUAL = of_pieces(
    frozenset(s.weight for s in STAGES if s.weight) - {"attn_out_bias_D", "gate_bias_F", "up_bias_F", "ffn_down_bias_D"}
)


def standing_for(name: str, has: Mapping[str, Stage]) -> str | None:
    """The stage of a model with these that holds what another model's of that name does: itself, or what it would have
    been made of, of the same shape; None if there is none."""
    s = by_name(name)
    while s.name not in has:
        if len(s.inputs) != 1 or by_name(s.inputs[0]).shape != s.shape:
            return None
        s = by_name(s.inputs[0])
    return s.name


NAMES = tuple(s.name for s in STAGES)
ALIASES = MappingProxyType({"layer_output": "post_ffn_residual"})
_BY_NAME = {s.name: (i, s) for i, s in enumerate(STAGES)} | {
    a: (i, s) for a, n in ALIASES.items() for i, s in enumerate(STAGES) if s.name == n
}


def unknown_stage(name: str, scope: Scope) -> Stage:
    """A stage of which nothing is known, for a single file under another name."""
    return _stage(name, "", "look-up", "", scope=scope)


def of_kind(*kinds: Kind) -> tuple[str, ...]:
    """The names of the stages of these kinds."""
    return tuple(s.name for s in STAGES if s.kind in kinds)


def find(name: str) -> Stage | None:
    """The stage of that name or alias, in any case; None if there is none."""
    return _BY_NAME.get(name.strip().lower(), (0, None))[1]


def by_name(name: str) -> Stage:
    """The stage of that name or alias, in any case. Raises BadInput that lists all."""
    s = find(name)
    if s is None:
        near = meant(name.strip(), NAMES)
        raise BadInput(f"unknown stage {name.strip()!r}; the stages are {', '.join(NAMES)}, or `all`{near}")
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
