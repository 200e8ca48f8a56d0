"""Qwen3's, Llama's and Mistral's small models in Transformers and in llama.cpp as they are installed: the judge on
their dumps, healthy and with mistakes planted in Transformers' modules; GGUF files run by llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref import hooks
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.carried import rope_in_gguf
from qwenref.engine.files.convert import convert
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.load import open_weights
from qwenref.engine.models.vision import find_vision
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import IDS
from qwenref.tools.dev.golden_family import MODELS, write_family
from qwenref.tools.main import main
from qwenref.trace.dump import Dump, Entry, ordered
from qwenref.trace.sources import open_dump
from qwenref.trace.stages import by_name, of_pieces
from qwenref.trace.verify.finding import EXACT, REPRODUCED, UNEXPLAINED
from qwenref.trace.verify.verify import verify

from ..tiny import add_sizes

pytestmark = pytest.mark.oracle


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    write_family(tmp_path / "model", MODELS[name])
    return tmp_path / "model"


def need_transformers() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")
    return pytest.importorskip("torch", reason="torch is not installed (make oracle)")


@pytest.mark.parametrize("words", [(), ("--hooks-only",)], ids=["every stage", "hooks only"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_healthy(folder: Path, tmp_path: Path, dtype: str, words: tuple[str, ...]) -> None:
    """All of a prompt and two steps is explained."""
    need_transformers()
    argv = ["dump-hf", str(folder), str(tmp_path / "dump"), "--tokens", ",".join(map(str, IDS)), "--dtype", dtype]
    assert main([*argv, "--decode-steps", "2", *words]) == 0
    v = verify(open_dump(tmp_path / "dump"), open_weights(folder).weights)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}
    assert len(v.findings) > 60


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_healthy_by_hooks(folder: Path, tmp_path: Path, dtype: str, attention: str) -> None:
    """What qwenref.hooks takes of the model that nothing else touches, by the names of its modules."""
    torch = need_transformers()
    import transformers

    sees = find_vision(json.loads((folder / "config.json").read_text("utf-8"))["model_type"])
    auto: Any = getattr(transformers, "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM")
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention).eval()
    dump = tmp_path / "dump.safetensors"
    with torch.no_grad(), hooks(model, dump):
        model.generate(torch.tensor([IDS]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    w = open_weights(folder).weights
    c, has = w.config, of_pieces(w.pieces)
    v = verify(open_dump(dump, c.sizes, layers=c.num_hidden_layers, stages=has), w)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}
    assert {f.stage for f in v.findings} >= {name for name, s in has.items() if s.kind == "bias"}


Plant = Callable[[Any, Any, Any], None]  # torch, a layer, another


def eps_of_heads(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.q_norm.variance_epsilon = 1e-3


def gain_of_keys(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.q_norm.weight.copy_(layer.self_attn.k_norm.weight)


def no_norm_of_keys(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.k_norm.forward = lambda x: x


def keys_of_the_neighbour(torch: Any, layer: Any, other: Any) -> None:
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(layer.self_attn, name).weight.copy_(getattr(other.self_attn, name).weight)


def no_scale(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.scaling = 1.0


def gelu(torch: Any, layer: Any, other: Any) -> None:
    layer.mlp.act_fn = torch.nn.GELU()


def down_of_the_neighbour(torch: Any, layer: Any, other: Any) -> None:
    layer.mlp.down_proj.weight.copy_(other.mlp.down_proj.weight)


def permuted_queries(torch: Any, layer: Any, other: Any) -> None:
    """The rows of a GGUF file, taken as they are."""
    w = layer.self_attn.q_proj.weight
    w.copy_(w.clone().reshape(4, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape))


def large_eps(torch: Any, layer: Any, other: Any) -> None:
    layer.input_layernorm.variance_epsilon = 1e-3


def no_output_bias(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.o_proj.bias.zero_()


def output_bias_twice(torch: Any, layer: Any, other: Any) -> None:
    layer.self_attn.o_proj.bias.mul_(2)


def bias_of_keys_for_queries(torch: Any, layer: Any, other: Any) -> None:
    a, groups = layer.self_attn, layer.self_attn.num_key_value_groups
    bias = a.k_proj.bias.view(-1, a.head_dim)
    a.q_proj.bias.copy_(bias.repeat_interleave(groups, 0).flatten())


def no_bias_of_up(torch: Any, layer: Any, other: Any) -> None:
    layer.mlp.up_proj.bias = None


def bias_of_the_neighbour(torch: Any, layer: Any, other: Any) -> None:
    layer.mlp.down_proj.bias.copy_(other.mlp.down_proj.bias)


# model, stages that must be found, the hypothesis that must be named for each (None: no name is asked for), the mistake
PLANTED: list[tuple[str, str, str | None, Plant]] = [
    ("qwen3", "q_norm", "norm-eps", eps_of_heads),
    ("qwen3", "q_norm", "norm-gain-other", gain_of_keys),
    ("qwen3", "k_norm", "norm-skipped", no_norm_of_keys),
    ("qwen3", "qkv_matmul", "weight-other-layer", keys_of_the_neighbour),
    ("qwen3", "attn_scores", "scale", no_scale),
    ("llama", "qkv_matmul", None, permuted_queries),
    ("llama", "attn_scores", "scale", no_scale),
    ("llama", "ffn_silu", "activation", gelu),
    ("llama", "ffn_out", "weight-other-layer", down_of_the_neighbour),
    ("llama", "attn_norm", "norm-eps", large_eps),
    ("qwen3, biases", "attn_out_bias", "bias-missing", no_output_bias),
    ("llama, biases", "attn_out_bias", "bias-doubled", output_bias_twice),
    ("qwen3, biases", "qkv_bias", "bias-other-piece", bias_of_keys_for_queries),
    ("llama, biases", "qkv_bias", "bias-other-piece", bias_of_keys_for_queries),
    ("llama, biases", "ffn_up_bias", "bias-missing", no_bias_of_up),
    ("llama, biases", "ffn_out_bias", "bias-other-layer", bias_of_the_neighbour),
]


@pytest.mark.parametrize(
    ("which", "stage", "named", "mistake"), PLANTED, ids=[f"{p[0]} {p[3].__name__}" for p in PLANTED]
)
def test_planted(which: str, stage: str, named: str | None, mistake: Plant, tmp_path: Path) -> None:
    torch = need_transformers()
    from qwenref.tools.dump_hf import capture, load

    write_family(tmp_path, MODELS[which])
    model, entries = load(tmp_path), list[Entry]()
    with torch.no_grad():
        mistake(torch, model.model.layers[1], model.model.layers[0])

    def emit(layer: int | None, name: str, value: np.ndarray) -> None:
        s = by_name(name)
        where = tuple(range(len(IDS))) if "T" in s.letters else (len(IDS) - 1,)
        entries.append(Entry(Path(name), s, layer, 0, value.shape, where, array=np.asarray(value, np.float32)))

    with capture(model, emit):
        model(torch.tensor([IDS]))
    w = open_weights(tmp_path).weights
    v = verify(Dump(Path("dump"), {"tokens": list(IDS)}, w.config.sizes, ordered(entries)), w)
    bad = [f for f in v.findings if f.verdict == UNEXPLAINED]
    assert {(f.layer, f.stage) for f in bad} == {(1, stage)}
    assert named is None or all(named in {h.name for h in f.hypotheses} for f in bad)


def by_gguf_py(folder: Path, path: Path) -> Path:
    """The model as llama.cpp's converter would have it, written by gguf-py: names by its table, rows of Llama's queries
    and keys permuted as conversion's `permute` does; without the output bias, where llama.cpp would refuse it; a model
    that sees as one that does."""
    import gguf

    m = open_checkpoint(folder)
    c = m.config
    said = json.loads((folder / "config.json").read_text("utf-8"))
    sees = find_vision(said["model_type"])
    called = c.architecture.gguf if sees is None else sees.gguf
    (arch,) = (a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == called)
    names, out = gguf.get_tensor_name_map(arch, c.num_hidden_layers), gguf.GGUFWriter(path, called)
    add_sizes(out, c)
    if sees is not None:
        text = said.get("text_config", said)
        rope = text.get("rope_parameters") or text["rope_scaling"]
        out.add_rope_dimension_sections([*rope["mrope_section"], 0])
        out.add_num_deepstack_layers(0)
    out.add_rope_dimension_count(c.head_dim)
    out.add_vocab_size(c.vocab_size)
    out.add_tokenizer_model("no_vocab")
    for divisors, x in rope_in_gguf(c).tensors.items():
        out.add_tensor(divisors, x)
    for name, w in m.tensors.items():
        x, spelled = dequantize(w), names.get_name(name, try_suffixes=(".weight", ".bias"))
        if called.startswith("qwen3") and name.endswith("o_proj.bias"):
            continue
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        if arch == gguf.MODEL_ARCH.LLAMA and heads:
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        out.add_tensor(spelled, np.ascontiguousarray(x))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_llama_cpp_refuses_an_output_bias_of_qwen3(tmp_path: Path) -> None:
    """As `engine convert` says."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make oracle)")
    from qwenref.tools import dump_llamacpp

    write_family(tmp_path, MODELS["qwen3, biases"])
    lost: list[str] = []
    convert(open_checkpoint(tmp_path), tmp_path / "m.gguf", lost=lost.append)
    assert any("for llama.cpp, attention's output bias: it has none in qwen3" in line for line in lost)
    m = open_checkpoint(tmp_path / "m.gguf")
    with (
        pytest.raises(BadInput, match="cannot load it"),
        dump_llamacpp.running(m, of_pieces(open_weights(m.path).weights.pieces), 4, dump_llamacpp.Run()),
    ):
        pass


