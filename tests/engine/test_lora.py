"""LoRA adapters: what PEFT computes with its own files (tests/golden/lora.npz, made by tools/dev/golden_lora.py), on
every backend and merged; and adapters that are wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import qwenref
from qwenref.engine.files.safetensors_header import read_tensors
from qwenref.engine.load import Opened, open_weights
from qwenref.engine.lora import opened_loras
from qwenref.engine.merge import merged
from qwenref.engine.weights import Adapted, Adapter, Weights
from qwenref.errors import BadInput
from qwenref.quant.tensor import QTensor, dequantize
from qwenref.tools.dev.golden_config import CONFIG, IDS, write_folder
from qwenref.tools.dev.golden_lora import ADAPTERS, CASES
from qwenref.tools.dev.golden_stages import key, rms, signed_sums
from qwenref.tools.main import main

from ..models import model
from ..tiny import collect, tiny_weights

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lora.npz")
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and PEFT's own files of each adapter in a folder of its name."""
    root = tmp_path_factory.mktemp("lora")
    (root / "base").mkdir()
    write_folder(root / "base", CONFIG)
    for name in ADAPTERS:
        (root / name).mkdir()
        for file in FILES:
            (root / name / file).write_bytes(GOLDEN[f"{name}/{file}"].tobytes())
    return root


def specs(folders: Path, case: str) -> list[str]:
    return [f"{folders / name}:{factor}" if factor != 1 else str(folders / name) for name, factor in CASES[case]]


def opened(folders: Path, case: str) -> Opened:
    return open_weights(folders / "base", loras=opened_loras(specs(folders, case)))


@pytest.mark.parametrize("case", CASES)
def test_stages_are_pefts_in_float64(folders: Path, case: str) -> None:
    """Every stage, within 1e-12."""
    (kept,) = collect(opened(folders, case).weights, "reference", "f64", IDS)
    found = {key(layer, stage): x for (stage, layer), x in kept.items()}
    names = GOLDEN[f"{case}/stages"].tolist()
    assert set(found) == set(names)
    for at, sums, size in zip(names, GOLDEN[f"{case}/sums"], GOLDEN[f"{case}/rms"], strict=True):
        off = np.sqrt(np.mean(np.square(signed_sums(found[at]) - sums)) / found[at].size)
        assert off <= 1e-12 * size and abs(rms(found[at]) - size) <= 1e-12 * size, at


def bits(w: Weights, precision: str, *passes: tuple[int, ...]) -> np.ndarray:
    """Logits of the CPU backend after the last pass."""
    return collect(w, "cpu", precision, *passes)[-1]["lm_head", None]


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_the_cpu_backend_has_the_same_bits_in_chunks_and_steps(folders: Path, precision: str) -> None:
    w = opened(folders, "two").weights
    whole = bits(w, precision, IDS)
    assert np.array_equal(whole, bits(w, precision, IDS[:5], IDS[5:]))
    assert np.array_equal(whole, bits(w, precision, *((i,) for i in IDS)))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_pefts(folders: Path, case: str, backend: str) -> None:
    model = qwenref.load(folders / "base", backend=backend, lora=specs(folders, case))
    want = GOLDEN[f"{case}/ids"].tolist()
    made = model.generate(IDS, max_tokens=len(want))
    for _ in made:
        pass
    assert made.ids == want


def test_the_commands(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """run, trace and convert in a process; the merged model answers as the adapter beside its base."""
    lora = ["--lora", str(folders / "rslora"), "--lora", f"{folders / 'all'}:0.5"]
    ids = ",".join(map(str, IDS))
    ask = ["run", str(folders / "base"), "--tokens", ids, "-n", "12", "--backend", "reference", "--json"]
    assert main([*ask, *lora]) == 0
    want = GOLDEN["two/ids"].tolist()
    assert json.loads(capsys.readouterr().out)["ids"] == want
    assert main(["convert", str(folders / "base"), str(tmp_path / "merged"), *lora]) == 0
    assert "14 matrices merged with their adapters: values rounded to F32" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "merged"), *ask[2:]]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == want
    dump = str(tmp_path / "dump")
    saved = ["--save-tensor", "ffn_up", "--save-tensor-dir", dump, "--backend", "reference"]
    assert main(["trace", str(folders / "base"), "--tokens", ids, *saved, *lora]) == 0
    told = json.loads(Path(dump, "manifest.json").read_text())["run"]["adapters"]
    assert [(a["name"], a["scale"]) for a in told] == [("rslora", 1.0), ("all", 0.5)] and len(told[0]["sha256"]) == 64


