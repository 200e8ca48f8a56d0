"""An architecture is one file of facts: its names are gguf-py's, and what it states is enough to open and convert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.engine import models
from qwenref.engine.bind import bind
from qwenref.engine.config_keys import GGUF, HF, Keys
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.models.architecture import Architecture, Tensor
from qwenref.engine.models.decoder import ATTENTION, ATTENTION_OUT, MLP, WHOLE
from qwenref.engine.weights import Layer, Weights, parts
from qwenref.errors import BadInput
from qwenref.quant.tensor import QTensor, dequantize

from ..tiny import tiny_weights

# Not of Qwen2: no bias, another name in GGUF than in config.json, other names of a matrix, a key of its own, and a
# window that no switch turns on, as Mistral's.
TOY = Architecture(
    model_type="toy",
    gguf="toyland",
    title="Toy",
    models="Toy 1",
    whole=WHOLE,
    layer=ATTENTION
    | ATTENTION_OUT
    | MLP
    | {"ffn_down": (Tensor("ffn_down", "model.layers.{}.mlp.w2.weight", "blk.{}.ffn_w2.weight", "D F"),)},
    unread=(".table",),
    hf_keys=HF | Keys(neutral={"toy_factor": (None, 1)}),
    gguf_keys=GGUF | Keys(neutral={"toy.factor": (1,)}),
    hf_defaults={"use_sliding_window": True, "max_window_layers": 0},
    hf_full={"sliding_window": None},
    pre="qwen2",
    tokenizer_class="ToyTokenizer",
)
L, D, N, K, H, F, V = 2, 32, 4, 2, 8, 48, 40
CONFIG: dict[str, Any] = {
    "architectures": ["ToyForCausalLM"], "model_type": "toy", "num_hidden_layers": L, "hidden_size": D,
    "num_attention_heads": N, "num_key_value_heads": K, "intermediate_size": F, "vocab_size": V,
    "max_position_embeddings": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "toy_factor": 1,
}  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
for i in range(L):
    SHAPES |= {
        f"model.layers.{i}.{name}.weight": shape
        for name, shape in {
            "input_layernorm": (D,), "self_attn.q_proj": (N * H, D), "self_attn.k_proj": (K * H, D),
            "self_attn.v_proj": (K * H, D), "self_attn.o_proj": (D, N * H), "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.w2": (D, F),
        }.items()
    }  # fmt: skip


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and its row."""
    monkeypatch.setattr(models, "ARCHITECTURES", (*models.ARCHITECTURES, TOY))


def write(folder: Path, config: dict[str, Any] = CONFIG, **more: tuple[int, ...]) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "config.json").write_text(json.dumps(config))
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (SHAPES | more).items()}
    save_file(values, folder / "model.safetensors")
    return folder


def use(path: Path) -> tuple[Checkpoint, Weights]:
    m = open_checkpoint(path)
    return m, bind(m.config, m.tensors)


def values(w: Weights) -> list[bytes]:
    nodes = [w.embed, w.final_norm_D, w.lm_head]
    nodes += [t for layer in w.layers for field in TOY.layer for t in parts(getattr(layer, field))]
    return [dequantize(t).tobytes() for t in nodes]


@pytest.mark.usefixtures("toy")
def test_one_file_is_enough(tmp_path: Path) -> None:
    m, w = use(write(tmp_path / "a", **{"model.layers.0.self_attn.table": (4,)}))
    assert m.config.model_type == "toy" and not m.notes
    assert w.layers[1].qkv_bias_E is None
    assert [t.name.split(".")[-2] for t in w.layers[1].qkv] == ["q_proj", "k_proj", "v_proj"]
    for name in ("b.gguf", "b.apr", "b"):
        convert(m, tmp_path / name)
        again, bound = use(tmp_path / name)
        assert again.config == m.config and values(bound) == values(w) and not again.notes

    reader = gguf.GGUFReader(tmp_path / "b.gguf")
    assert reader.get_field("general.architecture").contents() == "toyland"  # type: ignore[union-attr]
    assert reader.get_field("toyland.block_count").contents() == L  # type: ignore[union-attr]
    assert not [key for key in reader.fields if key.startswith(("toy.", "qwen2."))]
    inside = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_w2")
    whole = {"token_embd.weight", "output_norm.weight", "output.weight"}
    assert {t.name for t in reader.tensors} == whole | {f"blk.{i}.{t}.weight" for i in range(L) for t in inside}
    said = open_checkpoint(tmp_path / "b.apr").metadata
    assert (said["architecture"], said["hf_architecture"]) == ("toy", "ToyForCausalLM")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["architectures"] == ["ToyForCausalLM"] and config["sliding_window"] is None


