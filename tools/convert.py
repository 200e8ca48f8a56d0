"""engine convert: GGUF, safetensors and APR into one another; bytes pass untouched where the container has their
format."""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.files import Checkpoint, Vocabulary
from ..engine.files.apr_writer import CODES, RAW_GGML
from ..engine.files.end_of_generation import by_text, told, with_control
from ..engine.files.tokenizer_json import last_used, spell
from ..engine.files.writing import Planned
from ..engine.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from ..errors import BadInput
from ..quant import aprq8
from ..quant.ggml import NUMBERS
from ..quant.tensor import QTensor, dequantize, format_of, quantize

QUANTIZE = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
SLAB = 1 << 22  # values recoded at a time

# What each container has a code for. GGUF's own list leaves out what aprender alone has.
HOLDS = {"gguf": set(NUMBERS), "apr": set(CODES), "safetensors": {"F32", "F16", "BF16"}}

# For rows that are no whole number of 256, as llama.cpp's quantizer has it.
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Writes a model in another container. The name of DST tells which: NAME.gguf, NAME.apr,
or a folder (NAME, NAME/) of safetensors, as Hugging Face's save_pretrained leaves it. Weights keep their bytes
where the container has their format, else they become F32, or F16 where that is exact; the tokenizer and the chat
template come along, and what of them can not is said on stderr. The result is written beside DST, read back,
compared, and only then renamed."""
    parser.epilog = """examples:
  engine convert model.gguf model.apr
  engine convert model.gguf model-hf/
  engine convert model-hf/ model-q8_0.gguf --quantize q8_0"""
    parser.add_argument("source", metavar="SRC", help="model file, folder or alias")
    parser.add_argument("destination", metavar="DST", help="NAME.gguf, NAME.apr, or a folder: NAME/")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZE,
        metavar="FORMAT",
        help=f"recode every matrix as FORMAT ({', '.join(QUANTIZE)}); norms and biases are left alone",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.add_argument(
        "--raw-ggml-codes",
        action="store_true",
        help=f"APR only: keep {', '.join(RAW_GGML)} under ggml's own codes, which realizar reads and aprender does not",
    )


def main(args: argparse.Namespace) -> int:
    from .load import open_weights
    from .terminal import one_line

    destination = destination_of(args.destination)
    check_destination(destination, args.force)
    source, _ = open_weights(args.source)  # every tensor has a role and its shape
    for line in convert(source, destination, args.quantize, args.raw_ggml_codes):
        print(one_line(line))
    return 0


def convert(source: Checkpoint, destination: Path, quantize: str | None = None, raw: bool = False) -> list[str]:
    """Writes the model at destination, over what is there; returns what became of its tensors, a line each.

    Raises BadInput if the container cannot hold what is asked for, or the disk the file.
    """
    from .convert_write import left_out, write
    from .progress import progress
    from .terminal import on_stderr

    kind = kind_of(destination)
    if raw and kind != "apr":
        raise BadInput(f"--raw-ggml-codes is for APR; {destination} becomes {kind}")
    if destination.exists() and destination.samefile(source.path):
        raise BadInput(f"{destination}: is the source itself; give another name")
    holds = HOLDS[kind] | (RAW_GGML.keys() if raw else set())
    wanted = quantize.upper() if quantize else None
    if wanted and wanted not in holds:
        more = "; --raw-ggml-codes writes it under ggml's" if kind == "apr" else ""
        raise BadInput(f"--quantize {quantize}: {kind} has no code for it{more}")
    steps = [plan(w, kind, wanted, holds, source) for w in wanted_tensors(source)]
    planned = [step.planned for step in steps]
    total = sum(t.size for t in planned)
    check_space(destination, total)
    v, lost = carried(source, kind)
    for line in lost:
        on_stderr(f"not in {destination.name}: {line}")
    with progress(destination.name, 2 * total, "bytes") as show:
        write(source, v, destination, kind, planned, show, wanted)
    done = f"{destination}: {kind}, {len(planned)} tensors, {total / 1e6:.1f} MB of weights, read back and compared"
    return [*report(steps), *left_out(source, kind), done]


def destination_of(name: str) -> Path:
    """DST as a path. Raises BadInput for an ending that no container has: mistyped, rather than a folder's name."""
    path = Path(name)
    if path.suffix in {"", ".gguf", ".apr"} or name.endswith("/") or path.is_dir():
        return path
    raise BadInput(
        f"{name}: {path.suffix} is no container's ending; .gguf and .apr are, and a folder of safetensors (weights, "
        "config.json, tokenizer) is given as NAME/"
    )


def kind_of(path: Path) -> str:
    """The container that a destination's name asks for."""
    return {".gguf": "gguf", ".apr": "apr"}.get(path.suffix, "safetensors")


def check_destination(path: Path, force: bool) -> None:
    """Raises BadInput for a path that may not be written, before anything is read."""
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent}: no such folder; make it first")
    if not (path.exists() or path.is_symlink()):
        return
    if not force:
        raise BadInput(f"{path}: exists already; --force replaces it")
    if kind_of(path) != "safetensors":
        if not path.is_file():
            raise BadInput(f"{path}: is no file, and is not replaced")
        return
    # A folder is replaced as a whole: only one that holds a model and nothing else.
    strangers = (
        [p.name for p in path.iterdir() if p.is_dir() or p.suffix not in MODEL_FILES] if path.is_dir() else ["."]
    )
    if strangers:
        raise BadInput(f"{path}: holds more than a model ({strangers[0]}), and is not replaced; give another name")


MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".md"}


