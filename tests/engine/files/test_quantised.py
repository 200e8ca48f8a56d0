"""Quantised checkpoints: what their libraries decode, bit by bit; whole models, by every command; files that are wrong.

tests/golden/quantised.safetensors says which libraries made it, and tools/dev/golden_quantised.py how.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.quantised import quantised_by
from qwenref.engine.files.quantised.module import DTYPES
from qwenref.engine.files.safetensors import _read_file
from qwenref.engine.files.safetensors_writer import write_safetensors
from qwenref.engine.files.writing import Planned
from qwenref.engine.kernels.cpu.matmul.packed import pack
from qwenref.engine.load import open_weights
from qwenref.errors import BadInput
from qwenref.quant.codes import SCALES
from qwenref.quant.tensor import QTensor, as_stored, by_column, dequantize, format_of, quantize, take
from qwenref.tools.main import main
from qwenref.trace.verify.hypotheses.decoders import wrong_decoders
from qwenref.trace.verify.recipes.matrix import FileMatrix

from ...mutations import in_json
from ...tiny import collect, relative

GOLDEN = Path(__file__).parents[2] / "golden/quantised.safetensors"
Tensors = dict[str, QTensor]


@cache
def golden() -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The tensors of each case and model, and its config.json or the field of it."""
    tensors, about = _read_file(GOLDEN)
    found: dict[str, Tensors] = {}
    for name, w in tensors.items():
        case, part = name.split("/")
        found.setdefault(case, {})[part] = replace(w, name=part)
    return found, json.loads(about["configs"])


CASES = [name for name in golden()[1] if not name.startswith("model ")]
MODELS = [name for name in golden()[1] if name.startswith("model ")]


def parts_of(case: str) -> tuple[Tensors, dict[str, Any]]:
    found, configs = golden()
    return {name: w for name, w in found[case].items() if name != "="}, json.loads(json.dumps(configs[case]))


def assembled(tensors: Tensors, config: dict[str, Any]) -> tuple[Tensors, list[str]]:
    quantised = quantised_by(config)
    assert quantised is not None
    return quantised.assembled(tensors)


@pytest.mark.parametrize("case", CASES)
def test_values_are_the_librarys(case: str) -> None:
    made, notes = assembled(*parts_of(case))
    assert list(made) == ["m.weight"]
    w, want = made["m.weight"], dequantize(golden()[0][case]["="])
    assert (w.name, w.shape) == ("m.weight", want.shape)
    np.testing.assert_array_equal(dequantize(w).view(np.uint32), want.view(np.uint32))
    np.testing.assert_array_equal(dequantize(w, 3, 7), want[3:7])
    np.testing.assert_array_equal(dequantize(take(w, np.array([5, 1]))), want[[5, 1]])
    in_act_order = case.endswith("-act")
    assert (format_of(w.format).block == 1) == in_act_order == (by_column(w) is not None)
    assert bool(notes) == case.startswith("fp8")
    # As small as in the file, but for a scale of each group where the file has fewer.
    assert as_stored(w)[1] < 1.13 * sum(part.data.size for part in parts_of(case)[0].values()) + 6 * w.shape[0]


@pytest.mark.parametrize("case", ["gptq-4", "ct-int8-asym", "bnb-nf4", "mlx-3", "ct-fp8-channel", "bnb-int8"])
def test_the_judge_can_take_its_formats_apart(case: str) -> None:
    """Decoded with another constant or in another order, a matrix holds other values; and is put together the same."""
    m = FileMatrix(assembled(*parts_of(case))[0]["m.weight"])
    right = m.rows(0, 4)
    np.testing.assert_array_equal(m.rebuilt(lambda b: b).rows(0, 4), right)
    wrong = {what: made().rows(0, 4) for what, made, _ in wrong_decoders(m)}
    assert not any(np.array_equal(one, right) for what, one in wrong.items() if "one too" not in what)
    assert any("constant" in what for what in wrong) == (m.facts.minimum is not None)
    assert any("nibbles" in what for what in wrong) == (case in ("gptq-4", "bnb-nf4"))


