"""Models that see, too: what of their files the text part is, and that no picture is taken for text. What the text part
computes is tests/engine/test_family.py's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.gguf_header import read_header
from qwenref.engine.files.mapped import map_file
from qwenref.engine.load import open_weights
from qwenref.engine.models.vision import text_config
from qwenref.errors import BadInput
from qwenref.quant.tensor import dequantize
from qwenref.tools.dev.golden_config import write_tensors
from qwenref.tools.dev.golden_family import MODELS, write_family
from qwenref.tools.main import main
from qwenref.trace.dump import Dump
from qwenref.trace.verify.verify import verify

from ..gguf_builder import ARR, I32, KEYS, STR, TOKENS, Gguf, array

PICTURE, FILM = 62, 63
NAMES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def written(folder: Path, name: str, changes: dict[str, Any], renamed: tuple[str, str] = ("", "")) -> Path:
    """The small model with other fields (... takes one away), and with names that begin otherwise."""
    write_family(folder, MODELS[name])
    held = open_checkpoint(folder)
    said = {k: v for k, v in (MODELS[name] | changes).items() if v is not ...}
    old, new = renamed
    found = {(new + n[len(old) :] if n.startswith(old) else n): ("F32", dequantize(w)) for n, w in held.tensors.items()}
    write_tensors(folder, said, found | {"visual.blocks.0.norm1.weight": ("F32", np.ones(4, np.float32))})
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_out_is_said(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path, MODELS[name])
    assert main(["run", str(tmp_path), "--tokens", "1,2", "-n", "1", "--backend", "reference"]) == 0
    note = next(line for line in capsys.readouterr().err.splitlines() if "visual." in line)
    assert "visual.patch_embed.proj.weight'" in note and "not used" in note and "no picture is read" in note
    assert f"run as {name[:5]}" in note


@pytest.mark.parametrize("where", ["model.language_model.", "language_model.model."])
def test_names_of_every_writer(where: str, tmp_path: Path) -> None:
    """Transformers' from 4.52 on, and MLX's."""
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_family(folder, MODELS["qwen2_vl"])
    written(tmp_path / "a", "qwen2_vl", {}, ("model.", where))
    a, b = (open_weights(folder).weights for folder in (tmp_path / "a", tmp_path / "b"))
    assert a.config == b.config
    both = zip(a.layers[1].qkv, b.layers[1].qkv, strict=True)
    assert all(np.array_equal(dequantize(x), dequantize(y)) for x, y in both)


def test_fields_in_both_places(tmp_path: Path) -> None:
    """As Transformers 4.52 to 4.57 saves them: the text's fields are in text_config and beside it. tie_word_embeddings
    holds where either says so, as Transformers 5 has it."""
    flat = MODELS["qwen2_vl"]
    inner = {k: v for k, v in flat.items() if k not in ("vision_config", "tie_word_embeddings")}
    inner |= {"model_type": "qwen2_vl_text", "bos_token_id": 7, "tie_word_embeddings": False}
    inner["rope_scaling"] = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}
    said, pictures = text_config(flat | {"text_config": inner})
    assert pictures == (PICTURE, FILM) and said["tie_word_embeddings"] is True and said["bos_token_id"] == 7
    assert said["architectures"] == ["Qwen2ForCausalLM"] and said["rope_scaling"] == {"rope_type": "default"}
    assert not said.keys() & {"text_config", "vision_config", "image_token_id"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Qwen2VLModel"]}, ["Qwen2VLModel", "only Qwen2VLForConditionalGeneration"]),
        ({"text_config": [1]}, ["text_config is [1]", "must be an object"]),
        ({"text_config": {"hidden_size": 64}}, ["hidden_size is 32, and 64 in text_config"]),
        ({"image_token_id": "a"}, ["image_token_id", "'a'", "token id"]),
        ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, ["rope_scaling", "factor"]),
        ({"rope_scaling": {"type": "xrope"}}, ["rope_scaling", "xrope"]),
        ({"model_type": "qwen2_vl_text"}, ["architecture 'qwen2_vl_text' is not supported"]),
    ],
)
def test_what_is_no_such_model(changes: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    written(tmp_path, "qwen2_vl", changes)
    with pytest.raises(BadInput) as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    write_family(tmp_path, MODELS["qwen2_vl"])
    held = {n: ("F32", dequantize(w)) for n, w in open_checkpoint(tmp_path).tensors.items()}
    more = {"model.language_model.norm.weight": held["model.norm.weight"]}
    write_tensors(tmp_path, MODELS["qwen2_vl"], held | more)
    with pytest.raises(BadInput, match=r"norm.weight' and '.*norm.weight' are the same one"):
        open_weights(tmp_path)


def test_yarn_beside_mrope(tmp_path: Path) -> None:
    """As Qwen's card of Qwen2.5-VL has it for long texts."""
    yarn = {"type": "yarn", "mrope_section": [1, 1, 2], "factor": 4.0, "original_max_position_embeddings": 64}
    scaling = open_weights(written(tmp_path, "qwen2_vl", {"rope_scaling": yarn})).weights.config.rope_scaling
    assert (scaling.rope_type, scaling.factor, scaling.original_max_position_embeddings) == ("yarn", 4.0, 64)