@pytest.mark.parametrize("which", ["reference", "cpu"])
def test_llama_cpp_has_the_same_ids(name: str, folder: Path, tmp_path: Path, which: str) -> None:
    """Of GGUF files by gguf-py. They say no window: llama.cpp has none in these architectures."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make oracle)")
    from qwenref.tools import dump_llamacpp

    path = by_gguf_py(folder, tmp_path / "model.gguf")
    w, k = open_weights(path).weights, backend(which)
    ours = list(generate(IDS, k.prepare(w, "f32"), k, "f32", 12))
    theirs: list[int] = []
    how = dump_llamacpp.Run(keys="f32", values="f32")
    with dump_llamacpp.running(open_checkpoint(path), of_pieces(w.pieces), len(IDS) + 12, how) as forward:
        ids = list(IDS)
        for _ in ours:
            theirs.append(int(np.argmax(forward(ids, lambda *_: None))))
            ids = theirs[-1:]
    assert len(ours) == 12 and ours == theirs
    hf = {tuple(dequantize(t).reshape(-1)) for t in open_weights(folder).weights.layers[1].qkv}
    assert hf == {tuple(dequantize(t).reshape(-1)) for t in w.layers[1].qkv}


def test_llama_cpp_healthy(name: str, folder: Path, tmp_path: Path) -> None:
    """All that llama.cpp shows of a prompt and two steps is explained, with queries and keys in our order."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make oracle)")
    path = by_gguf_py(folder, tmp_path / "model.gguf")
    argv = ["dump-llamacpp", str(path), str(tmp_path / "dump"), "--tokens", ",".join(map(str, IDS)), "--kv", "f32"]
    assert main([*argv, "--decode-steps", "2"]) == 0
    v = verify(open_dump(tmp_path / "dump"), open_weights(path).weights)
    found = [f for f in v.findings if f.verdict not in (EXACT, REPRODUCED)]
    if name in ("qwen2_vl", "qwen2_5_vl"):  # llama.cpp 0.3.36's loader of qwen2vl no longer reads the norms' eps
        assert {f.stage for f in found} == {"attn_norm", "ffn_norm", "final_norm"}
        assert all("norm-eps" in {h.name for h in f.hypotheses} for f in found)
    else:
        assert not found
    assert len(v.findings) > 90
