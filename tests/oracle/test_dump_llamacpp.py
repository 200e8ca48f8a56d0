"""engine dump-llamacpp on the 0.5B: each stage is what its name says, as the dump's own stages before it show."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (README: make oracle)")

from qwenref.engine.files import open_checkpoint  # noqa: E402
from qwenref.engine.kernels import reference  # noqa: E402
from qwenref.quant.tensor import dequantize  # noqa: E402
from qwenref.tools import dump_llamacpp  # noqa: E402
from qwenref.tools.load import open_weights  # noqa: E402
from qwenref.tools.main import main  # noqa: E402
from qwenref.trace.dump import Dump  # noqa: E402
from qwenref.trace.sources import open_dump  # noqa: E402
from qwenref.trace.stages import of_pieces, shape_for  # noqa: E402

from ..tiny import relative, tiny_weights  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.model]
QWEN2 = of_pieces(tiny_weights().pieces)
TEXT = "def add(a, b):\n    return"
STEPS, LAST = 2, 23


@pytest.fixture(scope="module", params=["f16", "f32"])
def kv(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dump(model_path: Path, tmp_path_factory: pytest.TempPathFactory, kv: str) -> Dump:
    at = tmp_path_factory.mktemp(kv) / "dump"
    assert main(["dump-llamacpp", str(model_path), str(at), "-p", TEXT, "--kv", kv, "--decode-steps", str(STEPS)]) == 0
    return open_dump(at)


def stage(d: Dump, name: str, layer: int | None, phase: int = 0) -> NDArray[np.float64]:
    entry = d.get(name, layer, phase)
    assert entry is not None
    return entry.values().astype(np.float64)


def half(x: NDArray[np.float64], kv: str) -> NDArray[np.float64]:
    """What a 16-bit cache makes of both operands of a product in attention."""
    return x.astype(np.float16).astype(np.float64) if kv == "f16" else x


def test_every_stage_but_silu(dump: Dump, model_path: Path, kv: str) -> None:
    dump.check_digests()
    c = open_checkpoint(model_path).config
    T = len(dump.run["tokens"])
    expected = {
        (phase, None if s.scope == "whole" else layer, s.name): shape_for(s, c.sizes, 1 if phase else T, T + phase)
        for phase in range(STEPS + 1)
        for s in QWEN2.values()
        if s.name != "ffn_silu"
        for layer in (range(c.num_hidden_layers) if s.scope == "layer" else (0,))
    }
    assert {e.key: e.shape for e in dump.entries} == expected
    assert list(dump.run["absent"]) == ["ffn_silu"] and kv in dump.run["precision"]
    assert dump.run["versions"]["llama-cpp-python"] == llama_cpp.__version__
    assert all(e.capture == dict(e.stage.capture) for e in dump.entries)


@pytest.mark.parametrize("layer", [0, 1, LAST])
@pytest.mark.parametrize("phase", range(STEPS + 1))
def test_every_stage_is_what_its_name_says(dump: Dump, model_path: Path, kv: str, layer: int, phase: int) -> None:
    """Recomputed in float64 from the stages before it. Element-wise stages, attention's products: float32 rounding.

    Matrix products have 8-bit activations, whose error is up to 3 % here; another product would be off by 100 %.
    """
    checkpoint, bound = open_weights(str(model_path))
    c, w = checkpoint.config, bound.layers[layer]
    (N, K, H), eps = (c.num_attention_heads, c.num_key_value_heads, c.head_dim), c.rms_norm_eps
    got = {
        s.name: stage(dump, s.name, layer, phase) for s in QWEN2.values() if s.scope == "layer" and s.name != "ffn_silu"
    }
    T = len(got["attn_norm"])
    pos_T = np.arange(T, dtype=np.int32) if not phase else np.array([len(dump.run["tokens"]) + phase - 1], np.int32)

    def vector(*parts: Any) -> NDArray[np.float64]:
        return np.concatenate([dequantize(p) for p in parts]).astype(np.float64)

    def product(x: NDArray[np.float64], *parts: Any) -> NDArray[np.float64]:
        return reference.linear(x, reference.Matrix(parts, np.float64))

    before = range(phase + 1)
    k_SKH = np.concatenate([stage(dump, "k_post_rope", layer, p) for p in before])
    v_SKH = np.concatenate([stage(dump, "qkv_bias", layer, p)[:, (N + K) * H :].reshape(-1, K, H) for p in before])
    qkv = got["qkv_bias"]
    q_TNH, k_TKH = (x.reshape(T, -1, H) for x in np.split(qkv[:, : (N + K) * H], [N * H], axis=1))
    into = stage(dump, "post_ffn_residual", layer - 1, phase) if layer else stage(dump, "embedding", 0, phase)
    exact = {
        "attn_norm": reference.rms_norm(into, vector(w.attn_norm_D), eps),
        "qkv_bias": got["qkv_matmul"] + vector(*w.qkv_bias_E),
        "q_post_rope": reference.rope(q_TNH, pos_T, bound.inv_freq_h),
        "k_post_rope": reference.rope(k_TKH, pos_T, bound.inv_freq_h),
        "attn_scores": reference.attn_scores(half(got["q_post_rope"], kv), half(k_SKH, kv), pos_T),
        "attn_softmax": reference.softmax(got["attn_scores"], pos_T),
        "attention": reference.attn_mix(half(got["attn_softmax"], kv), half(v_SKH, kv), pos_T),
        "post_attn_residual": into + got["attn_out"],
        "ffn_norm": reference.rms_norm(got["post_attn_residual"], vector(w.ffn_norm_D), eps),
        "ffn_swigl": reference.silu(got["ffn_gate"]) * got["ffn_up"],
        "post_ffn_residual": got["post_attn_residual"] + got["ffn_out"],
    }
    rounded = {
        "qkv_matmul": product(got["attn_norm"], *w.qkv),
        "attn_out": product(got["attention"].reshape(T, -1), w.attn_out),
        "ffn_gate": product(got["ffn_norm"], w.gate_up[0]),
        "ffn_up": product(got["ffn_norm"], w.gate_up[1]),
        "ffn_out": product(got["ffn_swigl"], w.ffn_down),
    }
    assert exact.keys() | rounded.keys() == got.keys()
    errors = {name: relative(want, got[name]) for name, want in (exact | rounded).items()}
    assert {name: e for name, e in errors.items() if not e < (5e-7 if name in exact else 0.05)} == {}


def test_the_whole_models_stages(dump: Dump, model_path: Path) -> None:
    _, w = open_weights(str(model_path))
    ids = dump.run["tokens"]
    rows = np.stack([dequantize(w.embed, i, i + 1)[0] for i in ids])
    assert np.array_equal(stage(dump, "embedding", 0), rows)
    eps, gain = w.config.rms_norm_eps, dequantize(w.final_norm_D).astype(np.float64)
    for phase in range(STEPS + 1):
        last = stage(dump, "post_ffn_residual", LAST, phase)
        assert relative(reference.rms_norm(last, gain, eps), stage(dump, "final_norm", None, phase)) < 5e-7
        logits = stage(dump, "lm_head", None, phase)
        head = reference.Matrix((w.lm_head,), np.float64)
        assert relative(reference.linear(stage(dump, "final_norm", None, phase)[-1:], head)[0], logits) < 0.05
        assert int(logits.argmax()) == [*dump.run["generated"], dump.run["next"][-1]["id"]][phase]


@cache
def undisturbed(path: Path, kv: str, ids: tuple[int, ...]) -> NDArray[np.float32]:
    """llama.cpp's logits of the last of the ids with no callback, all settings otherwise the same."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=len(ids) + STEPS, n_batch=len(ids) + STEPS, n_ubatch=len(ids) + STEPS, logits_all=True,
        type_k=dump_llamacpp.GGML_TYPES[kv], type_v=dump_llamacpp.GGML_TYPES[kv], flash_attn=False, verbose=False,
    )  # fmt: skip
    llama.eval(ids)
    return np.array(llama.scores[len(ids) - 1], np.float32)