def check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise BadInput(f"{path}: takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def carried(source: Checkpoint, kind: str) -> tuple[Vocabulary | None, list[str]]:
    """The Vocabulary as a container of that kind can say it, and a line on each thing that it can not."""
    v = source.vocabulary()
    if v is None:
        return None, ["the source has no tokenizer, and so the result has none"]
    if kind == "gguf" and source.container.startswith("GGUF"):
        return v, []  # its keys are copied as they are
    lost = list(v.notes)
    if v.other_templates:
        lost.append(f"chat templates besides the default: {', '.join(v.other_templates)}")
    if kind == "safetensors":
        return _for_safetensors(v, lost), lost

    # Two switches say what is put round a prompt; the ids are BOS and EOS.
    bos = v.prefix[0] if len(v.prefix) == 1 and v.bos_id is None else v.bos_id
    eos = v.eos_ids[0] if v.eos_ids else None
    prefix, suffix = v.prefix if v.prefix == (bos,) else (), v.suffix if v.suffix == (eos,) else ()
    for where, ids, kept, name, one in (
        ("before", v.prefix, prefix, "BOS", bos),
        ("behind", v.suffix, suffix, "EOS", eos),
    ):
        if ids != kept:
            lost.append(f"ids {', '.join(map(str, ids))} {where} a prompt: {kind} can say {name} ({one}), or nothing")
    whole = (prefix, suffix) == (v.prefix, v.suffix)
    v = replace(v, bos_id=bos, prefix=prefix, suffix=suffix)
    types = with_control(v.types, by_text(v.tokens), v.merges)
    if types != v.types:
        changed = [v.tokens[i] for i, t in enumerate(types) if t != v.types[i]]
        lost.append(f"that {', '.join(changed)} is ordinary text: readers of {kind} take it for a control token")
        v = replace(v, types=types)
    if v.flags and (kind == "apr" or not whole):
        lost.append(f"how added tokens are found ({', '.join(sorted(set().union(*v.flags.values())))})")
        v = replace(v, flags={})
    if kind == "apr":
        return replace(v, tokenizer_json=None), lost
    # The whole tokenizer.json goes along where it agrees with the other keys.
    v = replace(v, tokenizer_json=None if not whole else spell(v) if v.flags else v.tokenizer_json)
    if v.flags:
        lost.append("for llama.cpp, how added tokens are found: only tokenizer.huggingface.json says it")
    if over := told(v)[3:]:
        lost.append(f"that answers end at {', '.join(map(str, over))}: GGUF has keys for three ids")
    return replace(v, eos_ids=tuple(i for i in v.eos_ids if i not in over)), lost


def _for_safetensors(v: Vocabulary, lost: list[str]) -> Vocabulary:
    """tokenizer.json knows added tokens, special or not, and ordinary ones."""
    used = last_used(v) + 1
    if v.types[:used].count(BYTE):
        lost.append(f"{v.types.count(BYTE)} tokens stand for single bytes in GGUF alone, and become ordinary text")
    kinds = {UNKNOWN: CONTROL, BYTE: NORMAL, UNUSED: NORMAL}
    return replace(v, types=[kinds.get(t, t) for t in v.types[:used]] + v.types[used:])


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
        format, why = "F16" if exact_in_f16(w) else "F32", f"{kind} has no code for {w.format}"
    whole = w.shape[-1] % format_of(format).block == 0
    if not whole and not (pads and (format == w.format or format_of(format).encode is not None)):
        narrower = NARROWER.get(format, "")
        if wanted and narrower in holds and w.shape[-1] % format_of(narrower).block == 0:
            format, why = narrower, f"rows of {w.shape[-1]} are no whole {format} blocks"
        else:
            format, why = "F16" if wanted or exact_in_f16(w) else "F32", f"rows of {w.shape[-1]} are no whole blocks"
    if format == w.format:
        why = ""
    name = source.config.architecture.renamed(w.name, "ggml" if kind == "gguf" else "hf")
    assert name is not None
    return Step(Planned(name, format, w.shape, size_of(format, w.shape), partial(recode, w, format)), w.format, why)


def size_of(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, rows padded to whole blocks."""
    f = format_of(format)
    if format == "APRQ8":
        return 4 + int(np.prod(shape, dtype=np.int64))
    return int(np.prod(shape[:-1], dtype=np.int64)) * -(-shape[-1] // f.block) * f.bytes


def slabs(w: QTensor) -> Iterator[NDArray[np.float32]]:
    """The values, some rows of the outermost dimension at a time."""
    step = max(1, SLAB * w.shape[0] // max(1, int(np.prod(w.shape, dtype=np.int64))))
    for start in range(0, w.shape[0], step):
        yield dequantize(w, start, min(start + step, w.shape[0]))


def recode(w: QTensor, format: str) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes in the format: its own where it has it already."""
    if format == "APRQ8":
        yield aprq8.unpack(w.data, w.shape[-1])
    elif format == w.format:
        for start in range(0, w.data.size, SLAB):
            yield w.data[start : start + SLAB]
    else:
        missing = -w.shape[-1] % format_of(format).block
        for x in slabs(w):
            whole = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
            yield quantize(whole, format, w.name).data


def exact_in_f16(w: QTensor) -> bool:
    """Whether every value is the same in half precision; most tensors are not, and their first slab says so."""
    with np.errstate(over="ignore"):
        return all(np.array_equal(x.astype(np.float16).astype(np.float32), x) for x in slabs(w))


def report(steps: list[Step]) -> Iterator[str]:
    """A line for each kind of change of format."""
    for (was, now, why), n in Counter((s.was, s.planned.format, s.why) for s in steps).items():
        yield f"{n} tensors {was} kept as they are" if not why else f"{n} tensors {was} -> {now}: {why}"