def test_compressed_tensors_in_act_order() -> None:
    """Columns in another order, each with its code and the number of its group: the library's values in that order.

    Version 0.20 of the library, which made the golden file, no longer writes such files.
    """
    tensors, config = parts_of("ct-int4-asym")
    order = np.random.default_rng(2).permutation(64)
    codes = tensors["m.weight_packed"].data.reshape(36, 32)
    codes = np.stack((codes & 15, codes >> 4), -1).reshape(36, 64)[:, order]
    packed = codes[:, ::2] | codes[:, 1::2] << 4
    tensors["m.weight_packed"] = replace(tensors["m.weight_packed"], data=packed.reshape(-1))
    g_idx = (order // 32).astype("<i4").view(np.uint8)
    tensors["m.weight_g_idx"] = QTensor("I32", (64,), g_idx, "m.weight_g_idx")
    made, notes = assembled(tensors, config)
    np.testing.assert_array_equal(dequantize(made["m.weight"]), dequantize(golden()[0]["ct-int4-asym"]["="])[:, order])
    assert as_stored(made["m.weight"])[0] == "INT_ACT/4/BF16" and not notes
    started = replace(tensors["m.weight_g_idx"], data=np.full(256, 255, np.uint8))
    assert assembled(tensors | {"m.weight_g_idx": started}, config)[0]["m.weight"].format == "INT/4/32/BF16"
    tensors["m.weight_g_idx"] = changed(tensors["m.weight_g_idx"], "<i4", 5, 2)
    with pytest.raises(BadInput, match=r"m\.weight_g_idx' is 2 at 5, and there are 2 groups"):
        assembled(tensors, config)


# ---- whole models


def save(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    planned = [Planned(n, w.format, w.shape, w.data.size, lambda w=w: iter([w.data])) for n, w in tensors.items()]
    with (folder / "model.safetensors").open("wb") as file:
        write_safetensors(file, {}, planned, lambda count: None)
    return folder


def model(name: str, folder: Path) -> tuple[Path, np.ndarray, list[int]]:
    """A model's folder, and the logits that Transformers finds in float64 at each of its token ids."""
    tensors, config = parts_of(name)
    logits, tokens = tensors.pop("logits"), tensors.pop("tokens")
    path = save(folder, tensors, config)
    return path, logits.data.view("<f8").reshape(tokens.shape[0], -1), tokens.data.view("<i8").tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_model_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    path, want_TV, tokens = model(name, tmp_path / "m")
    weights = open_weights(path).weights
    stages = collect(weights, "reference", "f64", tokens[:7], tokens[7:])
    for T, found in zip((7, len(tokens)), stages, strict=True):
        assert relative(want_TV[T - 1], found["lm_head", None]) < 1e-12
    (fast,) = collect(weights, "cpu", "f32", tokens)
    assert relative(want_TV[-1], fast["lm_head", None]) < 1e-5


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("name", ["model gptq-4-act", "model awq-gemm", "model bnb-nf4-nested", "model mlx-4"])
def test_commands(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, want_TV, tokens = model(name, tmp_path / "m")
    ids = ",".join(map(str, tokens))
    status, out, _ = answer(capsys, "run", path, "--tokens", ids, "-n", "1")
    assert status == 0 and str(int(want_TV[-1].argmax())) in out
    for copy in ("copy.gguf", "copy"):
        assert answer(capsys, "convert", path, tmp_path / copy)[0] == 0
        status, out, _ = answer(capsys, "diff", "--weights", path, tmp_path / copy)
        assert status == 0 and "identical" in out
        formats = {w.format for w in open_checkpoint(tmp_path / copy).tensors.values() if len(w.shape) > 1}
        assert formats <= {"F16", "BF16"}  # exactly, in the type of the scales
    assert quantised_by(json.loads((tmp_path / "copy/config.json").read_text())) is None
    dump = tmp_path / "dump"
    assert answer(capsys, "trace", path, "--tokens", ids, "--save-tensor", "all", "--save-tensor-dir", dump)[0] == 0
    status, out, _ = answer(capsys, "verify", dump, path)
    assert status == 0, out


@pytest.mark.parametrize("case", CASES)
def test_every_kind_is_converted(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model one of whose matrices is of that kind: into the other container and back, values all the same."""
    tensors, config = parts_of(case)
    O, I = dequantize(golden()[0][case]["="]).shape
    layer, rng = "model.layers.0", np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (64, I), "lm_head.weight": (64, I), "model.norm.weight": (I,),
        f"{layer}.input_layernorm.weight": (I,), f"{layer}.post_attention_layernorm.weight": (I,),
        f"{layer}.self_attn.q_proj.bias": (O,), f"{layer}.self_attn.k_proj.weight": (O, I),
        f"{layer}.self_attn.k_proj.bias": (O,), f"{layer}.self_attn.v_proj.weight": (O, I),
        f"{layer}.self_attn.v_proj.bias": (O,), f"{layer}.self_attn.o_proj.weight": (I, O),
        f"{layer}.mlp.gate_proj.weight": (96, I), f"{layer}.mlp.up_proj.weight": (96, I),
        f"{layer}.mlp.down_proj.weight": (I, 96),
    }  # fmt: skip
    names = {name: name.replace("m.", f"{layer}.self_attn.q_proj.", 1) for name in tensors}
    whole = {names[name]: replace(w, name=names[name]) for name, w in tensors.items()}
    whole |= {n: quantize(rng.standard_normal(shape) / 8, "BF16", n) for n, shape in shapes.items()}
    said = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1e6,
        "hidden_size": I, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": O, "num_key_value_heads": 1,
        "intermediate_size": 96, "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    }  # fmt: skip
    path = save(tmp_path / "m", whole, said | config)
    for source, to in ((path, tmp_path / "m.gguf"), (tmp_path / "m.gguf", tmp_path / "back")):
        assert answer(capsys, "convert", source, to)[0] == 0
        status, out, _ = answer(capsys, "diff", "--weights", path, to)
        assert status == 0 and "differ" not in out, out


def test_biases_that_the_quantiser_has_added(tmp_path: Path) -> None:
    """AutoGPTQ gave every Linear one; Qwen's own GPTQ folders have them, of zeros."""
    tensors, config = parts_of("model gptq-4-act")
    want = collect(open_weights(model("model gptq-4-act", tmp_path / "m")[0]).weights, "reference", "f64", [3, 4])
    del tensors["logits"], tensors["tokens"]
    name = "model.layers.1.self_attn.o_proj.bias"
    tensors[name] = QTensor("F16", (64,), np.zeros(128, np.uint8), name)
    opened = open_weights(save(tmp_path / "m", tensors, config))
    assert any(name in note for note in opened.checkpoint.notes)
    (again,), (first,) = collect(opened.weights, "reference", "f64", [3, 4]), want
    np.testing.assert_array_equal(again["lm_head", None], first["lm_head", None])
    tensors[name] = changed(tensors[name], "<f2", 63, 0.5)
    with pytest.raises(BadInput, match=f"'{name}'.*has no use for it"):
        open_weights(save(tmp_path / "m", tensors, config))


def test_added_biases_of_an_architecture_that_may_have_some(tmp_path: Path) -> None:
    """Zeros that config.json does not ask for are no piece of the model; with it, they are."""
    tensors, config = parts_of("model gptq-4-act")
    tensors = {n: w for n, w in tensors.items() if not n.endswith(".bias") and n not in ("logits", "tokens")}
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for layer in (0, 1):
        for part, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
            tensors[name] = QTensor("F16", (rows,), np.zeros(2 * rows, np.uint8), name)
    plain = open_weights(save(tmp_path / "m", tensors, config))
    assert any("have no place, and are zero" in note for note in plain.checkpoint.notes)
    asked = open_weights(save(tmp_path / "m", tensors, config | {"attention_bias": True}))
    assert asked.weights.pieces - plain.weights.pieces == {"qkv_bias_E", "attn_out_bias_D"}
    both = [collect(m.weights, "reference", "f64", [3, 4])[0]["lm_head", None] for m in (plain, asked)]
    np.testing.assert_array_equal(*both)


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    """Bytes are put together when they are asked for, and kept until they are packed."""
    tensors = open_checkpoint(model("model awq-gemm", tmp_path / "m")[0]).tensors
    w = tensors["model.layers.0.self_attn.q_proj.weight"]
    assert "data" not in vars(w)
    assert w.data is w.data and "data" in vars(w)
    before = w.data.copy()
    pack(w)
    assert "data" not in vars(w) and np.array_equal(w.data, before)


# ---- wrong files


def changed(w: QTensor, kind: str, at: int, value: float) -> QTensor:
    data = w.data.copy()
    data.view(kind)[at] = value
    return replace(w, data=data)


def cut(w: QTensor, *shape: int) -> QTensor:
    size = w.data.size // int(np.prod(w.shape)) * int(np.prod(shape))
    return replace(w, shape=shape, data=w.data[:size])


Wrong = Callable[[Tensors, dict[str, Any]], object]


def part(name: str, change: Callable[[QTensor], QTensor]) -> Wrong:
    return lambda tensors, config: tensors.__setitem__(f"m.{name}", change(tensors[f"m.{name}"]))


def gone(name: str) -> Wrong:
    return lambda tensors, config: tensors.pop(f"m.{name}")


def says(**fields: Any) -> Wrong:
    return lambda tensors, config: next(iter(config.values())).update(fields)


def weights_say(**fields: Any) -> Wrong:
    return lambda tensors, config: config["quantization_config"]["config_groups"]["group_0"]["weights"].update(fields)


def state(**fields: Any) -> Wrong:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        name = "m.weight.quant_state.bitsandbytes__nf4"
        text = json.dumps(json.loads(tensors[name].data.tobytes()) | fields).encode()
        tensors[name] = QTensor("U8", (len(text),), np.frombuffer(text, np.uint8), name)

    return change


HALF_NAN = 0x7E00
WRONG = [
    ("gptq-4", says(quant_method="hqq"), r"'hqq'.*not supported; gptq, awq, fp8, .*mlx are; give"),
    ("gptq-4", says(quant_method=None), r"tensor 'm\.weight' is missing; there is m\.scales"),
    ("gptq-4", says(bits=5), r"quantization_config: bits is 5, and must be one of 2, 3, 4, 8"),
    ("gptq-4", says(bits="4"), r"bits is '4', and must be a whole number"),
    ("gptq-4", says(bits=8), r"m\.qweight' has shape \(8, 32\), which is not 8 bits of the 64 columns"),
    ("gptq-4", says(checkpoint_format="marlin"), r"checkpoint_format is 'marlin', and must be gptq or gptq_v2"),
    ("gptq-4", says(format="gptq_v2"), r"format is 'gptq_v2', and must be"),
    ("gptq-4", says(is_marlin_format=True), r"is_marlin_format is True"),
    ("gptq-4", part("g_idx", lambda w: changed(w, "<i4", 9, 2)), r"m\.g_idx' is 2 at 9, and there are 2 groups"),
    ("gptq-4", part("g_idx", lambda w: changed(w, "<i4", 63, -1)), r"m\.g_idx' is -1 at 63"),
    ("gptq-4", says(group_size=48), r"group_size is 48: the 64 values of a row of m are no 2 groups of 48"),
    ("gptq-4-act", says(group_size=16), r"group_size is 16: the 64 values of a row of m are no 2 groups of 16"),
    ("gptq-4-act", says(group_size=0), r"group_size is 0: the 64 values of a row of m are no 2 groups of 0"),
    ("gptq-4-channel", says(group_size=32), r"group_size is 32: the 64 values of a row of m are no 1 groups of 32"),
    ("gptq-4", part("g_idx", lambda w: cut(w, 60)), r"m\.qweight' has shape \(8, 32\)"),
    ("gptq-4", part("scales", lambda w: changed(w, "<u2", 40, HALF_NAN)), r"m\.scales' is nan at \(1, 8\)"),
    ("gptq-4", part("scales", lambda w: cut(w, 2, 16)), r"m\.scales' has shape \(2, 16\).*must be \(any, 32\)"),
    ("gptq-4", part("qzeros", lambda w: cut(w, 1, 4)), r"m\.qzeros' has shape \(1, 4\).*must be \(2, 4\)"),
    ("gptq-4", part("qzeros", lambda w: replace(w, format="F32")), r"m\.qzeros' has dtype F32; it must have I32"),
    ("gptq-4", gone("qzeros"), r"m\.qzeros' is missing; there is m\."),
    ("gptq-4", gone("qweight"), r"no tensor's name ends in \.qweight"),
    ("gptq-4", says(modules_to_not_convert=["m"]), r"modules_to_not_convert holds 'm', but m is quantised"),
    ("awq-gemm", says(bits=8), r"bits is 8, and must be 4"),
    ("awq-gemm", says(version="gemv_fast"), r"version is 'gemv_fast', and must be gemm or gemv"),
    ("awq-gemm", says(group_size=24), r"group_size is 24: the 64 values of a row of m are no 2 groups of 24"),
    ("awq-gemm", says(group_size=0), r"group_size is 0"),
    ("awq-gemm", part("scales", lambda w: changed(w, "<u2", 0, 0x7C00)), r"m\.scales' is inf at \(0, 0\)"),
    ("awq-gemv", says(group_size=7), r"group_size is 7"),
    ("awq-gemv", part("qzeros", lambda w: cut(w, 16, 1)), r"m\.scales' has shape \(16, 16\)"),
    ("fp8-block", says(weight_block_size=[128, 128]), r"m\.weight_scale_inv' has shape \(2, 3\).*128 x 128"),
    ("fp8-block", says(weight_block_size=[0, 32]), r"weight_block_size is \[0, 32\]"),
    ("fp8-block", part("weight_scale_inv", lambda w: changed(w, "<f4", 5, np.nan)), r"nan at \(1, 2\)"),
    ("fp8-block", part("weight", lambda w: replace(w, format="I8")), r"m\.weight' has dtype I8; it must have F8_E4M3"),
    ("ct-int4", says(format="nvfp4-pack-quantized"), r"format is 'nvfp4-pack-quantized', and must be one of pack-"),
    ("ct-int4", says(config_groups={}), r"config_groups is \{\}"),
    ("ct-int4", says(config_groups={"a": 3}), r"config_groups: a is 3, and must be an object"),
    ("ct-int4", says(sparsity_config={"format": "sparse-24-bitmask"}), r"sparsity_config: format is 'sparse-24"),
    ("ct-int4", says(transform_config={"x": 1}), r"transform_config"),
    ("ct-int8", part("weight", lambda w: replace(w, format="BF16")), r"m\.weight' has dtype BF16; it must have I8"),
    ("ct-int4", weights_say(group_size=48), r"group_size is 48: the 64 values of a row of m are no 2 groups of 48"),
    ("ct-int4", weights_say(group_size=0), r"group_size is 0: the 64 values"),
    ("ct-int4", weights_say(num_bits=8), r"m\.weight_packed' has shape \(32, 8\), which is not \[32, 64\] values of 8"),
    ("ct-int4", part("weight_shape", lambda w: changed(w, "<i8", 1, 1 << 40)), r"m\.weight_packed' has shape"),
    ("ct-int4", part("weight_shape", lambda w: changed(w, "<i8", 0, -32)), r"m\.weight_packed' has shape"),
    ("ct-int4", part("weight_scale", lambda w: cut(w, 16, 2)), r"m\.weight_scale' has shape \(16, 2\)"),
    ("ct-int8", part("weight_scale", lambda w: cut(w, 7, 1)), r"m\.weight_scale' has shape \(7, 1\)"),
    ("ct-int8", weights_say(type="float"), r"m\.weight' is I8, of which quantization_config says nothing"),
    ("bnb-nf4", state(blocksize=0), r"blocksize is 0"),
    ("bnb-nf4", state(shape=[32, 66]), r"m\.weight' has 1024 bytes, which are not the codes of 32 rows of 66"),
    ("bnb-nf4", state(shape=[64]), r"shape is \[64\]"),
    ("bnb-nf4", state(dtype="int8"), r"dtype is 'int8'"),
    ("bnb-nf4", state(quant_type="fp4"), r"quant_type is 'fp4', and must be nf4"),
    ("bnb-nf4", part("weight.absmax", lambda w: cut(w, 31)), r"m\.weight\.absmax' has shape \(31,\)"),
    ("bnb-nf4", part("weight.quant_map", lambda w: changed(w, "<f4", 1, -0.7)), r"quant_map' holds other levels"),
    ("bnb-nf4-nested", state(nested_offset=None), r"nested_offset is None"),
    ("bnb-nf4-nested", state(nested_blocksize=16), r"m\.weight\.nested_absmax' has shape \(1,\)"),
    ("bnb-int8", part("weight_format", lambda w: changed(w, "u1", 0, 1)), r"weight_format' is not 0"),
    ("bnb-int8", part("SCB", lambda w: cut(w, 8)), r"m\.SCB' has shape \(8,\)"),
    ("gptq-4", lambda tensors, config: tensors.update({"m.weight": tensors["m.scales"]}), r"m\.weight' stands beside"),
    ("ct-int4", lambda tensors, config: tensors.update({"m.weight": tensors["m.weight_scale"]}),
     r"m\.weight' has no place beside the module's other tensors"),
    ("mlx-4", says(mode="mxfp4"), r"mode is 'mxfp4', and must be affine"),
    ("mlx-4", says(bits=7), r"bits is 7"),
    ("mlx-4", says(bits=8), r"group_size is 64: the 32 values of a row of m are no 1 groups of 64"),
    ("mlx-4", says(m=False), r"m\.scales' is there, but quantization says that the module is not quantised"),
    ("mlx-4", says(m={"bits": 4}), r"quantization: m: group_size is None"),
    ("mlx-4", part("biases", lambda w: cut(w, 16, 1)), r"m\.biases' has shape \(16, 1\)"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "change", "message"), WRONG)
def test_wrong_files_are_refused_in_one_line(case: str, change: Wrong, message: str) -> None:
    tensors, config = parts_of(case)
    change(tensors, config)
    with pytest.raises(BadInput, match=message) as error:
        assembled(tensors, config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["yes", 4, [], {}, {"bits": 4}, {"quant_method": 3}])
def test_what_says_nothing_of_quantisation_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json.*quantization_config"):
        tensors, config = parts_of("model awq-gemm")
        open_checkpoint(save(tmp_path / "m", tensors, config | {"quantization_config": value}))


def test_quantised_tensors_without_a_word_in_config_json(tmp_path: Path) -> None:
    tensors, config = parts_of("model awq-gemm")
    del config["quantization_config"], tensors["logits"], tensors["tokens"]
    with pytest.raises(BadInput, match=r"dtype 'I32' is not supported; F32, F16, BF16 are"):
        open_checkpoint(save(tmp_path / "m", tensors, config))


def test_zero_points_that_libraries_read_differently_are_told() -> None:
    tensors, config = parts_of("gptq-4")
    tensors["m.qzeros"] = changed(tensors["m.qzeros"], "<u4", 0, 0xFFFFFFFF)
    assert any("15 + 1 are taken as 16" in note for note in assembled(tensors, config)[1])


def test_mlx_with_a_setting_of_one_modules_own() -> None:
    tensors, config = parts_of("mlx-8")
    config["quantization"] |= {"bits": 4, "m": {"bits": 8, "group_size": 64}}
    np.testing.assert_array_equal(
        dequantize(assembled(tensors, config)[0]["m.weight"]), dequantize(golden()[0]["mlx-8"]["="])
    )


def test_scales_of_activations_and_modules_left_alone() -> None:
    tensors, config = parts_of("fp8-block")
    tensors["m.input_scale"] = QTensor("F32", (), np.zeros(4, np.uint8), "m.input_scale")
    tensors["n.weight"] = QTensor("BF16", (2, 2), np.zeros(8, np.uint8), "n.weight")
    config["quantization_config"]["modules_to_not_convert"] = ["n", "lm_head"]
    made, notes = assembled(tensors, config)
    assert made.keys() == {"m.weight", "n.weight"} and made["n.weight"] is tensors["n.weight"]
    assert notes == ["quantization_config wants activations or the cache quantised too; both stay as they are here"]
    config["quantization_config"]["activation_scheme"] = None
    assert assembled(tensors, config)[1] == notes and not assembled({"m.weight": tensors["m.weight"],
        "m.weight_scale_inv": tensors["m.weight_scale_inv"]}, config)[1]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["INT/4/0/F16", "INT/9/8/F16", "INT/0/8/F16", "INT/3/9/F16", "INT/4/32/F64", "INT/4/32", "NF4/3/F32",
             "MLX/4/99999999999/F16", "F8_E4M3/F16/4", "F8_E4M3", "LLM_INT8/x"],
)  # fmt: skip
def test_no_format_of_an_impossible_size(name: str) -> None:
    with pytest.raises(BadInput, match="weight format"):
        format_of(name)


def damaged(r: Random, w: QTensor) -> QTensor:
    """Of another shape, of another dtype as wide, or with bytes of its own."""
    item = DTYPES[w.format].itemsize
    kind = r.randrange(3)
    if kind == 0:
        shape = tuple(r.choice((0, 1, 2, 3, 7, 32, n)) for n in w.shape)
        return replace(w, shape=shape, data=np.resize(w.data, int(np.prod(shape, dtype=int)) * item))
    if kind == 1:
        return replace(w, format=r.choice([format for format, dtype in DTYPES.items() if dtype.itemsize == item]))
    data = w.data.copy()
    data[[r.randrange(data.size) for _ in range(9)]] = r.choice((0, 127, 255, r.randrange(256)))
    return replace(w, data=data)


@pytest.mark.parametrize("case", CASES)
def test_damage_at_random_ends_in_a_weight_or_one_line(case: str) -> None:
    for seed in range(40):
        r = Random(f"{case} {seed}")
        tensors, config = parts_of(case)
        for _ in range(r.choice((1, 1, 2))):
            name, kind = r.choice(sorted(tensors)), r.randrange(4)
            if kind == 0 and len(tensors) > 1:
                del tensors[name]
            elif kind == 1:
                config = {field: in_json(r, value) for field, value in config.items()}
            elif tensors[name].data.size:
                tensors[name] = damaged(r, tensors[name])
        try:
            with np.errstate(all="raise", under="ignore"):
                quantised = quantised_by(config)
                made = tensors if quantised is None else quantised.assembled(tensors)[0]
                for w in made.values():
                    assert w.name == "m.weight" or w is tensors[w.name]
                    assert w.format in DTYPES.keys() - SCALES.keys() or dequantize(w).shape == w.shape
        except BadInput as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
