"""APR v2, aprender's container (paiml/aprender, crates/apr-format/src/v2): header, JSON, tensor index, data, footer.

Two writers made the files that exist. aprender's importer: Hugging Face's names, shapes [out, in], own dtype codes, a
CRC-32 footer. realizar's converter: ggml's names, shapes in GGUF's order [in, out], raw ggml codes, no footer. The
memory is the same row-major [out, in] block in both. Where one dtype code has two meanings, the tensor's byte count
tells them apart.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput, blamed_on
from ...quant import aprq8
from ...quant.ggml import size_of
from ...quant.label import mislabelled
from ...quant.tensor import QTensor, dequantize
from ..config import Config
from ..models.decoder import EMBED, HEAD
from . import MAX_TENSORS, Checkpoint, same_values
from .apr_metadata import read_config, read_vocabulary
from .mapped import map_file
from .strict_json import parse_object

HEADER = struct.Struct("<4sBBHIQIQQI20s")
MAX_METADATA = 16 << 20  # the format's own constant; Qwen2's vocabulary and merges take 4 MiB
LZ4, ZSTD, ENCRYPTED, SHARDED, ROW_MAJOR, COLUMN_MAJOR = 0x0001, 0x0002, 0x0004, 0x0010, 0x0400, 0x0800

# code: the formats it stands for, aprender's meaning first, then ggml's as realizar wrote it.
DTYPES = {
    0: ("F32",), 1: ("F16",), 2: ("BF16", "Q4_0"), 3: ("F64", "Q4_1"), 4: ("I32",), 5: ("I64",), 6: ("I8", "Q5_0"),
    7: ("U8", "Q5_1"), 8: ("APRQ4", "Q8_0"), 9: ("APRQ8", "Q8_1"), 12: ("Q4_K",), 13: ("Q5_K",), 14: ("Q6_K",),
    30: ("BF16",), 128: ("APRQ4",), 129: ("APRQ8",),
}  # fmt: skip
FIRST_EMBED = "tok_embeddings.weight"  # what aprender's importer called the embedding at first
NO_WEIGHT = ("F64", "I32", "I64", "I8", "U8", "Q8_1")  # stored by none of the models that run here


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the index. shape as it is written; offset is relative to the data section."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    size: int


def recognises(path: Path, head: bytes) -> bool:
    return head.startswith(b"APR")


def open(path: Path) -> Checkpoint:
    """The file's Checkpoint; for one shard of several, that of them all. Raises BadInput naming file and fault."""
    metadata, tensors, notes, sharded = _read_file(path)
    files = [path]
    if sharded:
        files = _shards(path, metadata)
        for other in files:
            if other == path:
                continue
            first, more, said, _ = _read_file(other)
            if both := tensors.keys() & more.keys():
                raise BadInput(f"{other}: tensor {min(both)!r:.80} is in another shard too")
            tensors, notes = tensors | more, notes + said
            metadata = first | metadata
    with blamed_on(f"{path}: metadata"):
        c, more_notes = read_config(metadata, _own_head(tensors, metadata))
    tensors = _named_as_one_layer_each(tensors, c)
    if metadata.get("format") == "entrenar-checkpoint":
        tensors = {name: _transposed(w) for name, w in tensors.items()}
    return Checkpoint(
        path=path,
        files=tuple(files),
        container="APR v2",
        config=c,
        tensors=tensors,
        metadata=metadata,
        vocabulary=lambda: read_vocabulary(metadata, str(path), c),
        notes=(*notes, *(f"{path}: metadata: {note}" for note in more_notes)),
    )


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, QTensor], list[str], bool]:
    """Metadata, tensors by name in the file's order, notes, and whether it is one shard of several."""
    raw, notes = map_file(path), []
    if raw.size < HEADER.size:
        raise BadInput(f"{path}: {raw.size} bytes; an APR v2 header has {HEADER.size}")
    head = raw[: HEADER.size].tobytes()
    magic, major, minor, flags, count, meta_at, meta_size, index_at, data_at, checksum, _ = HEADER.unpack(head)
    if magic not in (b"APR\0", b"APR2"):
        what = {
            b"APRN": "an APR v1 file, which holds classic ML models, no language model",
            b"APR1": "whisper.apr's own format, no APR v2",
            b"APRT": "a stage file (APRT), no model; engine diff reads it",
        }.get(magic, "no APR v2 file")
        raise BadInput(f"{path}: {what} (it begins with {magic!r})")
    computed = zlib.crc32(head[:40] + head[44:])
    if checksum not in (computed, 0):
        raise BadInput(
            f"{path}: header checksum {checksum:#010x} at offset 40 is wrong; the header gives {computed:#010x}"
        )
    if checksum != computed:
        notes.append(f"{path}: the header has no checksum, as realizar's converter left it until 2026")
    if flags & ENCRYPTED:
        raise BadInput(f"{path}: is encrypted (flag 0x0004); decrypt it with the tool that made it")
    if flags & COLUMN_MAJOR:
        raise BadInput(
            f"{path}: tensors are column-major (flag 0x0800), which aprender forbids (LAYOUT-002); import it again"
        )
    if (major, minor) != (2, 0):
        notes.append(f"{path}: the header says version {major}.{minor}; read as 2.0")
    if flags & (LZ4 | ZSTD):
        from .apr_blob import decompress

        raw = decompress(raw, flags & (LZ4 | ZSTD), meta_at, meta_size, path)

    for name, start, stop in (("metadata", meta_at, meta_at + meta_size), ("tensor index", index_at, data_at)):
        if start < HEADER.size or stop < start or stop > raw.size:
            raise BadInput(
                f"{path}: the {name} at {start} to {stop} does not lie in the file's {raw.size} bytes; is it cut?"
            )
    if meta_at + meta_size > index_at:
        raise BadInput(f"{path}: metadata ends at {meta_at + meta_size}, inside the tensor index at {index_at}")
    if meta_size > MAX_METADATA:
        raise BadInput(f"{path}: {meta_size} bytes of metadata; no model needs more than {MAX_METADATA}")
    where = f"{path}: metadata"
    metadata = parse_object(raw[meta_at : meta_at + meta_size].tobytes(), where, repeats=True)
    entries = list(_index(raw[index_at:data_at].tobytes(), count, path))
    names = [e.name for e in entries]
    if len(set(names)) != len(names):
        raise BadInput(f"{path}: tensor {Counter(names).most_common(1)[0][0]!r:.80} is in the index twice")
    if names != sorted(names, key=str.encode):
        if checksum:
            raise BadInput(f"{path}: the tensor index is not sorted by name")
        notes.append(f"{path}: the tensor index is not sorted, as realizar's converter left it until 2026")

    _check_extents(entries, raw, data_at, path)
    reverse = not flags & ROW_MAJOR and EMBED.ggml in names
    tensors = {e.name: _tensor(e, raw[data_at + e.offset :][: e.size], reverse, path) for e in entries}
    for w in tensors.values():
        if likely := mislabelled(w):
            raise BadInput(f"{path}: tensor {w.name!r:.80} is labelled {w.format}, but its bits are those of {likely}")
    return metadata, tensors, notes, bool(flags & SHARDED)


