"""What users give instead of a model: opened where there is one way to, else called by its name, with the way out."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.errors import BadInput

from ...gguf_builder import ARR, I32, STR, U16, Gguf, array
from ...models import model

SMALL = {"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 32}


def folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    convert(model("F16", **SMALL), path)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(BadInput) as error:
        open_checkpoint(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700 and str(path) in message, message
    for word in words:
        assert word in message, message


# ------------------------------------------------------------------------------------------------------------- GGUF


@pytest.mark.parametrize(
    ("split", "opens"),
    [
        ({"split.count": 0}, True),  # what gguf-split --merge writes (llama.cpp opens them: tests/oracle)
        ({"split.count": 0, "split.no": 0, "split.tensors.count": 15}, True),
        ({"split.count": 0, "split.no": 0, "split.tensors.count": 0}, True),
        ({"split.count": 1, "split.no": 0}, True),
        ({"split.tensors.count": 0}, True),
        ({"split.count": 2}, False),
        ({"split.count": 0, "split.no": 1}, False),
        ({"split.tensors.count": 14}, False),
    ],
)
def test_a_merged_file(tmp_path: Path, split: dict[str, int], opens: bool) -> None:
    g, path = Gguf(), tmp_path / "m.gguf"
    for key, value in split.items():
        g = g.put(key, I32 if "tensors" in key else U16, value)
    path.write_bytes(g.build())
    if opens:
        assert open_checkpoint(path).notes == ()
    else:
        refused(path, "split.")


def test_arrays_where_a_number_belongs(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for key in ("split.count", "split.no", "split.tensors.count", "general.quantization_version"):
        for values in ([], [0], [1, 2]):
            path.write_bytes(Gguf().put(key, ARR, array(I32, values)).build())
            refused(path, key)
    path.write_bytes(Gguf().put("qwen2.attention.new", ARR, array(I32, [])).build())
    assert open_checkpoint(path).notes == ()  # nothing is asked for


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter", "adapter.type": "lora"}, ["LoRA adapter", "this as --lora"]),
        ({"adapter.type": "lora"}, ["LoRA adapter"]),
        ({"general.type": "mmproj", "general.architecture": "clip"}, ["mmproj", "language model's file"]),
        ({"general.architecture": "clip"}, ["mmproj"]),
        ({"general.architecture": "controlvector"}, ["control vector"]),
        ({"general.type": "imatrix"}, ["importance matrix"]),
        ({"general.architecture": "gemma2"}, ["'gemma2' is not supported", "llama.cpp and Transformers run others"]),
    ],
)
def test_what_else_a_gguf_file_may_be(tmp_path: Path, keys: dict[str, str], words: list[str]) -> None:
    g, path = Gguf(), tmp_path / "m.gguf"
    for key, value in keys.items():
        g = g.put(key, STR, value)
    path.write_bytes(g.drop("token_embd.weight").build())
    refused(path, *words)


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    path = tmp_path / "ggml-vocab.gguf"
    path.write_bytes(Gguf(tensors=()).build())
    refused(path, "a vocabulary without weights")


# ------------------------------------------------------------------------------------------------------- folders


def test_the_hubs_cache(tmp_path: Path) -> None:
    """huggingface_hub's layout: models--ORG--NAME/snapshots/REVISION, and refs."""
    repo = tmp_path / "models--Org--Name"
    one = folder(repo / "snapshots" / "aaaa")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("aaaa")
    assert open_checkpoint(repo).path == one
    other = tmp_path / "models--Org--Name-GGUF" / "snapshots" / "cccc" / "m.gguf"
    other.parent.mkdir(parents=True)
    other.write_bytes(Gguf().build())
    assert open_checkpoint(other.parents[2]).path == other
    folder(repo / "snapshots" / "bbbb")
    refused(repo, "2 snapshots", "give one of them: snapshots/aaaa, snapshots/bbbb")
    empty = tmp_path / "models--Org--Other"
    empty.mkdir()
    refused(empty, "without a snapshot", "download the model again")


