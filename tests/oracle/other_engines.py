"""Engines beside PyTorch and llama.cpp, each as its users write or install it, and what it shows of itself: mlx-lm's
own Qwen2, a plain forward pass in JAX, and ONNX Runtime on a graph of ONNX's own operators.

Each function runs one prompt and returns (stage, layer, values) as they come; what the engine fuses is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwenref.engine.weights import Weights, parts
from qwenref.quant.tensor import dequantize
from qwenref.trace.dump import Dump, Entry, ordered
from qwenref.trace.stages import by_name

Shown = list[tuple[str, int | None, np.ndarray]]


def matrix(leaf: Any) -> np.ndarray:
    """[O, I], or [O]: a tensor, or several on top of one another."""
    return np.concatenate([dequantize(p) for p in parts(leaf)])


def dump_of(w: Weights, tokens: Sequence[int], shown: Shown) -> Dump:
    pos = tuple(range(len(tokens)))
    entries = []
    for name, layer, values in shown:
        s = by_name(name)
        x = np.ascontiguousarray(values, np.float32)
        if "H" in s.letters:
            x = x.reshape(len(x), -1, w.config.head_dim)
        rows = pos if "T" in s.letters else pos[-1:]
        entries.append(Entry(Path(name), s, layer, 0, x.shape, rows, array=x))
    return Dump(Path("dump"), {"tokens": list(tokens)}, w.config.sizes, ordered(entries))


# -- MLX --------------------------------------------------------------------------------------------------------------


def mlx(folder: Path, w: Weights, tokens: Sequence[int], dtype: str) -> Dump:
    """mlx-lm's Qwen2 as mlx_lm.load makes it; each module called through one that keeps what it returned."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(getattr(mx, dtype))
    shown: Shown = []

    def keep(name: str, layer: int | None, x: Any) -> Any:
        values = np.array(x[0].astype(mx.float32))
        shown.append((name, layer, values[-1] if by_name(name).positions == "last" else values))
        return x

    class Kept:
        """A module that is called as it was."""

        def __init__(self, module: Any, layer: int | None, name: str, before: str = "") -> None:
            self.module, self.layer, self.name, self.before = module, layer, name, before

        def __call__(self, *args: Any, **more: Any) -> Any:
            if self.before:
                keep(self.before, self.layer, args[0])
            return keep(self.name, self.layer, self.module(*args, **more))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.module, name)

    class Part(Kept):
        def __call__(self, *args: Any, **more: Any) -> Any:
            parts_of[self.layer].append(self.module(*args, **more))
            if len(parts_of[self.layer]) == 3:
                keep("qkv_bias", self.layer, mx.concatenate(parts_of[self.layer], -1))
            return parts_of[self.layer][-1]

    class Turned(Kept):
        def __call__(self, x: Any, **more: Any) -> Any:
            y = self.module(x, **more)
            name = (
                "q_post_rope"
                if y.shape[1] == w.config.num_attention_heads and not turned[self.layer]
                else "k_post_rope"
            )
            turned[self.layer] += 1
            keep(name, self.layer, y.transpose(0, 2, 1, 3))
            return y

    n = w.config.num_hidden_layers
    parts_of: list[list[Any]] = [[] for _ in range(n)]
    turned = [0] * n
    inner = model.model
    inner.embed_tokens = Kept(inner.embed_tokens, 0, "embedding")
    for i, layer in enumerate(inner.layers):
        a, m = layer.self_attn, layer.mlp
        layer.input_layernorm = Kept(layer.input_layernorm, i, "attn_norm")
        layer.post_attention_layernorm = Kept(layer.post_attention_layernorm, i, "ffn_norm", "post_attn_residual")
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(a, name, Part(getattr(a, name), i, name))
        a.rope = Turned(a.rope, i, "rope")
        a.o_proj = Kept(a.o_proj, i, "attn_out", "attention")
        m.gate_proj = Kept(m.gate_proj, i, "ffn_gate")
        m.up_proj = Kept(m.up_proj, i, "ffn_up")
        m.down_proj = Kept(m.down_proj, i, "ffn_out", "ffn_swigl")
    inner.layers = [Kept(layer, i, "post_ffn_residual") for i, layer in enumerate(inner.layers)]
    inner.norm = Kept(inner.norm, None, "final_norm")
    keep("lm_head", None, model(mx.array([list(tokens)])))
    return dump_of(w, tokens, shown)


# -- JAX --------------------------------------------------------------------------------------------------------------


