"""What users take for a model, or the wrong part of one: what it is, and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tarfile import is_tarfile
from typing import Any
from zipfile import BadZipFile, ZipFile

from ...errors import BadInput

SAVE = "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)"
PICKLE = f"Python pickles can run code and are never opened; convert it to safetensors (Transformers: {SAVE})"
OLD = "a GGML file from before GGUF; convert the original weights again"
ONNX = "ONNX, a graph and not a model's weights; give the safetensors or GGUF that it was made from"
OTHERS = f"another framework's weights; convert them to safetensors (Transformers: {SAVE})"
LFS = "a pointer of Git LFS, not the model itself; get that with `git lfs pull`"
ARRAYS = "an array of NumPy's, no model; engine verify DUMP MODEL judges it, if it holds stages"

REFUSED = "the answer of a server that did not send the file, not a model; download it again, logged in where it asks"
# What stands at a folder's top level beside the weights.
BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
PACKED = (".gguf", ".apr", ".safetensors", ".json", "/")  # what an archive begins with that is no pickle's

# By a file's first bytes.
FILES = (
    (b"PK\x03\x04", f"a zip archive, as PyTorch's .bin and .pt are; {PICKLE}"),
    (b"\x80", f"a pickle; {PICKLE}"),
    (b"FUGG", "GGUF with swapped bytes; convert the original weights again"),
    (b"lmgg", OLD),
    (b"fmgg", OLD),
    (b"tjgg", OLD),
    (b"\x89HDF", f"an HDF5 file (Keras): {OTHERS}"),
    (b"\x93NUMPY", ARRAYS),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"version https://git-lfs", LFS),
    (b"<", "a web page, perhaps of a failed download, not a model"),
    *((start, REFUSED) for start in (b'{"error"', b"Entry not found", b"Repository not found", b"Invalid username")),
)
# By its name, where the bytes do not tell.
SUFFIXES = {
    ".onnx": ONNX,
    ".tflite": f"TensorFlow Lite: {OTHERS}",
    ".msgpack": f"Flax: {OTHERS}",
    ".pb": f"TensorFlow: {OTHERS}",
    ".ot": f"rust-bert: {OTHERS}",
}
# A folder, by what lies in it; the first that is there.
FOLDERS = (
    (
        "layer-*/*.bin",
        "a dump of stages, no model; engine verify DUMP MODEL judges it, engine diff A B compares two",
    ),
    ("model_index.json", "a pipeline of diffusers, no language model"),
    ("*.bin", f"PyTorch's; {PICKLE}"),
    ("*.pt", f"PyTorch's; {PICKLE}"),
    ("*.pth", f"PyTorch's; {PICKLE}"),
    ("*.pkl", f"PyTorch's; {PICKLE}"),
    ("tf_model.h5", f"TensorFlow's: {OTHERS}"),
    ("saved_model.pb", f"TensorFlow's: {OTHERS}"),
    ("flax_model*.msgpack", f"Flax's: {OTHERS}"),
    ("*.onnx", ONNX),
    ("onnx", ONNX),
    ("tokenizer.json", "a tokenizer and no weights; the download has left model.safetensors out"),
    ("tokenizer_config.json", "a tokenizer and no weights; the download has left model.safetensors out"),
    ("config.json", "a configuration and no weights; the download has left model.safetensors out"),
)


def file_kind(path: Path, head: bytes) -> str | None:
    """What a file is that no container recognises."""
    if path.suffix.lower() == ".npz":
        return ARRAYS
    if path.name in BESIDE:
        return f"is part of a model's folder; give the folder: {path.parent}"
    if not head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) and _is_tar(path):
        return "a tar archive; unpack it first"
    if head.startswith(b"PK\x03\x04") and _first_of_zip(path).lower().endswith(PACKED):
        return "a zip archive; unpack it first"
    return next((what for magic, what in FILES if head.startswith(magic)), SUFFIXES.get(path.suffix.lower()))


def _is_tar(path: Path) -> bool:
    with suppress(OSError):  # who asks has the bytes alone
        return is_tarfile(path)
    return False


def _first_of_zip(path: Path) -> str:
    """The name of a zip archive's first file; empty where it cannot be read."""
    with suppress(OSError, BadZipFile, NotImplementedError), ZipFile(path) as archive:
        return next(iter(archive.namelist()), "")
    return ""