@pytest.mark.usefixtures("toy")
def test_windows_by_its_own_defaults(tmp_path: Path) -> None:
    """Mistral's fields: a window is of every layer, and no use_sliding_window is written, which it does not know."""
    write(tmp_path / "a", CONFIG | {"sliding_window": 4})
    m, _ = use(tmp_path / "a")
    assert m.config.windows == (4,) * L
    for name in ("b.gguf", "b.apr", "b"):
        convert(m, tmp_path / name)
        assert use(tmp_path / name)[0].config == m.config
    assert "use_sliding_window" not in json.loads((tmp_path / "b" / "config.json").read_text())


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("changes", "more", "says"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, {}, "Toy with one of ForCausalLM, Model, "),
        ({"toy_factor": 2}, {}, "toy_factor is 2; that is not supported, only 1 is"),
        ({"max_window_layers": 28}, {}, "max_window_layers is 28; it is not known here and sounds"),
        ({"sliding_window": 0}, {}, "sliding_window is 0; it must be a whole number"),
        ({}, {"model.layers.1.self_attn.q_proj.bias": (N * H,)}, "bias': a Toy model of 2 layers has no use for it"),
        ({}, {"model.layers.0.mlp.down_proj.weight": (D, F)}, "a Toy model of 2 layers has no use for it"),
        ({}, {"model.norm.weight": (F,)}, "as final_norm it must have (32,)"),
        ({"model_type": "doll"}, {}, "'doll' is not supported; qwen2 is (Qwen2, Qwen2.5"),
        ({"model_type": "doll"}, {}, "toy is (Toy 1)"),
    ],
)
def test_its_own_facts_rule(tmp_path: Path, changes: dict[str, Any], more: dict[str, Any], says: str) -> None:
    write(tmp_path / "a", CONFIG | changes, **more)
    with pytest.raises(BadInput) as error:
        use(tmp_path / "a")
    assert says in str(error.value)


@pytest.mark.parametrize("a", models.ARCHITECTURES, ids=lambda a: a.model_type)
def test_names_are_gguf_pys(a: Architecture) -> None:
    """Each of Hugging Face's names becomes the ggml name that llama.cpp's converter gives it, and none is left out."""
    (arch,) = (arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == a.gguf)
    to_ggml = gguf.get_tensor_name_map(arch, 1)
    for t, _ in a.tensors_of(1, a.optional):
        assert to_ggml.get_name(t.hf.format(0), try_suffixes=(".weight", ".bias")) == t.ggml.format(0)
    theirs = {gguf.TENSOR_NAMES[t].format(bid="{}") for t in gguf.MODEL_TENSORS[arch]} - {"rope_freqs"}
    theirs = {n for n in theirs if not re.search(r"rot_embd|_exps$|gate_inp", n)}  # tables, and Mixtral's experts
    assert {t.ggml.rsplit(".", 1)[0] for t, _ in a.tensors_of(1)} == theirs


@pytest.mark.parametrize("a", models.ARCHITECTURES, ids=lambda a: a.model_type)
def test_what_is_stacked_is_a_piece(a: Architecture) -> None:
    """Else a file that has it would be taken apart into nothing."""
    assert a.stacked.keys() <= a.pieces.keys()
    assert not a.layer.keys() & {piece for pieces in a.optional.values() for piece in pieces}


@pytest.mark.parametrize("a", models.ARCHITECTURES, ids=lambda a: a.model_type)
def test_names_go_both_ways(a: Architecture) -> None:
    for t, i in a.tensors_of(12, a.optional):
        hf, ggml = t.hf.format(i), t.ggml.format(i)
        assert [a.renamed(name, "hf") for name in (hf, ggml)] == [hf, hf]
        assert [a.renamed(name, "ggml") for name in (hf, ggml)] == [ggml, ggml]
    assert a.renamed("blk.0.attn_sinks.weight", "hf") is None and a.renamed("blk.attn_q.weight", "hf") is None


def test_map_makes_every_leaf_once() -> None:
    w = tiny_weights()

    def vector(*tensors: QTensor) -> tuple[str, ...]:
        return ("vector", *(t.name for t in tensors))

    def matrix(*tensors: QTensor) -> tuple[str, ...]:
        return ("matrix", *(t.name for t in tensors))

    m = w.map(vector, matrix)
    assert m.embed is w.embed and m.inv_freq_h is w.inv_freq_h
    assert m.lm_head == ("matrix", "output.weight") and m.final_norm_D == ("vector", "output_norm.weight")
    assert m.layers[1] == Layer(
        attn_norm_D=("vector", "blk.1.attn_norm.weight"),
        qkv=("matrix", "blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight"),
        qkv_bias_E=("vector", "blk.1.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"),
        attn_out=("matrix", "blk.1.attn_output.weight"),
        ffn_norm_D=("vector", "blk.1.ffn_norm.weight"),
        gate_up=("matrix", "blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"),
        ffn_down=("matrix", "blk.1.ffn_down.weight"),
    )


def test_matrices_come_one_by_one() -> None:
    roles = [("qkv", "attn_q"), ("qkv", "attn_k"), ("qkv", "attn_v"), ("attn_out", "attn_output"),
             ("gate_up", "ffn_gate"), ("gate_up", "ffn_up"), ("ffn_down", "ffn_down")]  # fmt: skip
    want = [(field, f"blk.{i}.{name}.weight") for i in range(2) for field, name in roles]
    got = [(field, t.name) for field, t in tiny_weights().matrices()]
    assert got == [*want, ("lm_head", "output.weight")]