@pytest.mark.parametrize("words", [["run", "-n", "1"], ["embed"], ["trace", "--payload"]], ids=lambda w: w[0])
def test_a_picture_is_no_text(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_family(tmp_path, MODELS["qwen2_5_vl"])
    command, *more = words
    assert main([command, str(tmp_path), "--tokens", f"1,{FILM},2", *more, "--backend", "reference"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"token {FILM} stands for a picture" in err.splitlines()[-1]


def test_a_dump_with_a_picture_is_not_judged(tmp_path: Path) -> None:
    write_family(tmp_path, MODELS["qwen2_vl"])
    w = open_weights(tmp_path).weights
    with pytest.raises(BadInput, match=f"token {PICTURE} stands for a picture"):
        verify(Dump(Path("d"), {"tokens": [1, PICTURE, 2]}, w.config.sizes, ()), w)


# -------------------------------------------------------------------------------------------------------------- GGUF


def as_qwen2vl(path: Path) -> Path:
    keys = {k.replace("qwen2.", "qwen2vl.", 1): v for k, v in KEYS.items()}
    tokens = [*TOKENS[:3], "<|image_pad|>", *TOKENS[4:]]
    keys |= {
        "general.architecture": (STR, "qwen2vl"),
        "qwen2vl.rope.dimension_sections": (ARR, array(I32, [1, 1, 0, 0])),
        "tokenizer.ggml.tokens": (ARR, array(STR, tokens)),
        "tokenizer.ggml.merges": (ARR, array(STR, [])),
    }
    path.write_bytes(Gguf([(k, *v) for k, v in keys.items()]).build())
    return path


def test_gguf(tmp_path: Path) -> None:
    path = as_qwen2vl(tmp_path / "m.gguf")
    m = open_checkpoint(path)
    assert m.config.model_type == "qwen2" and m.config.pictures == (3,)
    assert any("general.architecture is qwen2vl: run as qwen2" in note for note in m.notes)
    (tmp_path / "plain.gguf").write_bytes(Gguf().build())
    assert replace(m.config, pictures=()) == open_checkpoint(tmp_path / "plain.gguf").config


def test_gguf_stays_what_it_is_and_a_folder_is_of_text_alone(tmp_path: Path) -> None:
    """A requantised file still fits its mmproj; what becomes another container says what it is no more."""
    m, lost = open_checkpoint(as_qwen2vl(tmp_path / "m.gguf")), list[str]()
    convert(m, tmp_path / "a.gguf", quantize="F16", lost=lost.append)
    made = tmp_path / "a.gguf"
    header = read_header(made, map_file(made).data)
    assert header.metadata["general.architecture"] == "qwen2vl" and not lost
    assert header.metadata["qwen2vl.rope.dimension_sections"].tolist() == [1, 1, 0, 0]
    convert(m, tmp_path / "folder", lost=lost.append)
    assert any("3 stand for pictures: it becomes a model of text alone" in line for line in lost)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"] == "qwen2"
    assert not open_checkpoint(tmp_path / "folder").config.pictures
