"""engine convert: GGUF, safetensors and APR into one another; bytes pass untouched where the container has their
format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..engine.files.apr_writer import RAW_GGML
from ..engine.files.convert import convert, kind_of
from ..errors import BadInput
from .leftovers import written_down

QUANTIZE = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
MODEL_FILES = {".safetensors", ".json", ".jinja", ".txt", ".md"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from .load import add_lora_argument

    parser.description = """Writes a model in another container. The name of DST tells which: NAME.gguf, NAME.apr,
or a folder (NAME, NAME/) of safetensors, as Hugging Face's save_pretrained leaves it. Weights keep their bytes
where the container has their format, else they become F32, or F16 where that is exact; the tokenizer and the chat
template come along, and what of them can not is said on stderr. The result is written beside DST, read back,
compared, and only then renamed."""
    parser.epilog = """examples:
  engine convert model.gguf model.apr
  engine convert model.gguf model-hf/
  engine convert model-hf/ model-q8_0.gguf --quantize q8_0"""
    parser.add_argument("source", metavar="SRC", help="model file, folder, alias or hub id")
    parser.add_argument("destination", metavar="DST", help="NAME.gguf, NAME.apr, or a folder: NAME/")
    parser.add_argument(
        "--quantize",
        type=str.lower,
        choices=QUANTIZE,
        metavar="FORMAT",
        help=f"recode every matrix as FORMAT ({', '.join(QUANTIZE)}); norms and biases are left alone",
    )
    add_lora_argument(parser)
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.add_argument(
        "--raw-ggml-codes",
        action="store_true",
        help=f"APR only: keep {', '.join(RAW_GGML)} under ggml's own codes, which realizar reads and aprender does not",
    )


def main(args: argparse.Namespace) -> int:
    from ..engine.merge import merged
    from .load import is_model, open_weights
    from .progress import progress
    from .terminal import on_stderr, one_line

    destination = destination_of(args.destination)
    if not Path(args.source).exists() and Path(args.source).suffix and is_model(args.destination):
        raise BadInput(
            f"{args.source} is not there and {destination} is a model; SRC comes first: engine convert {destination} "
            f"{args.source}"
        )
    check_destination(destination, args.force)
    if kind_of(destination) == "safetensors" and sys.stderr.isatty():
        on_stderr(f"note: {destination} will be a folder of safetensors; NAME.gguf and NAME.apr are files")
    source, weights = open_weights(args.source, loras=args.lora)  # every tensor has a role and its shape
    source, said = merged(source, weights)
    with written_down(destination), progress(destination.name, unit="bytes") as show:
        lines = convert(source, destination, args.quantize, args.raw_ggml_codes, on_stderr, show)
    for line in [*said, *lines]:
        print(one_line(line))
    return 0


def destination_of(name: str) -> Path:
    """DST as a path. Raises BadInput for an ending that no container has: mistyped, rather than a folder's name."""
    if not name:
        raise BadInput("DST is empty; give NAME.gguf, NAME.apr, or a folder for safetensors")
    path = Path(name)
    if path.suffix in {"", ".gguf", ".apr"} or name.endswith("/") or path.is_dir():
        return path
    raise BadInput(
        f"{name}: {path.suffix} is no container's ending; .gguf and .apr are, and a folder of safetensors (weights, "
        "config.json, tokenizer) is given as NAME/"
    )


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
