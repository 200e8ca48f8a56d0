"""The header of a safetensors file (github.com/huggingface/safetensors, "Format"): tensors are views of its map.

An own parser, because the library's NumPy binding has no BF16, takes a tensor named twice, and copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from . import MAX_TENSORS
from .foreign import file_kind
from .mapped import map_file
from .strict_json import parse_object

MAX_HEADER = 100_000_000  # the format's own limit


def read_tensors(
    path: Path, sizes: Mapping[str, int]
) -> tuple[dict[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]], dict[str, str]]:
    """(dtype, shape, bytes) of each tensor by its name, mapped, and the metadata.

    sizes: bytes a value of each dtype that may occur. Raises BadInput unless the file is as the format asks: no hole,
    no overlap, nothing behind the last.
    """
    raw = map_file(path)
    if raw.size < 8:
        raise BadInput(
            f"{path}: {raw.size} bytes; a safetensors file begins with 8 bytes that give its header's length"
        )
    length = int.from_bytes(raw[:8].tobytes(), "little")
    # A length may begin as a pickle or a page does, so only what is no safetensors is called by its first bytes.
    if raw[8:9].tobytes() != b"{" and (kind := file_kind(Path("-"), raw[:64].tobytes())):
        raise BadInput(f"{path}: {kind}")
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
    spans = [(*_span(path, name, entry, sizes), name) for name, entry in header.items()]
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
        tensors[name] = (header[name]["dtype"], tuple(header[name]["shape"]), data[start:stop])
        end = stop
    if end != data.size:
        raise BadInput(f"{path}: {data.size - end} bytes behind the last tensor belong to none")
    return tensors, about


def _span(path: Path, name: str, entry: Any, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Begin and end of a tensor in the data, from its header entry; both are checked against shape and dtype."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    where = f"{path}: tensor {name!r:.80}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{where}: its entry must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in sizes:
        raise BadInput(f"{where}: dtype {dtype!r:.20} is not supported; {', '.join(sizes)} are")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(whole, shape)):
        raise BadInput(f"{where}: shape {shape!r:.60} must be up to 8 whole numbers, none negative")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        raise BadInput(f"{where}: data_offsets {offsets!r:.60} must be a begin and an end, not before it")
    if prod(shape) * sizes[dtype] != offsets[1] - offsets[0]:
        size = prod(shape) * sizes[dtype]
        raise BadInput(f"{where}: {dtype} {shape} takes {size} bytes; its data_offsets hold {offsets[1] - offsets[0]}")
    return offsets[0], offsets[1]