def folder_kind(folder: Path) -> str | None:
    """What a folder is that has no weights: "NAME: what it is"."""
    for pattern, what in FOLDERS:
        for found in sorted(folder.glob(pattern)):
            return f"{found.name}: {what}"
    return None


def check_adapter(folder: Path, read: Any) -> None:
    """Raises BadInput for a folder of PEFT's, which holds what is added to a model. read: a JSON object of a path."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    said = read(path)
    base = said.get("base_model_name_or_path")
    of = f" of {base!r:.80}" if isinstance(base, str) and base else ""
    raise BadInput(
        f"{folder}: an adapter (PEFT){of}, not a model; give its base as the model and --lora {folder}, or merge it: "
        "AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)"
    )


def model_inside(folder: Path) -> Path:
    """The one model of a folder that is none itself: the hub cache's only snapshot, the only GGUF or APR file.

    The folder itself where it is none of these. Raises BadInput that lists what there is to choose from.
    """
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists():
        return folder
    snapshots = folder / "snapshots"
    if folder.name.startswith("models--") or snapshots.is_dir():
        found = sorted(p for p in snapshots.glob("*") if p.is_dir())
        if not found:
            raise BadInput(f"{folder}: a folder of the hub's cache without a snapshot; download the model again")
        return model_inside(_only(folder, found, "snapshots of the hub's cache"))
    files = [p for suffix in ("gguf", "apr") for p in sorted(folder.glob(f"*.{suffix}")) if p.is_file()]
    return _only(folder, list(_firsts(files)), "models") if files else folder


def _firsts(files: list[Path]) -> Iterator[Path]:
    """Each model once: of one in parts, its first file."""
    seen = set()
    for path in files:
        name = re.sub(r"-\d{5}(-of-\d{5}\.\w+)$", r"\1", path.name)
        if name not in seen:
            seen.add(name)
            yield path


def _only(folder: Path, found: list[Path], what: str) -> Path:
    if len(found) == 1:
        return found[0]
    names = ", ".join(p.relative_to(folder).as_posix() for p in found[:4])
    more = ", ..." if len(found) > 4 else ""
    raise BadInput(f"{folder}: holds {len(found)} {what}; give one of them: {names}{more}")


# What else than a model a GGUF file may be: by general.architecture, by general.type (gguf-py's GGUFType).
GGUF_ARCHITECTURES = {
    "clip": "the vision or audio part of a model (mmproj); give the language model's file, which lies beside it",
    "controlvector": "a control vector, which is added to a model; give the model",
    "imatrix": "an importance matrix, from which llama-quantize takes advice; give the model",
}
GGUF_TYPES = {
    "adapter": "a LoRA adapter, not a model; give its base as the model and this as --lora (engine convert merges)",
    "mmproj": GGUF_ARCHITECTURES["clip"],
    "imatrix": GGUF_ARCHITECTURES["imatrix"],
}


def gguf_kind(metadata: Mapping[str, Any], tensors: int) -> str | None:
    """What a GGUF file is that is no model."""
    for key, kinds in (("general.type", GGUF_TYPES), ("general.architecture", GGUF_ARCHITECTURES)):
        value = metadata.get(key)
        if isinstance(value, str) and value in kinds:
            return kinds[value]
    if "adapter.type" in metadata:
        return GGUF_TYPES["adapter"]
    if not tensors and "tokenizer.ggml.tokens" in metadata:
        return "a vocabulary without weights; give the model's own file"
    return None
