"""safetensors, Hugging Face's container: a folder as `save_pretrained` leaves it, or a file with config.json beside it.

An own parser of the header (github.com/huggingface/safetensors, "Format"), because the library's NumPy binding has no
BF16, takes a tensor named twice, and copies. Every tensor is a view of its file's memory map.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...quant.errors import BadInput
from ...quant.tensor import QTensor
from ..config import from_hf
from . import MAX_TENSORS, Checkpoint
from .hf_tokenizer import read_generation_config, read_object, read_vocabulary
from .mapped import map_file, read_head
from .strict_json import parse_object

MAX_HEADER = 100_000_000  # the format's own limit
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


def recognises(path: Path, head: bytes) -> bool:
    """A folder with config.json, an index or weights; a file by its suffix, or a small header length and a brace."""
    if path.is_dir():
        return any((path / name).exists() for name in (SINGLE, INDEX, CONFIG)) or any(path.glob("*.safetensors"))
    return path.suffix == ".safetensors" or path.name == INDEX or (head[8:9] == b"{" and head[4:8] == bytes(4))


def open(path: Path) -> Checkpoint:
    """A Checkpoint of the folder or file. Raises BadInput that names the file and what is wrong with it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == INDEX:
        tensors, about, files = _read_folder(folder)
    else:
        (tensors, about), files = _read_file(path), [path]
        if re.search(r"-\d{5}-of-\d{5}$", path.stem) and (folder / INDEX).exists():
            raise BadInput(f"{path}: one shard of several; give the folder {folder}")
    if not (folder / CONFIG).exists():
        raise BadInput(
            f"{folder / CONFIG}: no such file; safetensors hold no hyper-parameters, so it must lie beside them"
        )
    config = read_object(folder / CONFIG)
    # A tied model may have been saved with a copy of the embedding as its head; it is tied if the copy is one.
    head, embed = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    own_head = head is not None and not (
        config.get("tie_word_embeddings") is True
        and embed is not None
        and (head.format, head.shape) == (embed.format, embed.shape)
        and np.array_equal(head.data, embed.data)
    )
    try:
        c = from_hf(config, own_head)
    except BadInput as error:
        raise BadInput(f"{folder / CONFIG}: {error}") from None
    metadata = {
        "config": config,
        "generation_config": read_generation_config(folder),
        "metadata": about,
    }
    return Checkpoint(
        path=path,
        files=tuple(files),
        container="safetensors",
        config=c,
        tensors=tensors,
        metadata=metadata,
        vocabulary=lambda: read_vocabulary(folder, config, c.vocab_size),
    )


def _read_folder(folder: Path) -> tuple[dict[str, QTensor], dict[str, str], list[Path]]:
    """The tensors of model.safetensors, or of the shards that the index names, as transformers looks for them."""
    if (folder / SINGLE).exists():
        return *_read_file(folder / SINGLE), [folder / SINGLE]
    path = folder / INDEX
    if not path.exists():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl"})
        if pickled:
            raise BadInput(
                f"{folder / pickled[0]}: PyTorch's pickles can run code and are never opened; convert it to safetensors"
            )
        raise BadInput(f"{folder}: neither {SINGLE} nor {INDEX} is there")
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{path}: weight_map must be an object that names a file for each tensor")
    for name, file in weight_map.items():
        # A plain name only. The file itself may be a link: the hub's cache consists of them.
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\:\0]+\.safetensors", file):
            raise BadInput(
                f"{path}: weight_map[{name!r:.80}] is {file!r:.80}; it must be a .safetensors file of this folder"
            )
    tensors: dict[str, QTensor] = {}
    about: dict[str, str] = {}
    shards = sorted(set(weight_map.values()))
    for file in shards:
        read_head(folder / file, 0)  # a missing shard is to be named before the first is read
    for file in shards:
        found, said = _read_file(folder / file)
        about |= said
        for name, tensor in found.items():
            if weight_map.get(name) != file:
                says = f"in {weight_map[name]!r:.80}" if name in weight_map else "nowhere"
                raise BadInput(f"{folder / file}: holds tensor {name!r:.80}, which {INDEX} says is {says}")
            tensors[name] = tensor
    if lost := weight_map.keys() - tensors.keys():
        name = min(lost)
        raise BadInput(f"{folder / weight_map[name]}: has no tensor {name!r:.80}, which {INDEX} says is there")
    return tensors, about, [folder / file for file in shards]


def _read_file(path: Path) -> tuple[dict[str, QTensor], dict[str, str]]:
    """Tensors and metadata of a file, checked as the format asks: no hole, no overlap, nothing behind the last."""
    raw = map_file(path)
    if raw.size < 8:
        raise BadInput(
            f"{path}: {raw.size} bytes; a safetensors file begins with 8 bytes that give its header's length"
        )
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if not 2 <= length <= min(MAX_HEADER, raw.size - 8):
        limit = f"the file has {raw.size} bytes, and the format allows {MAX_HEADER}"
        raise BadInput(f"{path}: header length {length} at offset 0; {limit}")
    text = raw[8 : 8 + length].tobytes()
    if not text.startswith(b"{"):
        raise BadInput(f"{path}: the header at offset 8 must begin with '{{', not {text[:8]!r}")
    if (count := text.count(b"{")) > MAX_TENSORS:
        raise BadInput(f"{path}: the header claims {count - 1} tensors, and {MAX_TENSORS} is the limit")
    header = parse_object(text, f"{path}: header")
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        raise BadInput(f"{path}: __metadata__ must hold text only")

    data, end = raw[8 + length :], 0
    spans = [(*_span(path, name, entry), name) for name, entry in header.items()]
    spans.sort(key=lambda span: span[:2])
    tensors = {}
    for start, stop, name in spans:
        if start != end:
            what = "overlaps the tensor before it" if start < end else f"leaves a hole of {start - end} bytes before it"
            raise BadInput(f"{path}: tensor {name!r:.80} at data offset {start} {what}")
        if stop > data.size:
            raise BadInput(
                f"{path}: tensor {name!r:.80} ends at data offset {stop}, past the file's {data.size}; is it cut?"
            )
        tensors[name] = QTensor(header[name]["dtype"], tuple(header[name]["shape"]), data[start:stop], name)
        end = stop
    if end != data.size:
        raise BadInput(f"{path}: {data.size - end} bytes behind the last tensor belong to none")
    return tensors, about


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of a tensor in the data, from its header entry; both are checked against shape and dtype."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    where = f"{path}: tensor {name!r:.80}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{where}: its entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise BadInput(f"{where}: dtype {dtype!r:.20} is not supported; {', '.join(BYTES)} are")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(whole, shape)):
        raise BadInput(f"{where}: shape {shape!r:.60} must be up to 8 whole numbers, none negative")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        raise BadInput(f"{where}: data_offsets {offsets!r:.60} must be a begin and an end, not before it")
    if prod(shape) * BYTES[dtype] != offsets[1] - offsets[0]:
        size = prod(shape) * BYTES[dtype]
        raise BadInput(f"{where}: {dtype} {shape} takes {size} bytes; its data_offsets hold {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1]
