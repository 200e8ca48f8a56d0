"""The facts of an engine's arithmetic, held to the engines: Transformers as it is installed, watched by plain forward
hooks, nothing in it arranged. Every stage is explained, and the engine is called by what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")

from qwenref.engine.load import open_weights  # noqa: E402
from qwenref.engine.weights import Weights  # noqa: E402
from qwenref.trace.dump import Dump, Entry, ordered  # noqa: E402
from qwenref.trace.stages import by_name  # noqa: E402
from qwenref.trace.verify.facts import FrequenciesUntold  # noqa: E402
from qwenref.trace.verify.finding import UNEXPLAINED  # noqa: E402
from qwenref.trace.verify.verify import verify  # noqa: E402

from ..scored import Score, healthy  # noqa: E402

pytestmark = pytest.mark.oracle
LENGTHS = (1, 7, 60, 200)


def made(path: Path, head_dim: int = 32, seed: int = 0, layers: int = 3, hidden: int = 256) -> Path:
    """A small random model on 2 kv heads, biases and gains that are not trivial, room for 200 positions."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=hidden, intermediate_size=512, num_hidden_layers=layers,
        num_attention_heads=hidden // head_dim, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=False, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, initializer_range=0.15,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("composed") / "model")


@cache
def weights(path: Path) -> Weights:
    return open_weights(str(path))[1]


def load(path: Path, dtype: str, attention: str) -> Any:
    """The model with its weights in a dtype; its inverse frequencies stay float32, as from_pretrained leaves them."""
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(path, dtype=torch.float32, attn_implementation=attention).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


@contextmanager
def watched(model: Any, sizes: Any, pos: tuple[int, ...], entries: list[Entry], phase: int = 0) -> Iterator[None]:
    """Forward hooks on the model's own modules; what it fuses is absent. A hook keeps what it is given as it is: a
    conversion within would be part of what torch.compile compiles."""
    hooks: list[Any] = []
    seen: list[tuple[int | None, str, Any]] = []

    def put(layer: int | None, name: str, x: Any) -> None:
        seen.append((layer, name, x))

    def entered(layer: int | None, name: str, x: Any) -> None:
        s, values = by_name(name), x.detach().float().numpy()[0]
        if "H" in s.letters:
            values = values.reshape(len(values), -1, sizes["H"])
        values = np.ascontiguousarray(values[-1] if s.positions == "last" else values, np.float32)
        rows = pos if "T" in s.letters else pos[-1:]
        entries.append(Entry(Path(name), s, layer, phase, values.shape, rows, array=values))

    def out(module: Any, layer: int | None, name: str) -> None:
        hooks.append(module.register_forward_hook(lambda _m, _x, y: put(layer, name, y)))

    def into(module: Any, layer: int | None, name: str) -> None:
        hooks.append(module.register_forward_pre_hook(lambda _m, x: put(layer, name, x[0])))

    def qkv(attention: Any, layer: int) -> None:
        parts: list[Any] = []

        def take(_m: Any, _x: Any, y: Any) -> None:
            parts.append(y)
            if len(parts) == 3:
                put(layer, "qkv_bias", torch.cat(parts, -1))

        hooks.extend(m.register_forward_hook(take) for m in (attention.q_proj, attention.k_proj, attention.v_proj))

    out(model.model.embed_tokens, 0, "embedding")
    for i, layer in enumerate(model.model.layers):
        out(layer.input_layernorm, i, "attn_norm")
        qkv(layer.self_attn, i)
        into(layer.self_attn.o_proj, i, "attention")
        out(layer.self_attn.o_proj, i, "attn_out")
        into(layer.post_attention_layernorm, i, "post_attn_residual")
        out(layer.post_attention_layernorm, i, "ffn_norm")
        out(layer.mlp.gate_proj, i, "ffn_gate")
        out(layer.mlp.up_proj, i, "ffn_up")
        out(layer.mlp.act_fn, i, "ffn_silu")
        into(layer.mlp.down_proj, i, "ffn_swigl")
        out(layer.mlp.down_proj, i, "ffn_out")
        out(layer, i, "post_ffn_residual")
    out(model.model.norm, None, "final_norm")
    out(model.lm_head, None, "lm_head")
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for kept in seen:
        entered(*kept)


def run(model: Any, path: Path, length: int, forward: Callable[[Any], Any] | None = None) -> tuple[Dump, Weights]:
    w = weights(path)
    tokens = np.random.default_rng(length).integers(0, 101, length).tolist()
    entries: list[Entry] = []
    with torch.no_grad(), watched(model, w.config.sizes, tuple(range(length)), entries):
        (model if forward is None else forward)(torch.tensor([tokens]))
    return Dump(Path("dump"), {"tokens": tokens}, w.config.sizes, ordered(entries)), w


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers(dtype: str, attention: str, length: int, saved: Path, score: Score) -> None:
    v = verify(*run(load(saved, dtype, attention), saved, length))
    healthy(v, "unmodified engines", f"Transformers {dtype}, {attention}", score)
    if dtype == "float32":
        assert v.recipe.result.name == dtype
    elif length > 1:
        name = "sdpa" if attention == "sdpa" else "bias inside the product"
        assert v.recipe.name == f"HF {dtype}, {name}"


