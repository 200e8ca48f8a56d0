"""engine compile: the CPU backend's kernels, made ready before anyone waits for them."""

from __future__ import annotations

import argparse
import time

from ..errors import BadInput
from .load import add_model_argument, open_weights, show_compiling
from .terminal import json_text

PRECISIONS = ("f32", "int16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Compiles what the CPU backend needs for a model, or for all of them, into the user's own
cache, as the first run of the model would do. In an image, or on a machine that is set up for others, run it as the
user who will run the models: kernels are sealed with a key of that user's, and made for the processor that
compiles them."""
    parser.epilog = "examples:\n  engine compile --all\n  engine compile model.gguf --precision int8"
    add_model_argument(parser)
    parser.add_argument("--all", action="store_true", help="for every packed format, in every precision")
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="may be repeated (default: f32; with --all, all)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line")


def main(args: argparse.Namespace) -> int:
    from ..engine.kernels.cpu import ahead, formats_of
    from ..engine.kernels.cpu.machine.compiled import store
    from ..engine.kernels.cpu.matmul.packed import FORMATS

    if args.all and args.model is not None:
        raise BadInput(f"--all is for every model; {args.model} is one")
    if (kept := store()) is None:
        raise BadInput("kernels can not be kept: neither the cache nor the temporary folder can be made private")
    formats = FORMATS if args.all else formats_of(open_weights(args.model).weights)
    precisions = args.precision or (PRECISIONS if args.all else PRECISIONS[:1])
    before, start = set(kept.folder.iterdir()), time.monotonic()
    ahead.compile_kernels(formats, precisions, show_compiling)
    made = set(kept.folder.iterdir()) - before
    told = {
        "folder": str(kept.folder),
        "kernels": len(ahead.kernels(formats, precisions)),
        "compiled": len(made),
        "bytes": sum(p.stat().st_size for p in kept.folder.iterdir()),
        "seconds": round(time.monotonic() - start, 1),
    }
    if args.json:
        print(json_text(told))
    else:
        print("{kernels} kernels, {compiled} compiled in {seconds} s; {bytes:,} bytes in {folder}".format(**told))
    return 0