def jax(
    w: Weights,
    tokens: Sequence[int],
    dtype: str,
    jitted: bool,
    precision: str = "default",
    show: Callable[[str, int | None, Any], None] | None = None,
) -> Dump:
    """The forward pass as it is written in JAX: norm, RoPE and soft-max in float32, the rest in the dtype. show: is
    called with each stage, inside of what is compiled."""
    import jax as j
    import jax.numpy as jnp

    c = w.config
    N, K, H, T = c.num_attention_heads, c.num_key_value_heads, c.head_dim, len(tokens)

    def held(leaf: Any) -> Any:
        return jnp.asarray(matrix(leaf), getattr(jnp, dtype))

    def norm(x: Any, gain: Any) -> Any:
        wide = x.astype(jnp.float32)
        y = wide * j.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + c.rms_norm_eps)
        return y.astype(x.dtype) * gain

    def turned(x: Any) -> Any:
        inv = 1.0 / (c.rope_theta ** (jnp.arange(0, H, 2, dtype=jnp.float32) / H))
        angle = jnp.arange(T, dtype=jnp.float32)[:, None] * inv
        cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        a, b = jnp.split(x.astype(jnp.float32), 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)

    def forward(ids: Any, p: Any) -> Any:
        shown: dict[tuple[str, int | None], Any] = {}
        x = shown["embedding", 0] = p["embed"][ids]
        for i, q in enumerate(p["layers"]):
            h = shown["attn_norm", i] = norm(x, q["attn_norm"])
            qkv = shown["qkv_matmul", i] = h @ q["qkv"].T
            qkv = shown["qkv_bias", i] = qkv + q["bias"]
            queries, keys, values = (part.reshape(T, -1, H) for part in jnp.split(qkv, [N * H, (N + K) * H], -1))
            queries, keys = turned(queries), turned(keys)
            shown["q_post_rope", i], shown["k_post_rope", i] = queries, keys
            keys, values = jnp.repeat(keys, N // K, 1), jnp.repeat(values, N // K, 1)
            scores = shown["attn_scores", i] = jnp.einsum("tnh,snh->nts", queries, keys) / jnp.sqrt(H).astype(x.dtype)
            seen = jnp.tril(jnp.ones((T, T), bool))
            p_NTS = j.nn.softmax(jnp.where(seen, scores, -jnp.inf).astype(jnp.float32), -1).astype(x.dtype)
            shown["attn_softmax", i] = p_NTS
            mixed = shown["attention", i] = jnp.einsum("nts,snh->tnh", p_NTS, values)
            out = shown["attn_out", i] = mixed.reshape(T, -1) @ q["out"].T
            x = shown["post_attn_residual", i] = x + out
            h = shown["ffn_norm", i] = norm(x, q["ffn_norm"])
            gate, up = shown["ffn_gate", i], shown["ffn_up", i] = jnp.split(h @ q["gate_up"].T, 2, -1)
            silu = shown["ffn_silu", i] = j.nn.silu(gate)
            both = shown["ffn_swigl", i] = silu * up
            out = shown["ffn_out", i] = both @ q["down"].T
            x = shown["post_ffn_residual", i] = x + out
        last = shown["final_norm", None] = norm(x, p["norm"])
        shown["lm_head", None] = last[-1] @ p["head"].T
        for (name, layer), value in shown.items():
            if show is not None:
                show(name, layer, value)
        return {f"{name} {layer}": value for (name, layer), value in shown.items()}

    weights = {
        "embed": held(w.embed), "norm": held(w.final_norm_D), "head": held(w.lm_head),
        "layers": [
            {"attn_norm": held(q.attn_norm_D), "qkv": held(q.qkv), "bias": held(q.qkv_bias_E), "out": held(q.attn_out),
             "ffn_norm": held(q.ffn_norm_D), "gate_up": held(q.gate_up), "down": held(q.ffn_down)}
            for q in w.layers
        ],
    }  # fmt: skip
    with j.default_matmul_precision(precision):
        found = (j.jit(forward) if jitted else forward)(jnp.asarray(list(tokens)), weights)
    shown: Shown = []
    for key, value in found.items():
        name, layer = key.split()
        shown.append((name, None if layer == "None" else int(layer), np.asarray(value.astype(jnp.float32))))
    return dump_of(w, tokens, shown)


# -- ONNX Runtime -----------------------------------------------------------------------------------------------------


def onnx(folder: Path, w: Weights, tokens: Sequence[int], fused: bool) -> Dump:
    """A float32 graph on ONNX Runtime's CPU provider: of ONNX's own operators, as exporters write them; fused: with the
    operators of com.microsoft that its model builder uses."""
    import onnx as o
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    c = w.config
    N, K, H, T = c.num_attention_heads, c.num_key_value_heads, c.head_dim, len(tokens)
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    shown: list[tuple[str, int | None, str]] = []

    def const(x: Any) -> str:
        name = f"c{len(constants)}"
        constants[name] = numpy_helper.from_array(np.asarray(x), name)
        return name

    def op(kind: str, *given: str, outputs: int = 1, domain: str = "", **facts: Any) -> Any:
        names = [f"v{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(kind, list(given), names, domain=domain, **facts))
        return names[0] if outputs == 1 else names

    def keep(name: str, layer: int | None, value: str) -> str:
        shown.append((name, layer, value))
        return value

    def shaped(x: str, *shape: int) -> str:
        return op("Reshape", x, const(np.array(shape, np.int64)))

    def linear(x: str, leaf: Any) -> str:
        return op("MatMul", x, const(np.ascontiguousarray(matrix(leaf).T)))

    def norm(x: str, gain: Any) -> str:
        if fused:
            return op("SimplifiedLayerNormalization", x, const(matrix(gain)), epsilon=c.rms_norm_eps, axis=-1)
        mean = op("ReduceMean", op("Pow", x, const(np.float32(2))), const(np.array([-1], np.int64)), keepdims=1)
        root = op("Sqrt", op("Add", mean, const(np.float32(c.rms_norm_eps))))
        return op("Mul", const(matrix(gain)), op("Mul", x, op("Reciprocal", root)))

    angle = np.arange(T, dtype=np.float32)[:, None] * np.asarray(w.inv_freq_h, np.float32)
    cos, sin = np.cos(angle), np.sin(angle)

    def turned(x: str, heads: int) -> str:
        if fused:
            ids = const(np.arange(T, dtype=np.int64)[None])
            whole = shaped(x, 1, T, heads * H)
            y = op("RotaryEmbedding", whole, ids, const(cos), const(sin), domain="com.microsoft", num_heads=heads)
            return shaped(y, T, heads, H)
        a, b = op("Split", shaped(x, T, heads, H), outputs=2, axis=-1, num_outputs=2)
        wide = [const(np.concatenate([t, t], -1)[:, None]) for t in (cos, sin)]
        half = op("Concat", op("Neg", b), a, axis=-1)
        return op("Add", op("Mul", shaped(x, T, heads, H), wide[0]), op("Mul", half, wide[1]))

    def heads_first(x: str, repeated: bool) -> str:
        if repeated:
            x = shaped(op("Expand", shaped(x, T, K, 1, H), const(np.array([T, K, N // K, H], np.int64))), T, N, H)
        return op("Transpose", x, perm=[1, 0, 2])

    x = keep("embedding", 0, op("Gather", const(matrix(w.embed)), "ids"))
    for i, q in enumerate(w.layers):
        h = keep("attn_norm", i, norm(x, q.attn_norm_D))
        qkv = keep("qkv_bias", i, op("Add", linear(h, q.qkv), const(matrix(q.qkv_bias_E))))
        cuts = const(np.array([N * H, K * H, K * H], np.int64))
        queries, keys, values = op("Split", qkv, cuts, outputs=3, axis=-1)
        queries, keys = keep("q_post_rope", i, turned(queries, N)), keep("k_post_rope", i, turned(keys, K))
        q_NTH, k_NTH = heads_first(queries, False), heads_first(keys, True)
        v_NTH = heads_first(shaped(values, T, K, H), True)
        dots = op("MatMul", q_NTH, op("Transpose", k_NTH, perm=[0, 2, 1]))
        scores = keep("attn_scores", i, op("Mul", dots, const(np.float32(H**-0.5))))
        mask = np.where(np.tri(T, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
        p = keep("attn_softmax", i, op("Softmax", op("Add", scores, const(mask)), axis=-1))
        mixed = op("Transpose", op("MatMul", p, v_NTH), perm=[1, 0, 2])
        out = keep("attn_out", i, linear(shaped(keep("attention", i, mixed), T, N * H), q.attn_out))
        x = keep("post_attn_residual", i, op("Add", x, out))
        h = keep("ffn_norm", i, norm(x, q.ffn_norm_D))
        gate, up = op("Split", linear(h, q.gate_up), outputs=2, axis=-1, num_outputs=2)
        silu = op("Mul", keep("ffn_gate", i, gate), op("Sigmoid", gate))
        both = op("Mul", keep("ffn_silu", i, silu), keep("ffn_up", i, up))
        out = keep("ffn_out", i, linear(keep("ffn_swigl", i, both), q.ffn_down))
        x = keep("post_ffn_residual", i, op("Add", x, out))
    last = keep("final_norm", None, norm(x, w.final_norm_D))
    keep("lm_head", None, linear(last, w.lm_head))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for _, _, name in shown]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [T])
    graph = helper.make_graph(nodes, "qwen2", [ids], outputs, list(constants.values()))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "qwen2.onnx"
    o.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run([name for _, _, name in shown], {"ids": np.array(list(tokens), np.int64)})
    kept = [
        (name, layer, v[-1] if by_name(name).positions == "last" else v)
        for (name, layer, _), v in zip(shown, found, strict=True)
    ]
    return dump_of(w, tokens, kept)
