"""Public stories of Qwen2-shaped models whose output was wrong or differed, each emulated small: the engine's mistake
in a dump that an engine of that story's arithmetic makes, and what `engine verify` says of it.

    python -P -m qwenref.tests.cases docs/cases.md

writes the table. A story whose cause was never published is emulated by the cause that fits it best, and says so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from qwenref.engine.weights import Weights
from qwenref.quant import f32 as format_f32
from qwenref.quant.tensor import QTensor
from qwenref.trace.dump import Dump
from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.report.text import engine_words, sentence
from qwenref.trace.verify.verify import verify

from .engines import Mistake, Run, dump_of, f32
from .field import FIELD, Engine, asymmetric, e4m3, mixed, scores
from .plants import PLANTS, YARN, everywhere, free_softmax, keys, layer, split_heads, tail, values
from .tiny import scaled, tiny_weights

A = np.ndarray
LAYERS = 3
TOKENS = np.random.default_rng(1).integers(0, 259, 12).tolist()
NAMED, DESCRIBED, LOCATED, MISSED, OUTSIDE = "named", "described", "located", "missed", "not reachable"
Made = tuple[Dump, Weights]


@dataclass(frozen=True)
class Case:
    """number: in the survey of public cases. thread: where it was told. story: its cause. kind: of what.

    make: the dump and its model; None where no stage of the forward pass tells it, and `reason` says why. stages: those
    that the mistake is in; none for a dump that is right. said: what names it, in the first sentence, or, of a dump
    that is right, in the words for its engine. described: what describes it without its name.
    """

    number: int
    thread: str
    story: str
    kind: str
    make: Callable[[], Made] | None = None
    stages: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    described: tuple[str, ...] = ()
    reason: str = ""


CASES: list[Case] = []


def case(number: int, thread: str, story: str, kind: str, *stages: str, **more: Any) -> Callable[[Any], Any]:
    def enter(make: Callable[[], Made]) -> Callable[[], Made]:
        CASES.append(Case(number, thread, story, kind, make, stages, **more))
        return make

    return enter


def outside(number: int, thread: str, story: str, kind: str, reason: str) -> None:
    CASES.append(Case(number, thread, story, kind, reason=reason))


# -- models and dumps -------------------------------------------------------------------------------------------------


@cache
def weights(formats: str = "Q8_0", windows: tuple[int, ...] = (), yarn: bool = False) -> Weights:
    w = tiny_weights(layers=LAYERS, hidden=256, head_dim=32, heads=8, mlp=512, formats=formats)
    w = scaled(w, **dict(YARN)) if yarn else w
    return replace(w, config=replace(w.config, windows=windows))


def larger(w: Weights, name: str, factor: float) -> Weights:
    """The model whose matrix or bias counts more, in every layer; of a bias of three parts those of Q and K."""

    def grown(t: Any) -> Any:
        if isinstance(t, tuple):
            return (*map(grown, t[:2]), *t[2:])
        v = np.asarray(t.data.view("<f4").reshape(t.shape) * f32(factor), f32)
        return QTensor("F32", t.shape, format_f32.encode(v).reshape(-1), t.name)

    return replace(w, layers=tuple(replace(l, **{name: grown(getattr(l, name))}) for l in w.layers))


def planted(id: str) -> Mistake:
    return next(p.make for p in PLANTS if p.id == id)


def everywhere_in(w: Weights, engine: str, mistakes: Mapping[str, Mistake], **more: Any) -> Made:
    """A dump whose mistakes are in every layer."""
    made = {(s, i): f for s, f in mistakes.items() for i in ((None,) if s in WHOLE else range(LAYERS))}
    return dump_of(w, engine, TOKENS, mistakes=made, **more), w


WHOLE = ("final_norm", "lm_head")
ROPE = ("q_post_rope", "k_post_rope")


def in_step(f: Mistake) -> Mistake:
    """In the decode step only."""
    return lambda run, x: f(run, x) if run.phase else x


def of_field(name: str) -> Engine:
    return next(e for e in FIELD if e.name == name)


# -- RoPE -------------------------------------------------------------------------------------------------------------


@case(1, "huggingface/candle#3410", "GGUF qwen2 through a Llama reader: adjacent pairs, not halves", "RoPE", *ROPE,
      said=("adjacent pairs",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF float32", {s: planted(f"rope-adjacent-pairs-{s}") for s in ROPE})


def turned_from(run: Run, y: A, pos: A) -> A:
    q, k, _ = split_heads(run, run.get("qkv_bias"))
    return run.kernels.rope(q if y.shape[1] == q.shape[1] else k, pos, run.weights.inv_freq_h)


@case(3, "unslothai/unsloth#3699", "left-padded batch: cache positions, 5 too many, are position ids", "RoPE",
      *ROPE, said=("off by +5",))  # fmt: skip
def _() -> Made:
    late = in_step(lambda run, y: turned_from(run, y, run.pos_T + np.int32(5)))
    return everywhere_in(weights(), "HF bfloat16", dict.fromkeys(ROPE, late), steps=[5])


@case(39, "turboderp-org/exllamav2#641", "YaRN is missing", "RoPE", *ROPE, said=("scaling is not applied",))
def _() -> Made:
    return everywhere_in(weights(yarn=True), "HF float16", {s: planted(f"rope-scaling-missing-{s}") for s in ROPE})


@case(40, "vllm-project/vllm#4930", "rope_scaling is ignored", "RoPE", *ROPE, said=("scaling is not applied",))
def _() -> Made:
    return everywhere_in(weights(yarn=True), "HF bfloat16", {s: planted(f"rope-scaling-missing-{s}") for s in ROPE})


@case(41, "NVIDIA/TensorRT-LLM#9059", "YaRN wrong on the plain attention path (not public how; here: linear)", "RoPE",
      *ROPE, said=("scaled by linear",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(yarn=True), "HF float16", {s: planted(f"rope-scaling-other-{s}") for s in ROPE})


@case(42, "vllm-project/vllm#48351", "YaRN's attention_factor is dropped", "RoPE", *ROPE, said=("magnitude", "missing"))
def _() -> Made:
    return everywhere_in(weights(yarn=True), "HF bfloat16", {s: planted(f"rope-magnitude-{s}") for s in ROPE})


@case(43, "guoqingbao/xinfer#329", "YaRN's magnitude is put on the attention scale too", "RoPE", "attn_scores",
      said=("multiplied by RoPE's magnitude",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(yarn=True), "HF float32", {"attn_scores": planted("scores-magnitude")})


@case(47, "paiml/realizar#39", "taken for another architecture: RoPE's pairs and the heads' groups", "RoPE",
      *ROPE, "attn_scores", said=("adjacent pairs",))  # fmt: skip
def _() -> Made:
    pairs = {s: planted(f"rope-adjacent-pairs-{s}") for s in ROPE}
    return everywhere_in(weights(), "HF float32", {**pairs, "attn_scores": planted("head-grouping")})


@case(51, "tenstorrent/tt-xla#2143", "the rotary embedding (not public how; here: cosines and sines of another base)",
      "RoPE", *ROPE, said=("theta is 10,000",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF bfloat16", {s: planted(f"rope-theta-{s}") for s in ROPE})


# -- masks and windows ------------------------------------------------------------------------------------------------

PADS = 3


@case(2, "huggingface/candle#3609", "the padding mask replaces the causal mask", "mask", "attn_softmax",
      said=("causal mask is missing",))  # fmt: skip
def _() -> Made:
    def wrong(run: Run, y: A) -> A:
        scores, _ = everywhere(run)
        return free_softmax(run, scores, -1, np.broadcast_to(np.arange(y.shape[2]) >= PADS, y.shape[1:]))

    return everywhere_in(weights(), "HF float32", {"attn_softmax": wrong})


@case(4, "NVIDIA-NeMo/Automodel#3704", "pads are attended to", "mask", "attn_softmax", said=("pads",))
def _() -> Made:
    """The pads' rows are not in the dump: their keys take a part of every row."""

    def wrong(run: Run, y: A) -> A:
        s = np.where(np.arange(y.shape[2]) <= run.pos_T[:, None], run.get("attn_scores"), -np.inf)
        pads = np.random.default_rng(run.at).standard_normal((*y.shape[:2], PADS))
        x = np.concatenate([pads, s], -1)
        e = np.exp(x - x.max(-1, keepdims=True))
        return tail(run, (e / e.sum(-1, keepdims=True))[..., PADS:])

    return everywhere_in(weights(), "HF bfloat16", {"attn_softmax": wrong})


