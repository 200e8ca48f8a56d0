"""Engines beside PyTorch and llama.cpp (other_engines.py): every stage is explained, the engine is called by what it
does, and a mistake in it is found where it is.

Each needs its library (pip install mlx-lm, jax, onnxruntime onnx); a test is skipped where one is not installed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.load import open_weights
from qwenref.engine.weights import Weights
from qwenref.trace.dump import Dump
from qwenref.trace.verify.verify import verify

from ..scored import Score, healthy
from . import other_engines as engines

pytestmark = pytest.mark.oracle
LENGTHS = (1, 7, 60, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model, written as Transformers writes one: 8 query heads of 32 on 2, biases that are not zero."""
    from safetensors.numpy import save_file

    r = np.random.default_rng(0)
    V, D, F, N, K, H = 101, 256, 512, 8, 2, 32

    def some(*shape: int, size: float = 0.15, around: float = 0.0) -> np.ndarray:
        return (around + size * r.normal(size=shape)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": some(V, D),
        "lm_head.weight": some(V, D),
        "model.norm.weight": some(D, size=0.5, around=1),
    }
    for i in range(3):
        at = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = some(D, size=0.5, around=1)
        for name, rows in (("q", N * H), ("k", K * H), ("v", K * H)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = some(rows, D)
            tensors[f"{at}self_attn.{name}_proj.bias"] = some(rows, size=0.5)
        tensors[f"{at}self_attn.o_proj.weight"] = some(D, N * H)
        tensors[f"{at}mlp.gate_proj.weight"], tensors[f"{at}mlp.up_proj.weight"] = some(F, D), some(F, D)
        tensors[f"{at}mlp.down_proj.weight"] = some(D, F)
    path = tmp_path_factory.mktemp("others") / "model"
    path.mkdir()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": V, "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": 3, "num_attention_heads": N, "num_key_value_heads": K,
        "max_position_embeddings": 512, "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


@cache
def weights(path: Path) -> Weights:
    return open_weights(str(path))[1]


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 101, length).tolist()


def run(engine: str, folder: Path, length: int, dtype: str) -> Dump:
    w, tokens = weights(folder), prompt(length)
    if engine == "mlx":
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
        return engines.mlx(folder, w, tokens, dtype)
    if engine.startswith("jax"):
        pytest.importorskip("jax", reason="jax is not installed")
        return engines.jax(w, tokens, dtype, jitted="jitted" in engine)
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    return engines.onnx(folder, w, tokens, fused="fused" in engine)


ENGINES = [
    *((engine, dtype) for engine in ("mlx", "jax", "jax, jitted") for dtype in ("float32", "bfloat16", "float16")),
    ("onnx", "float32"), ("onnx, fused operators", "float32"),
]  # fmt: skip
SAID = {
    ("mlx", "bfloat16"): ("scale of 16 bits folded into the queries", "SiLU by a rounded sigmoid of a rounded e^|x|"),
    ("jax", "bfloat16"): ("each step of SiLU rounded", "RoPE in float32", "scores over a root of 16 bits"),
    ("jax, jitted", "bfloat16"): ("norm of the unrounded residual sum",),
    ("onnx", "float32"): ("a sigmoid good to units of 1's last place",),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("engine", "dtype"), ENGINES, ids=lambda x: x)
def test_healthy(engine: str, dtype: str, length: int, folder: Path, score: Score) -> None:
    v = verify(run(engine, folder, length, dtype), weights(folder))
    healthy(v, "unmodified engines", f"{engine}, {dtype}", score)
    assert v.recipe.result.name == dtype
    if length > 1:
        assert set(SAID.get((engine, dtype), ())) <= set(v.recipe.name.split("; "))