def test_looking_changes_no_bit(dump: Dump, model_path: Path, kv: str) -> None:
    entry = dump.get("lm_head")
    assert entry is not None
    assert np.array_equal(entry.values(), undisturbed(model_path, kv, tuple(dump.run["tokens"])))


def test_what_goes_wrong_inside_the_callback_comes_out(model_path: Path) -> None:
    def emit(layer: int | None, name: str, value: Any) -> None:
        if name == "attn_norm":
            raise ZeroDivisionError("here")

    with (
        dump_llamacpp.running(open_checkpoint(model_path), QWEN2, 8, "f16") as forward,
        pytest.raises(ZeroDivisionError, match="here"),
    ):
        forward([3838, 374], emit)


def test_another_layout_of_ggml_is_noticed(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ctypes.Structure):
        _fields_ = (("extra", ctypes.c_int64), *dump_llamacpp.Tensor._fields_)

    monkeypatch.setattr(dump_llamacpp, "Tensor", Other)
    with (
        dump_llamacpp.running(open_checkpoint(model_path), QWEN2, 8, "f16") as forward,
        pytest.raises(dump_llamacpp.BadInput, match="layout of ggml_tensor"),
    ):
        forward([3838, 374], lambda *_: None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stages", "ffn_silu"], "no stage ffn_silu: llama.cpp computes silu(gate) * up in one operation"),
        (["--layers", "24"], "layer 24 is past the last"),
        (["--tokens", "3838,x"], "'x' is no token id"),
        (["--system", "be brief"], "--system is part of a chat"),
    ],
)
def test_bad_input_is_one_line(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["dump-llamacpp", str(model_path), str(tmp_path / "dump"), *words]) == 2
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_model_that_llama_cpp_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ..tiny import tiny_weights, write_gguf

    path = write_gguf(tmp_path / "tiny.gguf", tiny_weights())  # it has no tokenizer
    assert main(["dump-llamacpp", str(path), str(tmp_path / "dump"), "--tokens", "1,2"]) == 2
    line = capsys.readouterr().err
    assert "llama.cpp cannot load it" in line and line.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
