"""LoRA against PEFT as it is installed: a random adapter that it saves, its stages in float64, its ids, dumps of it by
plain hooks judged, and mistakes made in its own modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwenref
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.load import open_weights
from qwenref.engine.lora import opened_loras
from qwenref.engine.merge import merged
from qwenref.judging import opened_for
from qwenref.tools.dump_hf import capture, cast_weights
from qwenref.trace.verify.finding import Verification
from qwenref.trace.verify.verify import EXACT, REPRODUCED, verify

from ..tiny import collect

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")
peft = pytest.importorskip("peft", reason="peft is not installed (pip install peft)")
pytestmark = pytest.mark.oracle

IDS = [5, 9, 200, 17, 33, 2, 8]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(dtype: str = "float32", title: str = "Qwen2", **more: Any) -> Any:
    torch.manual_seed(3)
    c = getattr(transformers, f"{title}Config")(
        **more, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=272, max_position_embeddings=128, rope_theta=10000.0, rms_norm_eps=float(np.float32(1e-6)),
    )  # fmt: skip
    m = getattr(transformers, f"{title}ForCausalLM")._from_config(
        c, attn_implementation="eager", dtype=getattr(torch, dtype)
    )
    for name, p in m.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(0, 0.3)
    return m.eval()


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Any]:
    """Saves a base and a random adapter of it, and gives the adapter as PEFT loads it."""

    def make(dtype: str = "float32", title: str = "Qwen2", tie_word_embeddings: bool = False, **arguments: Any) -> Any:
        biases = {"attention_bias": True, "mlp_bias": True} if title == "Llama" else {}
        biases["tie_word_embeddings"] = tie_word_embeddings
        base(dtype, title, **biases).save_pretrained(tmp_path / "base")
        made = peft.get_peft_model(base(dtype, title, **biases), peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
        for name, p in made.named_parameters():
            if "magnitude" in name:  # lengths of rows, as training leaves them: a little off their start
                p.data.mul_(1 + 0.2 * torch.randn_like(p))
            elif p.requires_grad:
                p.data.normal_(0, 0.2)
        made.save_pretrained(tmp_path / "adapter")
        return peft.PeftModel.from_pretrained(base(dtype, title, **biases), tmp_path / "adapter").eval()

    return make


@pytest.mark.parametrize("arguments", [
    {"r": 6, "lora_alpha": 10, "target_modules": ALL},
    {"r": 6, "lora_alpha": 10, "target_modules": ALL, "title": "Llama"},
    {"r": 16, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "v_proj"]},
    {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "lm_head"], "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "modules_to_save": ["lm_head"], "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "modules_to_save": ["embed_tokens"], "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "modules_to_save": ["input_layernorm"], "title": "Llama"},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "use_dora": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "use_dora": True, "use_rslora": True,
     "title": "Llama"},
    {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "v_proj", "lm_head"], "use_dora": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "v_proj"], "use_dora": True,
     "ensure_weight_tying": True, "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj", "up_proj"], "lora_bias": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "lora_bias": True, "title": "Llama"},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"], "bias": "all"},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"], "bias": "lora_only", "title": "Llama"},
    {"r": 4, "lora_alpha": 6, "target_modules": ["embed_tokens", "v_proj"], "ensure_weight_tying": True,
     "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ["lm_head", "v_proj"], "ensure_weight_tying": True,
     "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"],
     "ensure_weight_tying": True, "tie_word_embeddings": True},
    {"r": 4, "lora_alpha": 6, "target_modules": r"model\.layers\.(?:0|1)\.(?:mlp|self_attn)\.(?:up|q|down)_proj"},
    {"r": 4, "lora_alpha": 6, "target_modules": r".*\.1\.(.*)_proj", "use_rslora": True,
     "rank_pattern": {r"(q|v)_proj": 2}, "alpha_pattern": {r"layers\.1\..*\.(up|k)_proj": 9}},
    {"r": 4, "lora_alpha": 6, "target_modules": ALL, "layers_to_transform": 1, "layers_pattern": "layers"},
])  # fmt: skip
def test_stages_and_ids(folders: Callable[..., Any], arguments: dict[str, Any], tmp_path: Path) -> None:
    """Over safetensors and GGUF, on two backends, and merged into each."""
    m = folders(**arguments)
    prompt = torch.tensor([IDS])
    ids = m.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    convert(open_checkpoint(tmp_path / "base"), tmp_path / "base.gguf")
    lora: list[Any] = [tmp_path / "adapter"]
    runs: list[tuple[str, Path, list[Any]]] = [(b, tmp_path / "base", lora) for b in ("cpu", "reference")]
    runs += [("reference", tmp_path / "base.gguf", lora)]
    if not (arguments.get("lora_bias") and arguments.get("title") != "Llama"):  # PEFT does not merge these, either
        for to in (tmp_path / "merged", tmp_path / "merged.gguf"):
            convert(merged(*open_weights(tmp_path / "base", loras=opened_loras(lora)))[0], to)
            runs.append(("reference", to, []))
    for backend, path, adapters in runs:
        ours = qwenref.load(path, backend=backend, lora=adapters)
        made = ours.generate(IDS, max_tokens=16)
        list(made)
        assert made.ids == ids[0, len(IDS) :].tolist(), (backend, path)
    w = open_weights(tmp_path / "base", loras=opened_loras(tmp_path / "adapter")).weights
    (found,) = collect(w, "reference", "f64", IDS)
    cast_weights(m, "float64")
    want: dict[tuple[str, int | None], Any] = {}
    with capture(m.base_model.model, lambda layer, stage, x: want.__setitem__((stage, layer), x)):
        m(input_ids=prompt, use_cache=False)
    assert want.keys() == found.keys()
    for at, x in want.items():
        assert np.abs(x - found[at]).max() <= 1e-12 * np.abs(x).max(), at


def dumped(m: Any, path: Path) -> Path:
    with qwenref.hooks(m, path), torch.no_grad():
        m.generate(torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS)), max_new_tokens=3, do_sample=False)
    return path


def findings(m: Any, tmp_path: Path) -> Verification:
    """What the judge says of a dump of the model, by the base and the adapter in the folder."""
    w = open_weights(tmp_path / "base", loras=opened_loras(tmp_path / "adapter"))
    return verify(opened_for(dumped(m, tmp_path / "dump.safetensors"), w), w.weights)


@pytest.mark.parametrize("title", ["Qwen2", "Llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_dump_is_explained(folders: Callable[..., Any], dtype: str, title: str, tmp_path: Path) -> None:
    """Adapters as they are, and merged, which rounds the sums to the model's type; of a base with biases of all."""
    m = folders(dtype, title, r=6, lora_alpha=10, target_modules=ALL)
    found = findings(m, tmp_path)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED}
    products = [f"{name}_bias" if title == "Llama" else name for name in ("attn_out", "ffn_gate", "ffn_up", "ffn_out")]
    assert {f.stage for f in found.findings} >= {"qkv_bias", *products, "lm_head"}
    if dtype == "float32":
        assert {f.verdict for f in findings(m.merge_and_unload(), tmp_path).findings} <= {EXACT, REPRODUCED}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("title", ["Qwen2", "Llama"])
