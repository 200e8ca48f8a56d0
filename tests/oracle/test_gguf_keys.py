"""GGUF keys, one changed at a time: what llama.cpp computes of such a file is what is computed here, or it is refused.

llama.cpp reads no more than some of the keys for architecture qwen2; what it ignores and we refuse is listed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.bind import bind
from qwenref.engine.files import open_checkpoint
from qwenref.errors import BadInput
from qwenref.tests.gguf_builder import ARR, BOOL, F32, I32, STR, U16, U32, Gguf, array, f32
from qwenref.tests.models import logits

pytestmark = pytest.mark.oracle

IDS = (1, 4, 2, 0, 3, 1, 1, 2)
D, V, F, H, N, K = 32, 8, 48, 8, 4, 2


def whole() -> Gguf:
    """Two layers that differ, without a tokenizer; widths that llama.cpp's kernels take."""
    named: dict[str, tuple[int, ...]] = {
        "output.weight": (V, D),
        "token_embd.weight": (V, D),
        "output_norm.weight": (D,),
    }
    for i in range(2):
        at = f"blk.{i}."
        named |= {f"{at}attn_norm.weight": (D,), f"{at}ffn_norm.weight": (D,), f"{at}attn_output.weight": (D, N * H)}
        for p, rows in (("q", N * H), ("k", K * H), ("v", K * H)):
            named |= {f"{at}attn_{p}.weight": (rows, D), f"{at}attn_{p}.bias": (rows,)}
        named |= {f"{at}ffn_gate.weight": (F, D), f"{at}ffn_up.weight": (F, D), f"{at}ffn_down.weight": (D, F)}
    tensors = []
    for seed, (name, shape) in enumerate(named.items()):
        x = np.random.default_rng(seed).standard_normal(shape).astype("<f4") * np.float32(0.3)
        tensors.append(replace(f32(name, *shape), data=(x + ("norm" in name)).astype("<f4").tobytes()))
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STR, "qwen2"),
        "qwen2.block_count": (U32, 2),
        "qwen2.context_length": (U32, 64),
        "qwen2.embedding_length": (U32, D),
        "qwen2.feed_forward_length": (U32, F),
        "qwen2.attention.head_count": (U32, N),
        "qwen2.attention.head_count_kv": (U32, K),
        "qwen2.rope.freq_base": (F32, 5000.0),
        "qwen2.attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "qwen2.vocab_size": (U32, V),
        "tokenizer.ggml.model": (STR, "no_vocab"),
    }
    return Gguf(keys=[(k, *v) for k, v in keys.items()], tensors=tensors)


Q, S = "qwen2.", "qwen2.rope.scaling."
NEUTRAL: dict[str, list[tuple[str, int, Any]]] = {
    "as it is": [],
    "gguf-split --merge": [("split.no", U16, 0), ("split.count", U16, 0), ("split.tensors.count", I32, 27)],
    "split, unsaid": [("split.no", U16, 0), ("split.count", U16, 0), ("split.tensors.count", I32, 0)],
    "one part": [("split.no", U16, 0), ("split.count", U16, 1), ("split.tensors.count", I32, 27)],
    "scaling none": [(S + "type", STR, "none")],
    "scaling linear": [(S + "type", STR, "linear")],
    "scaling linear by 1": [(S + "type", STR, "linear"), (S + "factor", F32, 1.0)],
    "scaling linear by 0": [(S + "type", STR, "linear"), (S + "factor", F32, 0.0)],
    "scaling yarn": [(S + "type", STR, "yarn")],
    "scaling yarn by 1": [
        (S + "type", STR, "yarn"), (S + "factor", F32, 1.0), (S + "original_context_length", U32, 16),
        (S + "finetuned", BOOL, 1),
    ],
    "scaling none, the rest is there": [
        (S + "type", STR, "none"), (S + "original_context_length", U32, 16), (S + "attn_factor", F32, 1.0),
        (S + "yarn_log_multiplier", F32, 0.1), (S + "yarn_beta_fast", F32, 8.0), (S + "yarn_beta_slow", F32, 2.0),
    ],
    "old linear scale 1": [(Q + "rope.scale_linear", F32, 1.0)],
    "causal": [(Q + "attention.causal", BOOL, 1)],
    "heads by layer": [
        (Q + "attention.head_count", ARR, array(U32, [N, N])), (Q + "attention.head_count_kv", ARR, array(I32, [K, K])),
        (Q + "feed_forward_length", ARR, array(U32, [F, F])),
    ],
    "head size said": [(Q + "attention.key_length", U32, H), (Q + "attention.value_length", U32, H),
                       (Q + "rope.dimension_count", U32, H)],
    "no experts": [(Q + "expert_count", U32, 0), (Q + "expert_used_count", U32, 0)],
    "pooling": [(Q + "pooling_type", U32, 0)],
    "neutral, and not read for qwen2": [
        (Q + "logit_scale", F32, 1.0), (Q + "attn_logit_softcapping", F32, 0.0), (Q + "residual_scale", F32, 1.0),
        (Q + "attention.max_alibi_bias", F32, 0.0), (Q + "attention.clamp_kqv", F32, 0.0),
        (Q + "use_parallel_residual", BOOL, 0), (Q + "attention.layer_norm_epsilon", F32, 0.5),
    ],
}  # fmt: skip
YARN = [(S + "type", STR, "yarn"), (S + "factor", F32, 4.0)]
SCALED: dict[str, list[tuple[str, int, Any]]] = {  # what llama.cpp computes otherwise, and so is computed here
    "linear by 4": [(S + "type", STR, "linear"), (S + "factor", F32, 4.0)],
    "a factor without a type": [(S + "factor", F32, 4.0)],
    "yarn by 4": YARN,
    "yarn from 16 positions": [*YARN, (S + "original_context_length", U32, 16)],
    "yarn with a factor of its magnitude": [*YARN, (S + "attn_factor", F32, 1.5)],
    "a magnitude alone": [(S + "attn_factor", F32, 2.0)],
    "a magnitude, and linear by 4": [
        (S + "type", STR, "linear"), (S + "factor", F32, 4.0), (S + "attn_factor", F32, 1.25),
    ],
    "old linear scale": [(Q + "rope.scale_linear", F32, 4.0)],
    "not causal": [(Q + "attention.causal", BOOL, 0)],
    "scaling none beside a factor": [(S + "type", STR, "none"), (S + "factor", F32, 4.0)],
}  # fmt: skip
# Whether llama.cpp computes another thing, or ignores it.
REFUSED: dict[str, tuple[list[tuple[str, int, Any]], bool]] = {
    "yarn_ext_factor": ([*YARN, (S + "yarn_ext_factor", F32, 0.5)], True),
    "a window without a pattern": ([(Q + "attention.sliding_window", U32, 4)], False),
    "logit_scale": ([(Q + "logit_scale", F32, 0.25)], False),
    "softcapping": ([(Q + "final_logit_softcapping", F32, 1.0)], False),
}