def _index(raw: bytes, count: int, path: Path) -> Iterator[Entry]:
    """The entries, one behind the other without padding."""
    if count > MAX_TENSORS:
        raise BadInput(f"{path}: the header claims {count} tensors, and {MAX_TENSORS} is the limit")
    if count * 20 > len(raw):  # an entry's smallest size: no name, no dimension
        raise BadInput(f"{path}: {count} tensors cannot be in an index of {len(raw)} bytes")
    at = 0

    def take(size: int, field: str) -> bytes:
        nonlocal at
        if at + size > len(raw):
            raise BadInput(f"{path}: tensor index ends at byte {len(raw)}, inside the {field} of entry {i}")
        at += size
        return raw[at - size : at]

    for i in range(count):
        spelled = take(int.from_bytes(take(2, "name length"), "little"), "name")
        try:
            name = spelled.decode("utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{path}: name {spelled!r:.80} of entry {i} in the tensor index is not UTF-8") from None
        dtype, ndim = take(2, "dtype")
        if not 1 <= ndim <= 8:
            raise BadInput(f"{path}: tensor {name!r:.80} has {ndim} dimensions; 1 to 8 are possible")
        shape = struct.unpack(f"<{ndim}Q", take(8 * ndim, "dimensions"))
        yield Entry(name, dtype, shape, *struct.unpack("<QQ", take(16, "offset and size")))


