"""Small synthetic Qwen2 models: seeded random weights of any block format, scaled so that activations stay near 1.

Nothing is trained and nothing is downloaded; what a test learns from such a model is whether two ways to compute the
same thing agree, at sizes where a wrong index, group or row shows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qwenref.engine.bind import bind
from qwenref.engine.config import Config, with_rope
from qwenref.engine.dora import dora_of
from qwenref.engine.forward import forward
from qwenref.engine.kernels import backend
from qwenref.engine.kernels.adapted import adapting
from qwenref.engine.rope import frequencies
from qwenref.engine.weights import Adapted, Adapter, Layer, Weights, parts
from qwenref.quant import f32
from qwenref.quant.tensor import QTensor

NORMS = ("attn_norm", "ffn_norm", "final_norm", "q_norm", "k_norm")
BIASES = ("q_bias", "k_bias", "v_bias", "attn_out_bias", "ffn_gate_bias", "ffn_up_bias", "ffn_down_bias")

# Formats that gguf-py cannot write: byte offsets of the block's half-precision scale and of its second scale, and how
# much larger the second must be for random codes to average to zero (a K-quant's value is d sc q - dmin m).
SCALES: dict[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    "IQ1_S": (0, None, 0.0),
    "IQ2_XXS": (0, None, 0.0),
    "IQ2_XS": (0, None, 0.0),
    "IQ2_S": (0, None, 0.0),
    "IQ3_XXS": (0, None, 0.0),
    "IQ3_S": (0, None, 0.0),
    "IQ4_NL": (0, None, 0.0),
    "IQ4_XS": (0, None, 0.0),
}


def _decoded_by_gguf_py() -> list[str]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    found = []
    for t, (_, size) in GGML_QUANT_SIZES.items():
        with suppress(NotImplementedError):
            dequantize(np.zeros((1, size), np.uint8), t)
            found.append(GGMLQuantizationType(t).name)
    return found


TYPES = _decoded_by_gguf_py()
SCATTERED = ("IQ1_M", "NVFP4")  # whose scales are no half in one place


def tiny_config(
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    mlp: int = 96,
    vocab: int = 259,
    tied: bool = False,
    model_type: str = "qwen2",
) -> Config:
    """A configuration with Qwen2.5's constants and the sizes asked for."""
    return Config(
        model_type=model_type,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp,
        vocab_size=vocab,
        max_position_embeddings=32768,
        rope_theta=1_000_000.0,
        rms_norm_eps=float(np.float32(1e-6)),
        tie_word_embeddings=tied,
    )


