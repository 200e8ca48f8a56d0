"""LoRA adapters and GGUF: PEFT's own over a GGUF file, llama.cpp's (GGUF files, written by gguf-py as its converter
lays them out) over any base. What they compute is PEFT's (tests/golden/lora.npz)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.load import Opened, open_weights
from qwenref.engine.lora import opened_loras
from qwenref.engine.merge import merged
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import CONFIG, IDS, write_folder, write_tensors
from qwenref.tools.dev.golden_family import MODELS, write_family
from qwenref.tools.dev.golden_stages import key, rms, signed_sums
from qwenref.tools.main import main

from ..tiny import collect

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lora.npz")
FILES = ("adapter_config.json", "adapter_model.safetensors")
OURS = ("all", "head", "embedding")  # of one rank and one alpha, which is all that such a file can say


def peft_folder(name: str, folder: Path) -> Path:
    folder.mkdir()
    for file in FILES:
        (folder / file).write_bytes(GOLDEN[f"{name}/{file}"].tobytes())
    return folder


def as_gguf(
    adapter: Path, path: Path, architecture: str = "qwen2", heads: tuple[int, int] = (1, 1), **said: Any
) -> Path:
    """PEFT's folder as convert_lora_to_gguf.py of llama.cpp lays it out. heads: of queries and keys, whose rows Llama's
    conversion permutes. said: other keys."""
    tensors = load_file(adapter / FILES[1])
    alpha = float(json.loads((adapter / FILES[0]).read_text())["lora_alpha"])
    (arch,) = (a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    names, out = gguf.get_tensor_name_map(arch, 2), gguf.GGUFWriter(path, architecture)
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": alpha} | said
    for name, value in keys.items():
        (out.add_float32 if isinstance(value, float) else out.add_string)(name, value)
    for name, x in tensors.items():
        half = next(
            (mark for mark in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B") if mark in name), None
        )
        if half is None:  # the base's own matrix
            continue
        module = name.removeprefix("base_model.model.").partition(f".{half}")[0]
        spelled = names.get_name(module)
        values = x.T if half == "lora_embedding_A" else x
        if architecture == "llama" and half == "lora_B" and module.endswith(("q_proj", "k_proj")):
            n = heads[module.endswith("k_proj")]
            values = x.reshape(n, 2, len(x) // n // 2, -1).swapaxes(1, 2).reshape(x.shape)
        out.add_tensor(f"{spelled}.weight.lora_{half[-1].lower()}", np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture
def bases(tmp_path: Path) -> dict[str, Path]:
    """golden_lora's base, as a folder and in GGUF."""
    (tmp_path / "base").mkdir()
    write_folder(tmp_path / "base", CONFIG)
    convert(open_checkpoint(tmp_path / "base"), tmp_path / "base.gguf")
    return {"folder": tmp_path / "base", "gguf": tmp_path / "base.gguf"}


def check_golden(opened: Opened, case: str) -> None:
    (kept,) = collect(opened.weights, "reference", "f64", IDS)
    found = {key(layer, stage): x for (stage, layer), x in kept.items()}
    for at, sums, size in zip(*(GOLDEN[f"{case}/{what}"] for what in ("stages", "sums", "rms")), strict=True):
        off = np.sqrt(np.mean(np.square(signed_sums(found[at]) - sums)) / found[at].size)
        assert off <= 1e-12 * size and abs(rms(found[at]) - size) <= 1e-12 * size, at


