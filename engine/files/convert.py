"""GGUF, safetensors and APR into one another; bytes pass untouched where the container has their format."""

from __future__ import annotations

import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ...beside import Beside
from ...errors import BadInput
from ...quant import aprq8
from ...quant.tensor import QTensor, dequantize, format_of, quantize, row_slabs
from ..config import Config
from ..models.architecture import Spelling
from . import Checkpoint, apr_writer, gguf_writer, open_checkpoint, safetensors_writer
from .carried import carried, check_head, held, left_out, lost_beside_text
from .tokenizer_json import last_used
from .vocabulary import Vocabulary
from .writing import Planned, Progress

# Each has HOLDS, the formats that it has a code for, and write(place, source, vocabulary, tensors, recoded, show).
WRITERS: dict[str, ModuleType] = {"gguf": gguf_writer, "apr": apr_writer, "safetensors": safetensors_writer}
FIELDS = (
    "tokens", "merges", "types", "spaces", "strip", "chat_template", "prefix", "suffix", "flags", "eos_ids",
)  # fmt: skip
STEP = 1 << 22  # bytes at a time

# For rows that are no whole number of 256, as llama.cpp's quantizer has it.
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def convert(
    source: Checkpoint,
    destination: Path,
    quantize: str | None = None,
    raw: bool = False,
    lost: Callable[[str], None] = lambda line: None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Writes the model at destination, over what is there; returns what became of its tensors, a line each.

    quantize: the format that matrices become. raw: for APR, also codes that only realizar reads. lost: is told, before
    anything is written, a line on each thing of the tokenizer that the container can not say. show: is told how many
    bytes are done, and of how many: each is written and read back.
    Raises BadInput if the container cannot hold what is asked for, or the disk the file.
    """
    kind = kind_of(destination)
    if raw and kind != "apr":
        raise BadInput(f"--raw-ggml-codes is for APR; {destination} becomes {kind}")
    if destination.exists() and destination.samefile(source.path):
        raise BadInput(f"{destination}: is the source itself; give another name")
    check_head(source, kind)
    holds = WRITERS[kind].HOLDS | (apr_writer.RAW_GGML.keys() if raw else set())
    wanted = quantize.upper() if quantize else None
    if wanted and wanted not in holds:
        more = "; --raw-ggml-codes writes it under ggml's" if kind == "apr" else ""
        raise BadInput(f"--quantize {quantize}: {kind} has no code for it{more}")
    steps = [plan(w, kind, wanted, holds, source) for w in wanted_tensors(source)]
    planned = [step.planned for step in steps]
    total = sum(t.size for t in planned)
    check_space(destination, total)
    v, missing = carried(source, kind)
    missing += lost_beside_text(source, kind)
    for line in missing:
        lost(f"not in {destination.name}: {line}")
    write(source, v, destination, kind, planned, lambda done: show(done, 2 * total), wanted)
    done = f"{destination}: {kind}, {len(planned)} tensors, {total / 1e6:.1f} MB of weights, read back and compared"
    return [*report(steps), *left_out(source, kind), done]


def kind_of(path: Path) -> str:
    """The container that a destination's name asks for."""
    return {".gguf": "gguf", ".apr": "apr"}.get(path.suffix, "safetensors")


def check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise BadInput(f"{path}: takes {size:,} bytes, and {free:,} are free there; name another place")


def wanted_tensors(source: Checkpoint) -> Iterator[QTensor]:
    """Every tensor with a role; not a tied model's copy of the embedding, nor tables that are computed."""
    a = source.config.architecture
    for name, w in source.tensors.items():
        spelled = a.renamed(name, "hf")
        if name.endswith(a.unread) or (spelled == a.whole["lm_head"].hf and source.config.tie_word_embeddings):
            continue
        if spelled is None:
            raise BadInput(
                f"{source.path}: tensor {name} has no place in a {a.title} model, and dropping it could change it"
            )
        yield w


def spelled_for(kind: str) -> Spelling:
    """Whose names a container of that kind has."""
    return "ggml" if kind == "gguf" else "hf"


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of a tensor, and why, if its format changes."""

    planned: Planned
    was: str
    why: str


def plan(w: QTensor, kind: str, wanted: str | None, holds: set[str], source: Checkpoint) -> Step:
    """The name, format and bytes of a tensor in a container of that kind. wanted: the format that matrices become."""
    format, why = w.format, ""
    pads = kind == "apr"  # its Q4_K and Q6_K rows are padded to whole blocks
    if wanted and (len(w.shape) > 1 or wanted == "F32"):
        format, why = wanted, "as asked"
    elif kind == "gguf" and len(w.shape) == 1 and not source.container.startswith("GGUF"):
        format, why = "F32", "llama.cpp computes norms and biases in F32"
    if format not in holds:
        format, why = narrowest(w, holds), f"{kind} has no code for {w.format}"
    whole = w.shape[-1] % format_of(format).block == 0
    if not whole and not (pads and (format == w.format or format_of(format).encode is not None)):
        narrower = NARROWER.get(format, "")
        if wanted and narrower in holds and w.shape[-1] % format_of(narrower).block == 0:
            format, why = narrower, f"rows of {w.shape[-1]} are no whole {format} blocks"
        else:
            format, why = "F16" if wanted else narrowest(w, holds), f"rows of {w.shape[-1]} are no whole blocks"
    if format == w.format:
        why = ""
    a = source.config.architecture
    name, w = a.renamed(w.name, spelled_for(kind)), a.in_order(w, spelled_for(kind), source.config.sizes)
    assert name is not None
    return Step(Planned(name, format, w.shape, size_of(format, w.shape), partial(recode, w, format)), w.format, why)


def size_of(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, rows padded to whole blocks."""
    f = format_of(format)
    if format == "APRQ8":
        return 4 + int(np.prod(shape, dtype=np.int64))
    return int(np.prod(shape[:-1], dtype=np.int64)) * -(-shape[-1] // f.block) * f.bytes


def recode(w: QTensor, format: str) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes in the format: its own where it has it already."""
    if format == "APRQ8":
        yield aprq8.unpack(w.data, w.shape[-1])
    elif format == w.format:
        for start in range(0, w.data.size, STEP):
            yield w.data[start : start + STEP]
    else:
        missing = -w.shape[-1] % format_of(format).block
        for start, stop in row_slabs(w):
            x = dequantize(w, start, stop)
            whole = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
            yield quantize(whole, format, w.name).data


def narrowest(w: QTensor, holds: set[str]) -> str:
    """The narrowest float format, of those held, in which every value is the same; most tensors' first slab tells."""

    def exact(format: str) -> bool:
        f = format_of(format)
        assert f.encode is not None
        for rows in row_slabs(w):
            x = dequantize(w, *rows)
            with np.errstate(over="ignore"):
                again = f.decode(f.encode(x)).reshape(x.shape)
            if not np.array_equal(again, x):
                return False
        return True

    return next((format for format in ("F16", "BF16") if format in holds and exact(format)), "F32")


def report(steps: list[Step]) -> Iterator[str]:
    """A line for each kind of change of format."""
    for (was, now, why), n in Counter((s.was, s.planned.format, s.why) for s in steps).items():
        yield f"{n} tensors {was} kept as they are" if not why else f"{n} tensors {was} -> {now}: {why}"


def write(
    source: Checkpoint,
    v: Vocabulary | None,
    destination: Path,
    kind: str,
    tensors: list[Planned],
    show: Callable[[int], None],
    recoded: str | None,
) -> None:
    """Writes beside the destination, reads back, compares, renames. Nothing is left of what fails.

    show: is told how many bytes are done, of twice the tensors' size. Raises BadInput if the disk is full, or if what
    is read back differs.
    """
    done, crc = 0, {}

    def told(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    def counted(t: Planned) -> Planned:
        """The tensor; what it yields is summed up, to be found again on reading."""

        def chunks() -> Iterator[NDArray[np.uint8]]:
            sum_ = 0
            for chunk in t.chunks():
                sum_ = zlib.crc32(chunk.data, sum_)
                yield chunk
            crc[t.name] = sum_

        return replace(t, chunks=chunks)

    tensors = [counted(t) for t in tensors]
    try:
        with Beside(destination, folder=kind == "safetensors") as beside:
            WRITERS[kind].write(beside.path, source, v, tensors, recoded, told)
            check_written(open_checkpoint(beside.path), held(source, kind), v, tensors, crc, told)
            source.check_unchanged()
            beside.move()
    except OSError as error:
        source.check_unchanged()  # a system call that finds no memory behind a cut file fails as if the disk had
        raise BadInput(f"{destination}: cannot be written: {error.strerror or error}") from None


def check_written(
    written: Checkpoint, c: Config, v: Vocabulary | None, tensors: list[Planned], crc: Mapping[str, int], told: Progress
) -> None:
    """Raises BadInput unless the file, read back, has the same configuration, vocabulary and bytes."""
    if written.config != c:
        raise BadInput(f"{written.path}: read back, the configuration differs: {written.config} is not {c}")
    again = written.vocabulary()
    for field in FIELDS:
        a, b = (getattr(x, field, None) for x in (again, v))
        if field == "eos_ids" and again and v:
            a, b = set(again.eos_ids), set(v.eos_ids)
        if field in ("tokens", "types") and again and v:
            a, b = (getattr(x, field)[: last_used(x) + 1] for x in (again, v))
        if a != b:
            raise BadInput(f"{written.path}: read back, the tokenizer's {field} differ")
    if written.tensors.keys() != {t.name for t in tensors}:
        raise BadInput(f"{written.path}: read back, it has other tensors")
    for t in tensors:
        w, sum_ = written.tensors[t.name], 0
        for start in range(0, w.data.size, STEP):
            sum_ = zlib.crc32(w.data[start : start + STEP].data, sum_)
            told(min(STEP, w.data.size - start))
        packed = t.format == "APRQ8"  # laid out anew by its reader
        if (w.format, w.shape) != (t.format, t.shape) or (sum_ != crc[t.name] and not packed):
            raise BadInput(f"{written.path}: read back, tensor {t.name} differs; is the disk sound?")