def test_a_healthy_dump_of_dora_is_explained(
    folders: Callable[..., Any], dtype: str, title: str, tmp_path: Path
) -> None:
    """Of every projection, and of the embedding; merged, too."""
    m = folders(dtype, title, r=6, lora_alpha=10, target_modules=[*ALL, "embed_tokens"], use_dora=True)
    found = findings(m, tmp_path)
    assert {f.verdict for f in found.findings} <= {EXACT, REPRODUCED}
    assert {f.stage for f in found.findings} >= {"embedding", "qkv_bias", "lm_head"}
    if dtype == "float32":
        assert {f.verdict for f in findings(m.merge_and_unload(), tmp_path).findings} <= {EXACT, REPRODUCED}


@pytest.mark.parametrize("arguments", [
    {"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["q_proj", "o_proj"], "bias": "all"},
    {"target_modules": ["q_proj", "down_proj"], "lora_bias": True},
])  # fmt: skip
def test_a_healthy_dump_with_more_is_explained(
    folders: Callable[..., Any], arguments: dict[str, Any], tmp_path: Path
) -> None:
    m = folders("bfloat16", r=6, lora_alpha=10, **arguments)
    assert {f.verdict for f in findings(m, tmp_path).findings} <= {EXACT, REPRODUCED}


MORE: dict[str, tuple[str, Callable[[Any], Any], tuple[int, str], str]] = {
    "DoRA's magnitude forgotten": (
        "model.layers.1.mlp.down_proj", lambda module: module.lora_variant.clear(), (1, "ffn_out"), "dora-magnitude",
    ),
    "DoRA left out": (
        "model.layers.1.self_attn.o_proj", lambda module: module.enable_adapters(False), (1, "attn_out"),
        "adapter-missing",
    ),
    "DoRA by another scale": (
        "model.layers.1.mlp.gate_proj", lambda module: module.set_scale("default", 0.3), (1, "ffn_gate"),
        "adapter-scaled",
    ),
    "the embedding's forgotten magnitude": (
        "model.embed_tokens", lambda module: module.lora_variant.clear(), (0, "embedding"), "dora-magnitude",
    ),
    "the embedding's left out": (
        "model.embed_tokens", lambda module: module.enable_adapters(False), (0, "embedding"), "adapter-missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MORE)
def test_a_mistake_with_dora_in_pefts_own_module(folders: Callable[..., Any], mistake: str, tmp_path: Path) -> None:
    where, make, at, name = MORE[mistake]
    m = folders(r=6, lora_alpha=10, target_modules=[*ALL, "embed_tokens"], use_dora=True)
    make(m.base_model.model.get_submodule(where))
    bad = [f for f in findings(m, tmp_path).findings if f.verdict not in (EXACT, REPRODUCED)]
    assert {(f.layer, f.stage) for f in bad} == {at}
    for f in bad:
        assert f.hypotheses and f.hypotheses[0].name == name, f.hypotheses


MISTAKES: dict[str, tuple[str, Callable[[Any], None], str, str]] = {
    "left out": ("self_attn.o_proj", lambda module: module.enable_adapters(False), "attn_out", "adapter-missing"),
    "left out of one of three": ("self_attn.q_proj", lambda module: module.enable_adapters(False), "qkv_bias",
                                 "adapter-missing"),
    "twice": ("mlp.down_proj", lambda module: module.set_scale("default", 2.0), "ffn_out", "adapter-twice"),
    "by 1": ("mlp.up_proj", lambda module: module.scaling.update(default=1.0), "ffn_up", "adapter-scaled"),
    "other scale": ("mlp.gate_proj", lambda module: module.set_scale("default", 0.3), "ffn_gate", "adapter-scaled"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_pefts_own_module(folders: Callable[..., Any], mistake: str, tmp_path: Path) -> None:
    where, make, stage, name = MISTAKES[mistake]
    m = folders(r=6, lora_alpha=10, target_modules=ALL)
    make(m.base_model.model.get_submodule(f"model.layers.1.{where}"))
    bad = [f for f in findings(m, tmp_path).findings if f.verdict not in (EXACT, REPRODUCED)]
    assert {(f.layer, f.stage) for f in bad} == {(1, stage)}
    for f in bad:
        assert f.hypotheses and f.hypotheses[0].name == name, f.hypotheses