def theirs(path: Path, **asked: float) -> np.ndarray:
    """llama.cpp's logits behind the last of IDS, its cache in float32. asked: settings beside the file's."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    alone = {"n_ctx": 64, "n_gpu_layers": 0, "n_threads": 1, "type_k": 0, "type_v": 0}
    m = llama_cpp.Llama(str(path), verbose=False, logits_all=True, **alone | asked)
    m.eval(IDS)
    found = np.array(m.scores[len(IDS) - 1])
    m.close()
    return found


def save(path: Path, keys: list[tuple[str, int, Any]]) -> Path:
    g = whole()
    for key in keys:
        g = g.put(*key)
    path.write_bytes(g.build())
    return path


@pytest.mark.parametrize("name", SCALED)
def test_what_scales_rope_changes_something(tmp_path: Path, name: str) -> None:
    """Else the test below would prove nothing: by what it allows, ten times over."""
    plain, other = (
        logits(open_checkpoint(save(tmp_path / f"{n}.gguf", k)), IDS) for n, k in (("a", []), ("b", SCALED[name]))
    )
    assert (np.abs(plain - other).max() > 1e-2 * np.abs(plain).max()) == ("none" not in name)


@pytest.mark.parametrize("name", NEUTRAL | SCALED)
def test_as_llama_cpp(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "m.gguf", (NEUTRAL | SCALED)[name])
    m = open_checkpoint(path)
    bind(m.config, m.tensors)
    assert m.notes == ()
    want = theirs(path)
    assert np.abs(logits(m, IDS) - want).max() < 1e-3 * np.abs(want).max()


def test_betas_are_the_file_s(tmp_path: Path) -> None:
    """llama.cpp leaves these keys unread for qwen2, and has settings in their place: the same numbers there."""
    betas = {"yarn_beta_fast": 1.5, "yarn_beta_slow": 0.25}
    keys = [*YARN, (S + "original_context_length", U32, 16), *((S + name, F32, x) for name, x in betas.items())]
    path = save(tmp_path / "m.gguf", keys)
    mine, want = logits(open_checkpoint(path), IDS), theirs(path, **betas)
    assert np.abs(mine - want).max() < 1e-3 * np.abs(want).max()
    assert np.abs(mine - theirs(path)).max() > 1e-2 * np.abs(want).max()


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_llama_cpp_computes_another_thing(tmp_path: Path, name: str) -> None:
    keys, differs = REFUSED[name]
    path = save(tmp_path / "m.gguf", keys)
    with pytest.raises(BadInput, match=keys[-1][0]):
        open_checkpoint(path)
    plain = theirs(save(tmp_path / "plain.gguf", []))
    assert (np.abs(theirs(path) - plain).max() > 1e-2 * np.abs(plain).max()) == differs