@pytest.mark.parametrize("case", ["all", "patterns", "head", "embedding", "whole", "whole norms"])
def test_pefts_adapters_over_gguf(case: str, bases: dict[str, Path], tmp_path: Path) -> None:
    check_golden(open_weights(bases["gguf"], loras=opened_loras(peft_folder(case, tmp_path / "a"))), case)


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("base", ["folder", "gguf"])
def test_llama_cpps_adapters(case: str, base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    path = as_gguf(peft_folder(case, tmp_path / "a"), tmp_path / "a.gguf")
    check_golden(open_weights(bases[base], loras=opened_loras(path)), case)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder of Llama's, the same in GGUF, where rows of queries and keys have another order, and an adapter."""
    (tmp_path / "llama").mkdir()
    write_family(tmp_path / "llama", MODELS["llama, biases"])
    convert(open_checkpoint(tmp_path / "llama"), tmp_path / "llama.gguf")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    (adapter / FILES[0]).write_text(json.dumps(said))
    rng = np.random.default_rng(0)
    found = {}
    for i in range(2):
        for module, rows in (("q", 32), ("k", 16), ("v", 16)):
            for half, shape in (("A", (2, 32)), ("B", (rows, 2))):
                name = f"base_model.model.model.layers.{i}.self_attn.{module}_proj.lora_{half}.weight"
                found[name] = rng.standard_normal(shape).astype(np.float32)
    save_file(found, adapter / FILES[1])
    return tmp_path / "llama", tmp_path / "llama.gguf", adapter


def logits(opened: Opened) -> np.ndarray:
    (kept,) = collect(opened.weights, "reference", "f64", IDS)
    return kept["lm_head", None]


def test_rows_in_ggmls_order(llama: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Both kinds of adapters, over both containers; merged, too. The folder's is PEFT's (tests/oracle/test_lora.py)."""
    folder, in_gguf, adapter = llama
    own = as_gguf(adapter, tmp_path / "a.gguf", "llama", (4, 2))
    want = logits(open_weights(folder, loras=opened_loras(adapter)))
    for base, lora in ((folder, own), (in_gguf, adapter), (in_gguf, own)):
        assert np.array_equal(logits(open_weights(base, loras=opened_loras(lora))), want), (base, lora)
    for n, base in enumerate((folder, in_gguf)):
        checkpoint, said = merged(*open_weights(base, loras=opened_loras(adapter)))
        assert said == ["6 matrices merged with their adapters: values rounded to F32"]
        for name in (f"m{n}.gguf", f"m{n}"):
            convert(checkpoint, tmp_path / name)
            assert np.abs(logits(open_weights(tmp_path / name)) - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("case", ["embedding", "whole", "whole norms"])
@pytest.mark.parametrize("base", ["folder", "gguf"])
def test_merged(case: str, base: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """What was trained whole, and the embedding, in the file of a model that has them: it says the same ids."""
    adapter = peft_folder(case, tmp_path / "a")
    for name in ("m.gguf", "m"):
        assert main(["convert", str(bases[base]), str(tmp_path / name), "--lora", str(adapter)]) == 0
        want = logits(open_weights(bases[base], loras=opened_loras(adapter)))
        assert np.abs(logits(open_weights(tmp_path / name)) - want).max() < 1e-5 * np.abs(want).max()


def tied(folder: Path) -> Path:
    folder.mkdir()
    write_folder(folder, CONFIG)
    held = {n: ("F32", dequantize(w)) for n, w in open_checkpoint(folder).tensors.items() if n != "lm_head.weight"}
    write_tensors(folder, CONFIG | {"tie_word_embeddings": True}, held)
    return folder


def test_a_tied_head_that_was_trained_is_one_of_its_own(tmp_path: Path) -> None:
    """As PEFT's wrapper has it (tests/oracle/test_lora.py): embedding and head are two from then on, also in a file."""
    base, adapter = tied(tmp_path / "tied"), peft_folder("whole", tmp_path / "a")
    assert open_weights(base).weights.config.tie_word_embeddings
    opened = open_weights(base, loras=opened_loras(adapter))
    assert not opened.weights.config.tie_word_embeddings and opened.weights.lm_head is not opened.weights.embed
    want = logits(opened)
    for name in ("m.gguf", "m"):
        assert main(["convert", str(base), str(tmp_path / name), "--lora", str(adapter)]) == 0
        again = open_weights(tmp_path / name)
        assert not again.weights.config.tie_word_embeddings
        assert np.abs(logits(again) - want).max() < 1e-5 * np.abs(want).max()


def test_what_cannot_be_is_said(bases: dict[str, Path], tmp_path: Path) -> None:
    adapter, whole = peft_folder("embedding", tmp_path / "a"), peft_folder("whole", tmp_path / "w")
    halves = open_weights(tied(tmp_path / "tied"), loras=opened_loras(adapter))
    apart, _ = merged(*halves)  # an adapter of one of the two: head and embedding are two from then on
    (head,), (embed,) = ([w for n, w in apart.tensors.items() if name in n] for name in ("lm_head", "embed_tokens"))
    assert not apart.config.tie_word_embeddings and not np.array_equal(dequantize(head), dequantize(embed))
    assert np.array_equal(dequantize(head), dequantize(halves.weights.embed.base))
    with pytest.raises(BadInput, match=r"lm_head was trained whole, and has no scale; leave 0\.5 out"):
        opened_loras(f"{whole}:0.5")
    with pytest.raises(BadInput, match="two cannot be added"):
        open_weights(bases["folder"], loras=opened_loras([whole, whole]))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"general.type": "model"}, ["general.type is 'model'", "that of an adapter is adapter"]),
        ({"adapter.type": "control"}, ["adapter.type is 'control'", "only lora"]),
        ({"adapter.alora.invocation_tokens": "1"}, ["adapter.alora.invocation_tokens", "not known"]),
        ({"adapter.lora.alpha": -1.0}, ["adapter.lora.alpha is -1.0"]),
        ({"general.architecture": "llama"}, ["is for llama, and this model is qwen2"]),
    ],
)
def test_a_bad_file_is_one_line(said: dict[str, Any], words: list[str], bases: dict[str, Path], tmp_path: Path) -> None:
    path = as_gguf(
        peft_folder("all", tmp_path / "a"), tmp_path / "a.gguf", said.pop("general.architecture", "qwen2"), **said
    )
    with pytest.raises(BadInput) as error:
        open_weights(bases["folder"], loras=opened_loras(path))
    line = str(error.value)
    assert "\n" not in line and str(path) in line and all(word in line for word in words), line