@pytest.mark.parametrize("length", LENGTHS)
def test_math_attention(length: int, saved: Path, score: Score) -> None:
    """PyTorch's path for what no flash kernel takes: all of attention in float32."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = load(saved, "bfloat16", "sdpa")

    def forward(ids: Any) -> None:
        with sdpa_kernel(SDPBackend.MATH):
            model(ids)

    v = verify(*run(model, saved, length, forward))
    healthy(v, "unmodified engines", "Transformers bfloat16, math attention", score)
    assert length == 1 or "attention in one piece, float32 inside" in v.recipe.name


@pytest.mark.parametrize("length", LENGTHS)
def test_autocast(length: int, saved: Path, score: Score) -> None:
    model = load(saved, "float32", "sdpa")

    def forward(ids: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(ids)

    v = verify(*run(model, saved, length, forward))
    healthy(v, "unmodified engines", "Transformers, autocast to bfloat16", score)
    assert "norms in float32" in v.recipe.name
    assert "residuals in float32" in v.recipe.name


@pytest.mark.parametrize("length", [1, 60])  # compiling takes most of the time
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compiled(dtype: str, length: int, saved: Path, score: Score) -> None:
    """torch.compile, with hooks in what it compiles: it fuses norms, RoPE and SwiGLU, and rounds them once."""
    torch._dynamo.reset()
    model = load(saved, dtype, "sdpa")
    v = verify(*run(model, saved, length, torch.compile(model)))
    healthy(v, "unmodified engines", f"Transformers {dtype}, torch.compile", score)
    if dtype != "float32" and length > 1:
        assert {"norm rounded once", "SiLU and product rounded once"} <= set(v.recipe.name.split("; "))


@pytest.mark.parametrize("length", LENGTHS)
def test_dynamic_int8(length: int, saved: Path, score: Score) -> None:
    """torch.ao's dynamic quantisation of every Linear: matrices in int8 when they are loaded, activations as they
    come."""
    from torch.ao.quantization import quantize_dynamic

    model = quantize_dynamic(load(saved, "float32", "sdpa"), {torch.nn.Linear}, dtype=torch.qint8)
    v = verify(*run(model, saved, length))
    healthy(v, "unmodified engines", "Transformers, dynamic int8", score)
    assert "matrices in int8, one scale (torch.ao)" in v.recipe.name.split("; ")


@pytest.fixture(scope="module")
def of_heads(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """A model with heads of a size, by a seed: made once."""
    at = tmp_path_factory.mktemp("heads")
    return cache(lambda head_dim, seed: made(at / f"{head_dim}-{seed}", head_dim, seed))


@pytest.mark.parametrize("length", [7, 24, 60])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_cast_with_its_buffers(
    dtype: str, head_dim: int, attention: str, length: int, of_heads: Callable[[int, int], Path]
) -> None:
    """model.to(torch.bfloat16) rounds RoPE's inverse frequencies: in every layer, and no contraction explains it. Where
    too few heads and positions show it, the dump is said not to tell."""
    path = of_heads(head_dim, 0)
    model = load(path, "float32", attention).to(getattr(torch, dtype))
    assert model.model.rotary_emb.inv_freq.dtype == getattr(torch, dtype)
    v = verify(*run(model, path, length))
    wrong = [f for f in v.findings if f.verdict == UNEXPLAINED]
    said = f"RoPE's inverse frequencies are rounded to {dtype}, as the weights are"
    if not wrong and (dtype == "float16" or length == 7):
        assert v.remarks == (FrequenciesUntold(said),)
        return
    if (dtype, attention, length) == ("bfloat16", "sdpa", 7) and head_dim > 32:
        pytest.xfail("RoPE of the unrounded product is loose as well: it explains two of three layers")
    assert {(f.layer, f.stage) for f in wrong} == {(n, "attention") for n in range(3)}
    assert {f.hypotheses[0].sentence for f in wrong} == {said}
    assert "contracted" not in v.recipe.name
    assert not v.remarks


@pytest.mark.parametrize("length", [1, 2, 3, 7, 24, 60, 120, 200])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("head_dim", "seed", "attention"), [(64, 1, "sdpa"), (128, 2, "eager"), (128, 3, "sdpa")])
def test_frequencies_that_are_right_are_not_accused(
    head_dim: int, seed: int, attention: str, dtype: str, length: int, of_heads: Callable[[int, int], Path]
) -> None:
    path = of_heads(head_dim, seed)
    v = verify(*run(load(path, dtype, attention), path, length))
    assert all(f.explained for f in v.findings)
    assert not v.remarks


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_mistake_in_it_is_still_found(dtype: str, layer: int, saved: Path) -> None:
    """The bias of the neighbour, and one head's output scaled by 1.01: at their layer, and nowhere else."""
    model = load(saved, dtype, "sdpa")
    here = model.model.layers[layer].self_attn
    with torch.no_grad():
        here.k_proj.bias.copy_(model.model.layers[(layer + 1) % 3].self_attn.k_proj.bias)
    v = verify(*run(model, saved, 20))
    assert {(f.layer, f.stage) for f in v.findings if f.verdict == UNEXPLAINED} == {(layer, "qkv_bias")}

    model = load(saved, dtype, "sdpa")

    def louder(_m: Any, inputs: Any) -> Any:
        x = inputs[0].clone()
        x[..., 32:64] *= 1.05
        return (x,)

    hook = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(louder)
    v = verify(*run(model, saved, 20))
    hook.remove()
    assert {(f.layer, f.stage) for f in v.findings if f.verdict == UNEXPLAINED} == {(layer, "attention")}