def tiny_tensor(
    name: str, fmt: str, shape: tuple[int, ...], *, std: float, mean: float, rng: np.random.Generator
) -> QTensor:
    """Random normal values in any format; where gguf-py cannot write it, random codes under scales of that size."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import NVFP4, dequantize, quantize

    if fmt == "F32":
        values = (mean + std * rng.standard_normal(shape)).astype(np.float32)
        return QTensor(fmt, shape, f32.encode(values).reshape(-1), name)
    kind = GGMLQuantizationType[fmt]
    block, size = GGML_QUANT_SIZES[kind]
    assert shape[-1] % block == 0, f"{name}: rows of {shape[-1]} values are no whole number of {fmt} blocks of {block}"
    if fmt not in SCALES and fmt not in SCATTERED:
        values = (mean + std * rng.standard_normal(shape)).astype(np.float32)
        return QTensor(fmt, shape, np.ascontiguousarray(quantize(values, kind)).view(np.uint8).reshape(-1), name)
    blocks = rng.integers(0, 256, (prod(shape) // block, size), np.uint8)

    def scale(d_n: np.ndarray) -> None:
        if fmt == "IQ1_M":  # four bits of the half on top of each of four words
            words = blocks[:, 48:].view("<u2")
            bits = d_n.astype("<f2").view("<u2")[:, None] >> np.array([0, 4, 8, 12], "u2")
            words[:] = words & 0x0FFF | (bits & 15) << 12
        elif fmt == "NVFP4":  # a scale of 8 bits, E4M3, for each of four groups
            blocks[:, :4] = NVFP4.fp32_to_ue4m3(np.repeat(d_n.astype(np.float32)[:, None], 4, axis=1))
        else:
            at, at_min, ratio = SCALES[fmt]
            for offset, factor in ((at, 1.0), (at_min, ratio)):
                if offset is not None:
                    blocks[:, offset : offset + 2] = (d_n * factor).astype("<f2").view(np.uint8).reshape(-1, 2)

    scale(np.ones(len(blocks)))
    unit = float(np.std(dequantize(blocks, kind)))
    scale(std / unit * rng.uniform(0.5, 1.5, len(blocks)))
    return QTensor(fmt, shape, blocks.reshape(-1), name)


def tiny_weights(
    *, formats: str | Mapping[str, str] = "F32", seed: int = 0, asked: Sequence[str] = (), **sizes: Any
) -> Weights:
    """A model of QTensors, the same for the same arguments. sizes: tiny_config's arguments. asked: fields of
    config.json that ask for optional pieces.

    formats: one format for every matrix, or role (engine/models/decoder.py) -> format with F32 for the rest. Norms
    and biases are F32 unless a mapping names them. Block formats need widths that are whole blocks (256 for K-quants).
    """
    c = tiny_config(**sizes)
    rng = np.random.default_rng(seed)
    tensors = list(c.architecture.tensors_of(c.num_hidden_layers, asked))
    shapes = {t.role: t.shape(c.sizes) for t, _ in tensors}
    of_role = {r: formats for r in shapes if r not in NORMS + BIASES} if isinstance(formats, str) else formats

    assert of_role.keys() <= shapes.keys(), f"no roles: {of_role.keys() - shapes.keys()}"

    def tensor(role: str, name: str) -> QTensor:
        shape = shapes[role]
        fmt = of_role.get(role, "F32")
        if role in NORMS:
            return tiny_tensor(name, fmt, shape, std=0.1, mean=1.0, rng=rng)
        if role in BIASES:
            return tiny_tensor(name, fmt, shape, std=0.5, mean=0.0, rng=rng)
        return tiny_tensor(name, fmt, shape, std=1.0 if role == "embed" else shape[-1] ** -0.5, mean=0.0, rng=rng)

    wanted = [(t, i) for t, i in tensors if not (t.role == "lm_head" and c.tie_word_embeddings)]
    return bind(c, {t.ggml.format(i): tensor(t.role, t.ggml.format(i)) for t, i in wanted})


def with_adapters(w: Weights, count: int = 1, rank: int = 5, more: str = "") -> Weights:
    """The same model, every matrix but V with so many random LoRA adapters, of the size that training gives them.

    more: "embedding", which has them, too; "bias", with which each adapter has one; "dora", by which each, and the
    embedding's, gives every row a length near to its own.
    """
    rng = np.random.default_rng(2)

    def adapted(part: QTensor, by_column: bool = False) -> QTensor | Adapted:
        if "attn_v" in part.name:
            return part
        own = []
        for scale in (0.75, -1.5)[:count]:
            shapes = {"lora_A": (rank, part.shape[1]), "lora_B": (part.shape[0], rank)}
            halves = (
                tiny_tensor(f"{part.name}.{half}.weight", "F32", shape, std=size * shape[1] ** -0.5, mean=0.0, rng=rng)
                for (half, shape), size in zip(shapes.items(), (0.2, 1.0), strict=True)
            )
            a = Adapter(*halves, scale)
            if more == "bias":
                a = replace(a, bias=rng.normal(0, 0.2, part.shape[0]))
            if more == "dora":
                start = dora_of(part, a.down, a.up, np.ones(part.shape[by_column]), by_column)
                lengths = rng.uniform(0.7, 1.3, part.shape[by_column]) / start.gain(scale)
                a = replace(a, dora=replace(start, magnitude=lengths.astype(np.float32).astype(np.float64)))
            own.append(a)
        return Adapted(part, tuple(own))

    def mapped(node: Layer | Weights, *names: str) -> dict[str, Any]:
        found = {name: tuple(map(adapted, parts(getattr(node, name)))) for name in names}
        return {name: leaf if len(leaf) > 1 else leaf[0] for name, leaf in found.items()}

    layers = tuple(replace(x, **mapped(x, "qkv", "attn_out", "gate_up", "ffn_down")) for x in w.layers)
    embed = adapted(w.embed, by_column=True) if more in ("embedding", "dora") else w.embed
    return replace(w, layers=layers, embed=embed, **mapped(w, "lm_head"))


def scaled(w: Weights, **scaling: Any) -> Weights:
    """The same model with its RoPE scaled so, by config.json's names."""
    c = with_rope(w.config, scaling)
    freq_h, long_h = (frequencies(c.rope_theta, c.head_dim, c.rope_scaling, beyond) for beyond in (False, True))
    long = long_h if c.rope_scaling.switches else None
    size = c.rope_scaling.attention_factor
    return replace(w, config=c, inv_freq_h=freq_h, long_inv_freq_h=long, magnitude=size)