def test_a_folder_of_gguf(tmp_path: Path) -> None:
    one = tmp_path / "m-q4.gguf"
    one.write_bytes(Gguf().build())
    (tmp_path / "config.json").write_text("{}")  # as in repositories of GGUF files
    (tmp_path / "README.md").touch()
    assert open_checkpoint(tmp_path).path == one
    one.rename(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").touch()
    with pytest.raises(BadInput, match=r"split\.count"):  # one model in two parts: opened, and found not to be one
        open_checkpoint(tmp_path)
    (tmp_path / "other.gguf").touch()
    refused(tmp_path, "holds 2 models; give one of them: m-00001-of-00002.gguf, other.gguf")


def test_a_folder_of_apr(tmp_path: Path) -> None:
    convert(model("F16", **SMALL), tmp_path / "m.apr")
    assert open_checkpoint(tmp_path).path == tmp_path / "m.apr"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_model.safetensors"], ["an adapter (PEFT) of 'Qwen/Qwen2-0.5B'", "merge_and_unload"]),
        (["model_index.json"], ["model_index.json: a pipeline of diffusers"]),
        (["config.json", "pytorch_model.bin"], ["pytorch_model.bin", "never opened", "save_pretrained"]),
        (["config.json", "tf_model.h5"], ["tf_model.h5: TensorFlow's", "save_pretrained"]),
        (["config.json", "flax_model.msgpack"], ["flax_model.msgpack: Flax's"]),
        (["model.onnx"], ["model.onnx: ONNX"]),
        (["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json: a tokenizer and no weights"]),
        (["config.json"], ["config.json: a configuration and no weights"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], ["index.json; download it too"]),
        (["consolidated.safetensors"], ["give the file itself", "consolidated.safetensors"]),
        ([], ["a folder with no model in it"]),
    ],
)
def test_folders_without_a_model(tmp_path: Path, files: list[str], words: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"{}")
    if files[:1] == ["adapter_model.safetensors"]:
        said = {"base_model_name_or_path": "Qwen/Qwen2-0.5B", "peft_type": "LORA"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    refused(tmp_path, *words)


def test_an_index_without_shards(tmp_path: Path) -> None:
    weight_map = {f"w{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "model-00001-of-00003.safetensors", "1 of 3 shards; is the download complete?")


# ---------------------------------------------------------------------------------------------------------- files


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n"


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("m.onnx", b"\x08\x07\x12\x07pytorch", ["ONNX", "safetensors or GGUF that it was made from"]),
        ("m.msgpack", b"\xde\x00\x10", ["Flax"]),
        ("m.npy", b"\x93NUMPY\x01\x00", ["an array of NumPy's"]),
        ("m.gguf", LFS, ["git lfs pull"]),
        ("model.safetensors", LFS, ["git lfs pull"]),
        ("pytorch_model.bin", b"PK\x03\x04", ["never opened", "save_pretrained"]),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, head: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(head + bytes(64))
    refused(path, *words)


def test_an_adapter_in_a_models_names(tmp_path: Path) -> None:
    """A PEFT model saved whole, its LoRA matrices beside the weights that they belong to."""
    path = folder(tmp_path / "m") / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].replace(b"q_proj.weight", b"q_proj.base_layer.weight")
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + size :])
    refused(tmp_path / "m", "LoRA adapter (PEFT) that is not merged")


def test_names_that_meet_when_unwrapped(tmp_path: Path) -> None:
    path = folder(tmp_path / "m") / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    end = max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
    header["_orig_mod.model.norm.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :] + np.float32(1).tobytes())
    refused(tmp_path / "m", "two tensors have the same name")


@pytest.mark.parametrize("name", ["pad", "bos", "eos"])
def test_no_token_is_spelled_minus_one(tmp_path: Path, name: str) -> None:
    """As several configurations of the hub have it; Transformers warns of it, and goes on."""
    path = folder(tmp_path / "m") / "config.json"
    (path.parent / "generation_config.json").unlink()
    fields = json.loads(path.read_text())
    fields.pop(f"{name}_token_id", None)
    path.write_text(json.dumps(fields))
    absent = open_checkpoint(path.parent).vocabulary()
    path.write_text(json.dumps(fields | {f"{name}_token_id": -1}))
    assert open_checkpoint(path.parent).vocabulary() == absent
