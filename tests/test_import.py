"""engine import: arrays of other tools become a dump that holds the same values, or one line says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwenref.trace.dump import open_dump
from qwenref.trace.verify.verify import verify

from .test_cli import engine, refused
from .tiny import collect, tiny_weights, write_gguf

IDS = [3, 200, 17, 9, 4]
W = tiny_weights()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", W)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Every stage of one pass of the reference in f32, as .npy under the stages' names."""
    folder = tmp_path / "arrays"
    (stages,) = collect(W, "reference", "f32", IDS)
    for (name, layer), values in stages.items():
        path = folder / (f"{name}.npy" if layer is None else f"layer-{layer}/{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    return folder


def imported(source: Path, target: Path, model: Path, *flags: str) -> str:
    done = engine("import", str(source), str(target), "-m", str(model), *flags)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


def test_arrays_keep_every_bit_and_are_explained(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    imported(arrays, tmp_path / "d", gguf, "--tokens", ",".join(map(str, IDS)))
    dump = open_dump(tmp_path / "d", W.config.sizes)
    assert len(dump.entries) == 2 * 17 + 1 + 2 and dump.run["tokens"] == IDS and dump.run["absent"] == {}
    for e in dump.entries:
        path = arrays / (f"{e.stage.name}.npy" if e.layer is None else f"layer-{e.layer}/{e.stage.name}.npy")
        assert e.values().tobytes() == np.load(path).astype(np.float32).tobytes()
    assert verify(dump, W).status == 0


def test_a_map_with_parts_axes_and_scale(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    """As another engine might: Q, K and V apart, scores unscaled and by position, a batch axis, names of its own."""
    c, source = W.config, tmp_path / "own"
    source.mkdir()
    qkv = np.load(arrays / "layer-1/qkv_bias.npy")
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    for name, part in zip("qkv", np.split(qkv, [N * H, (N + K) * H], axis=1), strict=True):
        np.save(source / f"b1_{name}.npy", part.reshape(1, len(IDS), -1, H))
    scores = np.load(arrays / "layer-1/attn_scores.npy")
    np.save(source / "b1_kq.npy", (scores * np.sqrt(H)).transpose(1, 0, 2)[None])
    np.save(source / "b1_secret.npy", np.ones(3, np.float32))
    names = {f"b{{layer}}_{p[0]}": p for p in ("q_proj", "k_proj", "v_proj")}
    names |= {"b{layer}_kq": {"stage": "attn_scores", "axes": "T N S", "scale": 1 / np.sqrt(H)}}
    (tmp_path / "map.json").write_text(json.dumps(names))
    said = imported(source, tmp_path / "d", gguf, "--map", str(tmp_path / "map.json"))
    assert "1 files" in said and "b1_secret" in said
    dump = open_dump(tmp_path / "d", W.config.sizes)
    got = {e.stage.name: e.values().reshape(e.shape) for e in dump.entries}
    assert got.keys() == {"qkv_bias", "attn_scores"} and "attn_norm" in dump.run["absent"]
    np.testing.assert_array_equal(got["qkv_bias"], qkv)
    np.testing.assert_allclose(got["attn_scores"], scores, rtol=3 * 2**-24)  # scaled twice, rounded each time


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("layer-0/attn_norm", np.ones((5, 63), np.float32), "does not fit attn_norm"),
        ("layer-9/attn_norm", np.ones((5, 64), np.float32), "layers 0 to 1"),
        ("layer-0/attn_norm", np.ones((5, 64), np.int32), "int32"),
        ("layer-0/attn_norm", np.array([{}], dtype=object), "not an array"),
        ("secret", np.ones(3, np.float32), "--map"),
        ("lm_head", np.ones(0, np.float32), "0 values"),
    ],
)
def test_what_does_not_fit_is_named(name: str, values: np.ndarray, says: str, gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "arrays" / f"{name}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, values, allow_pickle=True)
    assert says in refused("import", str(tmp_path / "arrays"), str(tmp_path / "d"), "-m", str(gguf))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "object"),
        ('{"x": "no_such"}', "no_such"),
        ('{"x": {"stage": "attn_norm", "axes": "T X"}}', "axes"),
        ('{"x": {"stage": "attn_norm", "scale": "2"}}', "scale"),
        ('{"x": 3}', "stage"),
    ],
)
def test_a_wrong_map_is_named(text: str, says: str, arrays: Path, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    flags = ("-m", str(gguf), "--map", str(tmp_path / "map.json"))
    assert says in refused("import", str(arrays), str(tmp_path / "d"), *flags)


def test_two_files_of_one_stage_and_disagreeing_lengths(arrays: Path, gguf: Path, tmp_path: Path) -> None:
    where = (str(arrays), str(tmp_path / "d"), "-m", str(gguf))
    np.save(arrays / "attn_norm.0.npy", np.ones((5, 64), np.float32))
    assert "is also in" in refused("import", *where)
    (arrays / "attn_norm.0.npy").unlink()
    np.save(arrays / "layer-1/ffn_norm.npy", np.ones((4, 64), np.float32))
    assert "does not fit ffn_norm" in refused("import", *where)


def test_text_of_llama_cpp_says_what_would_do(gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "callback.txt"
    text.write_text(
        "ggml_debug:   inp_embd = (f32)  GET_ROWS(token_embd.weight{64, 259, 1, 1}) = {64, 5, 1, 1}\n [ 0.01, ...]"
    )
    assert "dump-llamacpp" in refused("import", str(text), str(tmp_path / "d"), "-m", str(gguf))


DEBUGGER = """
import sys, torch
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.model_debugging_utils import model_addition_debugger_context as debugger
torch.manual_seed(0)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)).eval()
model.save_pretrained(sys.argv[1])
for name, flag in (("printed", True), ("saved", False)):
    with debugger(model, debug_path=f"{sys.argv[1]}/{name}", do_prune_layers=False, use_repr=flag):
        model.forward(input_ids=torch.tensor([[3, 200, 17, 9, 4]]))
"""


@pytest.mark.oracle
def test_what_the_debugger_of_transformers_saves(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers (make oracle)")
    subprocess.run([sys.executable, "-c", DEBUGGER, str(tmp_path / "hf")], check=True, capture_output=True)
    model = tmp_path / "hf"
    imported(model / "saved", tmp_path / "d", model)
    from qwenref.tools.load import open_weights

    c, w = open_weights(str(model))
    dump = open_dump(tmp_path / "d", c.config.sizes)
    assert dump.run["tokens"] == IDS
    names = {e.stage.name for e in dump.entries}
    assert names >= {"embedding", "qkv_bias", "attention", "ffn_swigl", "post_ffn_residual", "final_norm", "lm_head"}
    assert names.isdisjoint({"attn_scores", "attn_softmax", "q_post_rope", "k_post_rope", "qkv_matmul"})
    assert sorted({e.layer for e in dump.entries if e.stage.name == "post_ffn_residual"}) == [0, 1, 2]
    assert verify(dump, w).status == 0
    assert "use_repr=False" in refused("import", str(model / "printed"), str(tmp_path / "e"), "-m", str(model))