def backends() -> list[Any]:
    """(backend, precision) of all that can compute here, as pytest parameters; the rest is skipped, with the reason."""
    import pytest

    params = [pytest.param("reference", p, id=f"reference-{p}") for p in ("f32", "f64")]
    for name in ("cpu", "cuda"):
        reason = None
        if name == "cuda":
            from numba import cuda

            reason = None if cuda.is_available() else "no CUDA device here"
        precisions = ("f32", "int8") if reason else backend(name).PRECISIONS
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        params += [pytest.param(name, p, id=f"{name}-{p}", marks=marks) for p in precisions]
    return params


Stages = dict[tuple[str, int | None], np.ndarray]


class Collect:
    """A tap that keeps a copy of every stage, by (stage, layer), in the precision that computed it."""

    def __init__(self, to_host: Callable[[Any], np.ndarray]) -> None:
        self.to_host, self.stages = to_host, Stages()

    def _keep(self, stage: str, layer: int | None, value: Any) -> Any:
        assert (stage, layer) not in self.stages, f"{stage} of layer {layer} came twice"
        self.stages[stage, layer] = np.array(self.to_host(value))
        return value

    def layer(self, index: int) -> Callable[[str, Any], Any]:
        return lambda stage, value: self._keep(stage, index, value)

    def whole(self, stage: str, value: Any) -> Any:
        return self._keep(stage, None, value)


def collect(w: Weights, name: str, precision: str, *passes: Sequence[int]) -> list[Stages]:
    """Every stage of forward passes over one cache, in a backend's precision."""
    k = adapting(backend(name)) if w.adapted else backend(name)
    prepared, cache = k.prepare(w, precision), k.new_cache(w.config, sum(len(p) for p in passes), precision)
    found = []
    for tokens in passes:
        tap = Collect(k.to_host)
        forward(np.array(tokens, np.int32), prepared, cache, k, tap)
        found.append(tap.stages)
    return found


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """RMS(a - b) / RMS(a), in float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.sqrt(np.mean(np.square(x - y)) / np.mean(np.square(x)))) if np.any(x != y) else 0.0


def add_sizes(out: Any, c: Config) -> None:
    """The keys of a model's sizes and constants, to gguf-py's writer."""
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_key_length(c.head_dim)
    out.add_value_length(c.head_dim)
    out.add_rope_freq_base(c.rope_theta)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)


def write_gguf(path: Path, w: Weights) -> Path:
    """The model as a GGUF file without a tokenizer, written by gguf-py."""
    from gguf import GGMLQuantizationType, GGUFWriter

    c, out = w.config, GGUFWriter(path, w.config.architecture.gguf)
    add_sizes(out, c)
    head = () if c.tie_word_embeddings else (w.lm_head,)
    layers = [t for layer in w.layers for f in fields(layer) for t in parts(getattr(layer, f.name)) if t is not None]
    for t in (w.embed, w.final_norm_D, *head, *layers):
        if t.format == "F32":
            out.add_tensor(t.name, t.data.view("<f4").reshape(t.shape))
        else:
            out.add_tensor(t.name, t.data.reshape(*t.shape[:-1], -1), raw_dtype=GGMLQuantizationType[t.format])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