@pytest.mark.parametrize(("was", "becomes"), [("F32", "F32"), ("BF16", "BF16"), ("Q8_0", "F32")])
def test_merged_values(folders: Path, was: str, becomes: str) -> None:
    """W + scale up down in the base's format, where it has no blocks, to half a step of it."""
    w = tiny_weights(formats=was, hidden=32, heads=4, kv_heads=2, head_dim=8, mlp=64, layers=2)
    rng = np.random.default_rng(0)
    down, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 64), (32, 3)))
    halves = (QTensor("F32", x.shape, x.reshape(-1).view(np.uint8), "x") for x in (down, up))
    base = w.layers[1].ffn_down
    adapted = replace(w.layers[1], ffn_down=Adapted(base, (Adapter(*halves, 0.75),)))
    m = replace(model(was, layers=1), tensors={base.name: base})
    changed, said = merged(m, replace(w, layers=(w.layers[0], adapted)))
    (got,) = changed.tensors.values()
    exact = dequantize(base) + 0.75 * up.astype(np.float64) @ down
    assert got.format == becomes and said == [f"1 matrices merged with their adapters: values rounded to {becomes}"]
    assert np.abs(dequantize(got) - exact).max() <= (2.0**-8 if becomes == "BF16" else 2.0**-23) * np.abs(exact).max()


# ------------------------------------------------------------------------------------------------------ bad adapters