@case(5, "tenstorrent/tt-forge-models#282", "only the pads' rows differed: nothing is wrong", "healthy",
      said=("bfloat16",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF bfloat16", {})


def windowed(run: Run, y: A, size: int = 4) -> A:
    return run.kernels.softmax(run.get("attn_scores"), run.pos_T, size)


@case(44, "huggingface/transformers#35896", "sliding window on the wrong layers", "mask", "attn_softmax",
      said=("window",))  # fmt: skip
def _() -> Made:
    w = weights(windows=(0, 4, 4))
    wrong = {("attn_softmax", 0): windowed, ("attn_softmax", 2): partial(windowed, size=1 << 30)}
    return dump_of(w, "HF bfloat16", TOKENS, mistakes=wrong), w


@case(45, "InternLM/lmdeploy#3614", "a window of W is applied although use_sliding_window is false", "mask",
      "attn_softmax", said=("window of 7 positions",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF float16", {"attn_softmax": partial(windowed, size=7)})


# -- cache ------------------------------------------------------------------------------------------------------------


def rows_of(order: A, zero: bool = False) -> dict[str, Mistake]:
    """The keys and values of other rows of the cache, or zeros where order is negative."""

    def taken(x: A) -> A:
        n = np.arange(len(x))
        n[: len(order)] = order[: len(x)]
        return np.where((n < 0)[:, None, None], 0, x[n]).astype(f32)

    return {
        "attn_scores": lambda run, y: run.kernels.attn_scores(run.get("q_post_rope"), taken(keys(run)), run.pos_T),
        "attention": lambda run, y: run.kernels.attn_mix(run.get("attn_softmax"), taken(values(run)), run.pos_T),
    }


ROWS = ("attn_scores", "attention")


@case(34, "NVIDIA/TensorRT-LLM#2699", "a reused block of keys and values is another one's", "cache", *ROWS,
      said=("stand",), described=("row",))  # fmt: skip
def _() -> Made:
    order = np.r_[4:8, 4:8, 8:12]
    wrong = {s: in_step(f) for s, f in rows_of(order).items()}
    return everywhere_in(weights(), "HF float16", wrong, steps=[5])


@case(46, "paiml/realizar#94", "batched prefill reads wrong KV rows", "cache", *ROWS, said=("stand",))
def _() -> Made:
    return everywhere_in(weights(), "HF float32", rows_of(np.r_[0, 2, 1, 3, 5, 4, 6:12]))


@case(48, "GeeeekExplorer/nano-vllm#213", "chunked prefill looks at slots not yet written", "cache", *ROWS,
      said=("zeros",))  # fmt: skip
def _() -> Made:
    wrong = {s: in_step(f) for s, f in rows_of(np.r_[0:8, [-1] * 4]).items()}
    return everywhere_in(weights(), "HF bfloat16", wrong, steps=[5])


@case(49, "tanishqkumar/ssd#23", "a prefix-cache hit reads wrong KV rows", "cache", *ROWS, said=("stand",))
def _() -> Made:
    wrong = {s: in_step(f) for s, f in rows_of(np.r_[8:12, 4:8, 8:12]).items()}
    return everywhere_in(weights(), "HF bfloat16", wrong, steps=[5])


@case(35, "sgl-project/sglang#20705", "KV scales of the file are replaced by 1.0", "cache", *ROWS, said=("scale",),
      described=("times what it should be",))  # fmt: skip
def _() -> Made:
    def unscaled(x: A) -> A:
        s = np.abs(x).max().astype(f32) / f32(448)
        return e4m3(x * (f32(1) / s))

    w, e = weights(), replace(of_field("KV in e4m3 and a scale, bfloat16"), instead={}, absent=())
    wrong = replace(e, cached=unscaled)
    kernels = {"attn_scores": keys, "attention": values}

    def made(run: Run, y: A, stage: str) -> A:
        if stage == "attn_scores":
            return scores(wrong, run.get("q_post_rope"), kernels[stage](run), run.pos_T)
        return mixed(wrong, run.get("attn_softmax"), kernels[stage](run), run.pos_T)

    return e.dump(w, TOKENS, mistakes={(s, 1): partial(made, stage=s) for s in ROWS}), w


@case(28, "ml-explore/mlx-examples#1182", "8-bit keys and values turn NaN (not public why; here: a group's scale is 0)",
      "cache", "attn_scores", said=("scale",))  # fmt: skip
def _() -> Made:
    def wrong(run: Run, y: A) -> A:
        y = y.copy()
        y[0] = np.nan
        return y

    return everywhere_in(weights(), "HF float16", {"attn_scores": wrong})


def healthy_field(name: str, **more: Any) -> Made:
    e = of_field(name)
    return replace(e, **more).dump(weights(), TOKENS) if more else e.dump(weights(), TOKENS), weights()


@case(29, "NVIDIA/TensorRT-LLM#4218", "FP8 keys and values", "healthy", said=("keys and values in FP8 (e4m3)",))
def _() -> Made:
    return healthy_field("KV in e4m3, float16")


@case(30, "verl-project/verl#4435", "FP8 keys and values", "healthy", said=("keys and values in FP8 (e4m3)",))
def _() -> Made:
    return healthy_field("KV in e4m3, bfloat16")


@case(33, "vllm-project/vllm#41343", "FP8 (e5m2) keys and values", "healthy", said=("keys and values in FP8 (e5m2)",))
def _() -> Made:
    return healthy_field("KV in e5m2, bfloat16")


@case(31, "huggingface/transformers#35185", "int4 keys and values", "healthy", said=("keys and values in",))
def _() -> Made:
    return healthy_field("KV in int8 by channel, bfloat16", cached=lambda x: asymmetric(x, -1, 15))


@case(32, "ggml-org/llama.cpp#21385", "3-bit keys", "healthy", said=("keys and values in",))
def _() -> Made:
    return healthy_field("KV in int8 by channel, float16", cached=lambda x: asymmetric(x, -1, 7))


# -- overflow ---------------------------------------------------------------------------------------------------------

ENDS = "where float16 ends at 65,504"


def overflowing(name: str, factor: float) -> Made:
    w = larger(weights("F32"), name, factor)
    with np.errstate(all="ignore"):
        return dump_of(w, "HF float16", TOKENS), w


for _number, _thread, _story in (
    (8, "QwenLM/Qwen3#910", "float16 eager: QK^T beyond 65,504"),
    (9, "QwenLM/Qwen3#826", "float16 on V100: NaN after layer 1"),
    (11, "ggml-org/llama.cpp#8503", "KQ in float16 overflows on CUDA"),
    (12, "ggml-org/llama.cpp#10434", "Vulkan: NaN (not public why; here: KQ in float16)"),
):
    case(_number, _thread, _story, "overflow", "attn_scores", said=(ENDS,))(partial(overflowing, "qkv_bias_E", 200.0))


@case(6, "vllm-project/vllm#10656", "a float16 product of a GPTQ kernel overflows", "overflow", "ffn_out", said=(ENDS,))
def _() -> Made:
    return overflowing("ffn_down", 2e5)


@case(7, "vllm-project/vllm#14126", "float16 overflow in down_proj", "overflow", "ffn_out", said=(ENDS,))
def _() -> Made:
    return overflowing("ffn_down", 2e5)


@case(18, "turboderp-org/exllamav2#628", "the hidden state leaves float16", "overflow", "attn_out", said=(ENDS,))
def _() -> Made:
    return overflowing("attn_out", 2e5)


# -- arithmetic that is right -----------------------------------------------------------------------------------------


@case(10, "huggingface/transformers#33317", "bfloat16 scores cost 0.86 perplexity", "cost", said=("costs",),
      described=("bfloat16",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF bfloat16", {})


@case(16, "ggml-org/llama.cpp#25618", "batch kernels round otherwise than single rows' (here: the CPU's)", "healthy",
      said=("Q8_0 activations",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "ggml, 16-bit KV", {}, steps=[5])


@case(
    17, "QwenLM/Qwen3#1237", "Q2_K is nonsense: the engine is right (here: Q3_K)", "healthy", said=("Q8_K activations",)
)
def _() -> Made:
    return everywhere_in(weights("Q3_K"), "ggml, 16-bit KV", {})


@case(36, "NVIDIA/TensorRT-LLM#2007", "FP8 weights and activations", "healthy", said=("FP8 activations",))
def _() -> Made:
    return healthy_field("FP8 W8A8, tensor, float16")


@case(60, "vllm-project/vllm#7627", "speculative is not greedy: exact ties", "healthy", said=("float16",))
def _() -> Made:
    return everywhere_in(weights(), "HF float16", {}, steps=[5])


@case(61, "ServiceNow/Fast-LLM#525", "trainer and vLLM differ", "healthy", said=("flash attention",))
def _() -> Made:
    return healthy_field("vLLM, compiled")


@case(62, "alibaba/Pai-Megatron-Patch#605", "HF and Megatron differ", "healthy", said=("norm rounded once",))
def _() -> Made:
    return healthy_field("Megatron")


@case(63, "TransformerLensOrg/TransformerLens#683", "it was rounding", "healthy", said=("float32",))
def _() -> Made:
    return everywhere_in(weights(), "HF float32", {})


# -- bias -------------------------------------------------------------------------------------------------------------


def without_bias(engine: str) -> Callable[[], Made]:
    return lambda: everywhere_in(weights(), engine, {"qkv_bias": planted("bias-missing")})


for _number, _thread, _story, _engine in (
    (19, "OminiX-ai/OminiX-MLX#7", "the quantiser's .biases are read, .bias is dropped", "HF float16"),
    (20, "sbryngelson/ANEForge#253", "an adapter drops the biases of q, k, v", "HF float16"),
    (21, "EricLBuehler/candle-vllm#167", "attention_bias is false by default", "HF bfloat16"),
    (22, "ServiceNow/Fast-LLM#398", "a converter loses the biases", "HF bfloat16"),
    (24, "Mesh-LLM/mesh-llm#57", "run as a Llama (not public; here: no bias)", "HF float16"),
):
    case(_number, _thread, _story, "bias", "qkv_bias", said=("bias is not added",))(without_bias(_engine))


@case(54, "SqueezeBits/Torch-TRTLLM#39", "the bias is not split under tensor parallelism: all add the first part",
      "shards", "qkv_bias", said=("rank",))  # fmt: skip
def _() -> Made:
    def wrong(run: Run, y: A) -> A:
        c, b = run.config, layer(run).qkv_bias_E
        N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        parts = [np.tile(part[: len(part) // 2], 2) for part in np.split(b, [N * H, (N + K) * H])]
        return run.kernels.add(run.get("qkv_matmul"), np.concatenate(parts))

    return everywhere_in(weights(), "HF float16", {"qkv_bias": wrong})


# -- output head ------------------------------------------------------------------------------------------------------


def unset_head(run: Run, y: A) -> A:
    w = np.random.default_rng(7).normal(0, 0.02, (len(y), run.config.hidden_size)).astype(f32)
    return tail(run, run.get("final_norm")[-1] @ w.T)


for _number, _thread, _story, _engine in (
    (25, "THUDM/slime#345", "the tied head is not copied", "HF bfloat16"),
    (26, "sgl-project/sglang#630", "lm_head is never loaded from the embedding", "HF float16"),
    (27, "casper-hansen/AutoAWQ#665", "the file has no lm_head, and it stays unset", "HF float16"),
):
    case(_number, _thread, _story, "head", "lm_head", said=("unset",))(
        partial(everywhere_in, weights(), _engine, {"lm_head": unset_head})
    )


# -- weights and layouts ----------------------------------------------------------------------------------------------


@case(13, "ggml-org/llama.cpp#11575", "Q6_K gibberish on gfx1012 (not public why; here: the high bits)", "decoder",
      "ffn_gate", said=("high bits",))  # fmt: skip
def _() -> Made:
    from .plants import half_of, rewritten

    def wrong(run: Run, y: A) -> A:
        def low(b: A) -> A:
            b[:, 128:192] = 0
            return b

        return run.kernels.linear(run.get("ffn_norm"), rewritten(half_of(run, 0), low, 210))

    return everywhere_in(weights("Q6_K"), "ggml, 16-bit KV", {"ffn_gate": wrong})


@case(14, "ggml-org/llama.cpp#13788", "Q4_K_M garbled on MUSA (not public; here: the scales' upper bits)", "decoder",
      "ffn_gate", said=("upper two bits",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights("Q4_K"), "ggml, 16-bit KV", {"ffn_gate": planted("decoder-scales")})


@case(15, "ggml-org/llama.cpp#12463", "OpenCL kernels: gibberish (not public why; here: Q4_K's nibbles)", "decoder",
      "ffn_gate", said=("nibbles",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights("Q4_K"), "ggml, 32-bit KV", {"ffn_gate": planted("decoder-nibbles")})


@case(23, "thunlp/FR-Spec#4", "own CUDA engine, garbled (not public why; here: values of another head)", "layout",
      "attention", said=("kv head",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF float16", {"attention": planted("value-head")})


def tile_lost(run: Run, y: A, start: int = 448) -> A:
    y = y.copy()
    y[:, start:] = 0
    return y


@case(50, "tenstorrent/tt-metal#27069", "garbage after an update (not public why; here: a tile of down_proj's input)",
      "shards", "ffn_swigl", said=("columns 448 to 511",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF bfloat16", {"ffn_swigl": tile_lost})


@case(37, "NVIDIA/TensorRT-LLM#2147", "SmoothQuant: empty output (not public why; here: activations not divided)",
      "decoder", "ffn_out", described=("times what it should be",))  # fmt: skip
def _() -> Made:
    return everywhere_in(weights(), "HF float16", {"ffn_out": lambda run, y: tail(run, y * f32(4))})


def zero_points(run: Run, y: A) -> A:
    """Zero points one too small: every weight of 4 bits is one step too large."""
    from .plants import decoded, half_of, matrix_of

    m = half_of(run, 0)
    w = decoded(m)
    scales = np.concatenate([p.data.reshape(-1, 18)[:, :2].copy().view("<f2") for p in m.parts]).astype(f32)
    return run.kernels.linear(run.get("ffn_norm"), matrix_of((w.reshape(-1, 32) + scales).reshape(w.shape)))


for _number, _thread, _story in (
    (38, "NVIDIA/TensorRT-Edge-LLM#105", "AWQ garbage (not public why; here: zero points off by one)"),
    (52, "microsoft/onnxruntime-genai#1019", "int4 wrong on DirectML (not public why; here: zero points off by one)"),
):
    case(_number, _thread, _story, "decoder", "ffn_gate", said=("off by one",))(
        partial(everywhere_in, weights("Q4_0"), "HF float16", {"ffn_gate": zero_points})
    )


@case(53, "intel/ipex-llm#10427", "attention's output is reshaped wrongly", "layout", "attention", said=("laid out",))
def _() -> Made:
    return everywhere_in(weights(), "HF float16", {"attention": planted("heads-interleaved")})


# -- tokens -----------------------------------------------------------------------------------------------------------


def other_tokens(ids: list[int]) -> Made:
    """The dump tells the ids that were meant, and holds what the others gave."""
    w = weights()
    dump = dump_of(w, "HF float16", ids)
    return Dump(dump.path, {"tokens": TOKENS}, dump.sizes, dump.entries), w


for _number, _thread, _story in (
    (57, "sgl-project/sglang#3427", "GGUF special tokens are split into pieces"),
    (58, "huggingface/transformers#45741", "the tokenizer maps wrongly"),
    (59, "ggml-org/llama.cpp#7898", "a second BOS"),
):
    case(_number, _thread, _story, "tokens", "embedding", said=("other tokens were run",))(
        partial(other_tokens, [77, *TOKENS[:-1]])
    )

outside(55, "unslothai/unsloth#2009", "LoRA is silently not applied", "LoRA",
        "two models are needed: `--against` the base explains every product")  # fmt: skip
outside(56, "modelscope/ms-swift#5703", "answers change when a LoRA is merged", "LoRA", "two files are compared")
outside(64, "UbiquitousLearning/mllm#456", "own conversion is nonsense", "file", "the file's format, not a stage")


# -- what is said -----------------------------------------------------------------------------------------------------


def outcome(c: Case) -> tuple[str, str]:
    """How well verify serves a case, and the sentence that it prints."""
    if c.make is None:
        return OUTSIDE, c.reason
    v = verify(*c.make())
    said = sentence(v)
    if not c.stages:
        words = f"{said} {engine_words(v)}"
        return MISSED if v.status else how_well(c, words), words
    found = {f.stage for f in v.findings if f.verdict == UNEXPLAINED}
    if not found or found - set(c.stages):
        return MISSED, said
    return how_well(c, said), said


def how_well(c: Case, said: str) -> str:
    """What a case that is judged where it is wrong is called by these words."""
    return NAMED if _has(said, c.said) else DESCRIBED if _has(said, c.described) else LOCATED


def _has(text: str, words: tuple[str, ...]) -> bool:
    return bool(words) and all(w in text for w in words)


def page(rows: list[tuple[Case, str, str]]) -> str:
    """docs/cases.md."""
    count = Counter(how for _, how, _ in rows)
    head = ", ".join(f"{how} {count[how]}" for how in (NAMED, DESCRIBED, LOCATED, MISSED, OUTSIDE))
    lines = [
        "# Public cases, and what verify says of them", "",
        "Each is emulated small (tests/cases.py); where the cause was never published, by one that fits, and the table",
        "says so. Written by `python -P -m qwenref.tests.cases docs/cases.md`.", "",
        f"Of {len(rows)}: {head}. Named: the first sentence names the mistake, or, of a dump that is right, all is",
        "explained and the engine's arithmetic is said. Described: the error is described. Located: stage and layers.",
        "", "| # | case | cause | kind | | what verify says first |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for c, how, said in rows:
        lines.append(f"| {c.number} | {c.thread} | {c.story} | {c.kind} | {how} | {said.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    only = set(map(int, sys.argv[2:]))
    rows = []
    for c in sorted(CASES, key=lambda c: c.number):
        if not only or c.number in only:
            rows.append((c, *outcome(c)))
            print(c.number, *rows[-1][1:], sep="\t", flush=True)
    from . import further
    from .stopped import table  # which is of these

    Path(sys.argv[1]).write_text("\n".join([page(rows), *further.table(), "", *table(), ""]))


if __name__ == "__main__":
    main()