def _check_extents(entries: list[Entry], raw: NDArray[np.uint8], data_at: int, path: Path) -> None:
    """Every tensor inside the file, none over another (one may be another's second name); the footer, if any."""
    start, end, before = 0, 0, ""
    for e in sorted(entries, key=lambda e: (e.offset, e.size)):
        if data_at + e.offset + e.size > raw.size:
            ends = data_at + e.offset + e.size
            raise BadInput(f"{path}: tensor {e.name!r:.80} ends at byte {ends}, past the file's {raw.size}; is it cut?")
        if e.offset < end and (e.offset, e.offset + e.size) != (start, end):
            raise BadInput(f"{path}: tensor {e.name!r:.80} at data offset {e.offset} overlaps {before!r:.80}")
        start, end, before = e.offset, e.offset + e.size, e.name
    padded = -(-end // 64) * 64
    rest = raw.size - data_at - padded
    if rest not in (0, 4):
        what = "is cut" if rest < 4 else "has bytes that belong to no tensor"
        raise BadInput(f"{path}: {raw.size} bytes, but its tensors and footer take {data_at + padded + 4}; it {what}")
    if rest == 4:
        footer, computed = int.from_bytes(raw[-4:].tobytes(), "little"), zlib.crc32(raw[:-4].data)
        if footer != computed:
            raise BadInput(
                f"{path}: the footer's checksum is {footer:#010x}, the file's is {computed:#010x}; it is damaged"
            )


def _tensor(e: Entry, data: NDArray[np.uint8], reverse: bool, path: Path) -> QTensor:
    """A view of the file where the format has whole blocks per row, or rows padded to them (quant/tensor.py).

    Two rare kinds are copied: AprQ8 has one scale for the whole tensor, and files of early 2026 have blocks that go on
    from one row into the next, which are decoded to F32.
    """
    where = f"{path}: tensor {e.name!r:.80}"
    shape = e.shape[::-1] if reverse else e.shape
    n, width = prod(shape), shape[-1]
    if not n:
        raise BadInput(f"{where}: shape {shape} has no values")
    if e.dtype not in DTYPES:
        raise BadInput(f"{where}: unknown dtype {e.dtype}")
    for name in DTYPES[e.dtype]:
        if name == "APRQ8":
            if e.size == 4 + n:
                return QTensor(name, shape, aprq8.pack(data, width), e.name)
            continue
        block, size = (1, 1) if name == "U8" else size_of(name)  # the one that ggml does not have
        by_row, flat = n // width * -(-width // block) * size, -(-n // block) * size
        if e.size not in (by_row, flat):
            continue
        if name in NO_WEIGHT:
            raise BadInput(f"{where}: dtype {e.dtype} is {name}, which is no format of weights here")
        if e.size == by_row:
            return QTensor(name, shape, data, e.name)
        values = dequantize(QTensor(name, (flat // size * block,), data))[:n]
        return QTensor("F32", shape, values.astype("<f4", copy=False).view(np.uint8), e.name)
    raise BadInput(
        f"{where}: {e.size} bytes are not what {' or '.join(DTYPES[e.dtype])} {shape} takes (dtype {e.dtype})"
    )


def _own_head(tensors: dict[str, QTensor], metadata: dict[str, Any]) -> bool:
    """Whether the output matrix is other than the embedding; aprender's importer writes tied models a copy of it."""
    heads = [tensors[n] for n in (HEAD.hf, HEAD.ggml) if n in tensors]
    if not heads:
        return False
    embeds = [tensors[n] for n in (EMBED.hf, EMBED.ggml, FIRST_EMBED) if n in tensors]
    tied = metadata.get("tied_embeddings") is True or metadata.get("tie_word_embeddings") is True
    a, b = heads[0], (embeds or heads)[0]
    return not (tied and embeds and same_values(a, b))


def _named_as_one_layer_each(tensors: dict[str, QTensor], c: Config) -> dict[str, QTensor]:
    """Old files: the embedding under its first name; Q | K | V stacked in one tensor, here split into views of it."""
    named = {EMBED.hf if name == FIRST_EMBED else name: w for name, w in tensors.items()}
    return c.architecture.unstacked(named, c.sizes)


def _transposed(w: QTensor) -> QTensor:
    """A linear weight of an entrenar checkpoint, which holds them [in, out], as [out, in]: an F32 copy."""
    if len(w.shape) != 2 or "embed" in w.name:
        return w
    data = np.ascontiguousarray(dequantize(w).T).reshape(-1).view(np.uint8)
    return replace(w, format="F32", shape=w.shape[::-1], data=data)


def _shards(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """All shards, in order, by this one's number in its own name: model-00001-of-00003.apr (or counted from 0)."""
    sharding = metadata.get("sharding")
    count, index = (sharding.get(k) if isinstance(sharding, dict) else None for k in ("shard_count", "shard_index"))
    if not isinstance(count, int) or not isinstance(index, int) or not 0 <= index < count <= 99_999:
        raise BadInput(f"{path}: is one shard of several, but its metadata has no shard_count and shard_index that fit")
    match = re.fullmatch(r"(.*-)(\d{5})(-of-\d{5}\.apr)", path.name)
    if match is None:
        raise BadInput(
            f"{path}: shard {index} of {count}; its name must end in -NNNNN-of-NNNNN.apr, to find the others"
        )
    first = int(match[2]) - index
    return [path.with_name(f"{match[1]}{first + i:05d}{match[3]}") for i in range(count)]