def changed(
    folders: Path, tmp_path: Path, settings: dict[str, Any], tensors: dict[str, Any], name: str = "all"
) -> Path:
    """An adapter with other fields (... takes one away) and other tensors (arrays of float32)."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    said = json.loads((folders / name / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not ...}))
    held, _ = read_tensors(folders / name / "adapter_model.safetensors", {"F32": 4})
    arrays = {name: data.view(np.float32).reshape(shape) for name, (_, shape, data) in held.items()} | tensors
    save_file({k: v for k, v in arrays.items() if v is not ...}, folder / "adapter_model.safetensors")
    return folder


PREFIX = "base_model.model.model.layers.0.mlp.up_proj"
WHOLE, SCORE = "base_model.model.lm_head.weight", "base_model.model.score.weight"
EMBEDDING_A = "base_model.model.model.embed_tokens.lora_embedding_A"
MAGNITUDE = f"{PREFIX}.lora_magnitude_vector"
BIAS = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
A, B = f"{PREFIX}.lora_A.weight", f"{PREFIX}.lora_B.weight"


def values(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("settings", "tensors", "words"),
    [
        ({"peft_type": "LOHA"}, {}, ["peft_type is 'LOHA'", "only LORA"]),
        ({"peft_type": ...}, {}, ["peft_type is None"]),
        ({"use_dora": True}, {}, ["lora_magnitude_vector is missing; use_dora is True"]),
        ({"use_dora": "yes"}, {}, ["use_dora is 'yes'", "true or false"]),
        ({"use_dora": True, "lora_bias": True}, {}, ["use_dora and lora_bias are both set"]),
        ({}, {MAGNITUDE: values(48)}, ["up_proj", "lora_magnitude_vector is there; use_dora is False"]),
        ({"use_dora": True}, {MAGNITUDE: values(48, 1)}, ["lora_magnitude_vector", "[48, 1]", "a vector is needed"]),
        ({"use_dora": True}, {MAGNITUDE: values(48) * np.nan}, ["lora_magnitude_vector", "48 values are not finite"]),
        ({"modules_to_save": ["lm_head"]}, {}, ["modules_to_save names lm_head", "no tensor of it"]),
        ({"modules_to_save": "lm_head"}, {}, ["modules_to_save is 'lm_head'", "list"]),
        ({"modules_to_save": ["lm_head"]}, {WHOLE: values(65, 32)}, ["lm_head.weight is [65, 32]", "grown"]),
        ({"modules_to_save": ["lm_head"]}, {WHOLE: values(64, 32) * np.inf}, ["lm_head", "not finite"]),
        ({"modules_to_save": ["score"]}, {SCORE: values(2, 32)}, ["score", "no such matrix"]),
        ({"fan_in_fan_out": True}, {}, ["fan_in_fan_out"]),
        ({"lora_bias": True}, {}, ["lora_B.bias is missing; lora_bias is True"]),
        ({"bias": "some"}, {}, ["bias is 'some'", "none, all and lora_only"]),
        ({}, {BIAS: values(32)}, ["q_proj.base_layer.bias", "bias is none"]),
        ({"bias": "all"}, {BIAS: values(31)}, ["q_proj.bias is [31], and this model's [32]"]),
        ({"bias": "all"}, {BIAS.replace("q_proj", "o_proj"): values(32)}, ["o_proj.bias", "no such bias"]),
        ({"ensure_weight_tying": 1}, {}, ["ensure_weight_tying is 1", "true or false"]),
        ({"init_lora_weights": "pissa_niter_4"}, {}, ["init_lora_weights is 'pissa_niter_4'", "base's weights"]),
        ({"trainable_token_indices": [1, 2]}, {}, ["trainable_token_indices"]),
        ({"layer_replication": [[0, 2]]}, {}, ["layer_replication"]),
        ({"use_new_idea": True}, {}, ["use_new_idea is True", "not supported"]),
        ({"r": 0}, {}, ["r is 0", "whole number above 0"]),
        ({"r": 5}, {}, ["r is 5", "[4, 48]"]),
        ({"lora_alpha": "a"}, {}, ["lora_alpha is 'a'"]),
        ({"lora_alpha": True}, {}, ["lora_alpha is True"]),
        ({"rank_pattern": {"up_proj": 2}}, {}, ["r is 2", "up_proj"]),
        ({"rank_pattern": {"(a+)+$": 2}}, {}, ["rank_pattern", "not understood"]),
        ({"alpha_pattern": {"[": 2}}, {}, ["alpha_pattern", "not understood"]),
        ({"alpha_pattern": {"up_proj": -1}}, {}, ["alpha_pattern: 'up_proj' is -1"]),
        ({"alpha_pattern": [1]}, {}, ["alpha_pattern must be an object"]),
        ({"target_modules": ["q_proj"]}, {}, ["target_modules does not name", "down_proj"]),
        ({"target_modules": r".*\.(q|up)_proj"}, {}, ["target_modules does not name", "down_proj"]),
        ({"layers_to_transform": [1]}, {}, ["layers_to_transform does not name"]),
        ({"exclude_modules": ["o_proj"]}, {}, ["exclude_modules names"]),
        ({"exclude_modules": r".*\.(o|q)_proj"}, {}, ["exclude_modules names"]),
        ({}, {A: ...}, ["up_proj: lora_A is missing"]),
        ({}, {A: values(4, 48)}, ["is for a matrix of [48, 48]", "[48, 32]", "another model"]),
        ({}, {A: values(4, 32, 1)}, ["[4, 32, 1]", "a matrix is needed"]),
        ({}, {B: values(48, 4) * np.nan}, ["192 values are not finite"]),
        ({}, {f"{PREFIX}.lora_B.bias": values(48)}, ["up_proj: lora_B.bias is there; lora_bias is False"]),
        ({}, {f"{PREFIX}s.lora_B.bias": values(48)}, ["up_projs: lora_B.bias is there, and lora_A"]),
        ({}, {EMBEDDING_A: values(4, 64)}, ["embed_tokens: lora_", "is missing"]),
        ({}, {"x": values(1)}, ["tensor 'x'", "as PEFT saves it"]),
        ({}, {WHOLE: values(64, 32)}, ["holds another lm_head", "trained"]),
        (
            {"target_modules": "all-linear"},
            {A.replace("layers.0", "layers.7"): values(4, 32), B.replace("layers.0", "layers.7"): values(48, 4)},
            ["layers.7.mlp.up_proj", "the model has layers 0 to 1"],
        ),
        (
            {"target_modules": "all-linear"},
            {A.replace("up_proj", "w3"): values(4, 32), B.replace("up_proj", "w3"): values(48, 4)},
            ["mlp.w3", "no such matrix", "q_proj"],
        ),
    ],
)  # fmt: skip
def test_a_bad_adapter_is_one_line(
    folders: Path, tmp_path: Path, settings: dict[str, Any], tensors: dict[str, Any], words: list[str]
) -> None:
    folder = changed(folders, tmp_path, settings, tensors)
    with pytest.raises(BadInput) as error:
        open_weights(folders / "base", loras=opened_loras(str(folder)))
    line = str(error.value)
    assert "\n" not in line and len(line) < 500 and str(folder) in line, line
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({MAGNITUDE: values(47)}, ["up_proj: lora_magnitude_vector is [47], and must be [48]"]),
        ({MAGNITUDE: ...}, ["up_proj: lora_magnitude_vector is missing; use_dora is True"]),
        ({A: ..., B: ...}, ["up_proj: lora_magnitude_vector is there, and lora_A and lora_B are missing"]),
    ],
)
def test_a_bad_adapter_of_dora_is_one_line(
    folders: Path, tmp_path: Path, tensors: dict[str, Any], words: list[str]
) -> None:
    folder = changed(folders, tmp_path, {}, tensors, "dora")
    with pytest.raises(BadInput) as error:
        open_weights(folders / "base", loras=opened_loras(str(folder)))
    line = str(error.value)
    assert "\n" not in line and str(folder) in line and all(word in line for word in words), line


def test_what_is_no_adapter(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", str(folders / "base"), "--tokens", "1,2", "-n", "1", "--backend", "reference", "--lora"]
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "nothing"): "no such folder",
        str(tmp_path / "empty"): "no adapter_config.json",
        f"{folders / 'all'}:x": "the scale 'x' is no number",
        f"{folders / 'all'}:inf": "must be a finite number",
        str(folders / "base"): "no adapter_config.json",
    }
    for spec, words in cases.items():
        assert main([*run, spec]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and words in err, err


def test_python(folders: Path) -> None:
    """A path, a text with a scale, a pair, or several of these."""
    scales = {
        "path": (folders / "all", [1.5]),
        "text": (f"{folders / 'all'}:-2", [-3.0]),
        "pair": ((folders / "all", 0.5), [0.75]),
        "several": ([folders / "all", (folders / "all", 2)], [1.5, 3.0]),
    }
    for spec, want in scales.values():
        w = qwenref.load(folders / "base", backend="reference", lora=spec).opened.weights
        assert [a.scale for a in w.layers[0].attn_out.adapters] == want
