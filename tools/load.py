"""What the commands that compute share: the model's arguments, and a model ready to run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..engine.bind import bind
from ..engine.files import Checkpoint, open_checkpoint
from ..engine.kernels import BACKENDS, Kernels, backend, check_precision
from ..engine.nonfinite import NotFinite
from ..engine.tokenizer import Tokenizer, Tokens
from ..engine.weights import Weights
from ..quant.errors import BadInput
from .models import resolve
from .terminal import one_line

NOTES = 10  # on one file: one that nobody made by hand may give 65,536


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in a backend's form."""

    checkpoint: Checkpoint
    weights: Weights
    kernels: Kernels
    backend: str
    precision: str


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, or -m/--model MODEL; neither is None, the default alias."""
    model = parser.add_mutually_exclusive_group()
    what = "model file, folder or alias (default: the 0.5B, if it was pulled)"
    model.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=what)
    model.add_argument("-m", "--model", metavar="MODEL", help="the same")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL or -m/--model, --backend, --precision, -t/--threads."""
    add_model_argument(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="what computes (default: cpu)")
    parser.add_argument(
        "--precision",
        choices=("f32", "int16", "int8", "f64"),
        default="f32",
        help="f32: activations are never rounded; int16: to 16 bits, with 1/256 of int8's noise, cpu only; int8: as "
        "ggml does; f64: reference only",
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all cores)")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int | None) -> None:
    """Must run before a kernel does. Raises BadInput for a count that this machine does not have."""
    if count is None:
        return
    import numba

    if not 1 <= count <= cores():
        raise BadInput(f"{count} threads: this machine has {cores()} to give")
    if count > (most := numba.config.NUMBA_NUM_THREADS):  # type: ignore[attr-defined]
        raise BadInput(f"{count} threads: NUMBA_NUM_THREADS={most} allows no more")
    numba.set_num_threads(count)


def open_model(path_or_alias: str | None) -> Checkpoint:
    """The model's file opened; what is odd about it goes to stderr."""
    checkpoint = open_checkpoint(resolve(path_or_alias))
    for note in checkpoint.notes[:NOTES]:
        print(one_line(f"note: {note}"), file=sys.stderr)
    if (more := len(checkpoint.notes) - NOTES) > 0:
        print(f"note: and {more} more of these", file=sys.stderr)
    return checkpoint


def open_weights(path_or_alias: str | None) -> tuple[Checkpoint, Weights]:
    """The model's file opened and its tensors bound to their roles; nothing is decoded yet."""
    checkpoint = open_model(path_or_alias)
    try:
        return checkpoint, bind(checkpoint.config, checkpoint.tensors)
    except BadInput as error:
        raise BadInput(f"{checkpoint.path}: {error}") from None


def load(
    args: argparse.Namespace, checkpoint: Checkpoint, weights: Weights, first: Callable[[], object] = lambda: None
) -> Loaded:
    """The opened model in the form of the backend and precision that the arguments name.

    first: is called before kernels are compiled, which can take a minute; it may raise BadInput to spare the user that.
    """
    k = backend(args.backend)
    check_precision(k, args.backend, args.precision)
    set_threads(args.threads)

    def compiling(done: int, total: int) -> None:
        first()
        show_compiling(done, total)

    k.compile_kernels(weights, args.precision, compiling)
    prepared = k.prepare(weights, args.precision)
    checkpoint.check_unchanged()
    return Loaded(checkpoint, prepared, k, args.backend, args.precision)


def blaming(tokens: Iterator[int], checkpoint: Checkpoint, weights: Weights) -> Iterator[int]:
    """The tokens that are generated. Raises BadInput that names the weight where the numbers leave the finite."""
    try:
        yield from tokens
    except NotFinite as error:
        raise BadInput(f"{checkpoint.path}: {error.traced_to(weights)}") from None


def show_compiling(done: int, total: int) -> None:
    """The line that says why the first run takes longer."""
    start, end = ("\r", "" if done + 1 < total else "\n") if sys.stderr.isatty() else ("", "\n")
    if sys.stderr.isatty() or done == 1:
        print(f"{start}compiling kernels (first run) {done + 1}/{total}", end=end, file=sys.stderr, flush=True)


def open_spelling(checkpoint: Checkpoint) -> Tokens | None:
    """What spells ids out, for a prompt that came as ids; None, with a line on stderr, where nothing can."""
    try:
        v = checkpoint.vocabulary()
    except BadInput as error:
        print(one_line(f"note: the tokenizer can not be read, ids are not spelled out: {error}"), file=sys.stderr)
        return None
    return None if v is None else Tokens(v.tokens, v.types, checkpoint.config.vocab_size, v.eos_ids)


def open_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, str | None]:
    """The file's own tokenizer and chat template. Raises BadInput if the file has no tokenizer."""
    vocabulary = checkpoint.vocabulary()
    if vocabulary is None:
        files = " (tokenizer.json, or vocab.json and merges.txt)" if checkpoint.container == "safetensors" else ""
        raise BadInput(f"{checkpoint.path} has no tokenizer{files}; give token ids, as --tokens 1,2,3, instead of text")
    for note in vocabulary.notes:
        print(one_line(f"note: {checkpoint.path}: {note}"), file=sys.stderr)
    try:
        return Tokenizer.from_vocabulary(vocabulary, checkpoint.config.vocab_size), vocabulary.chat_template
    except BadInput as error:
        raise BadInput(f"{checkpoint.path}: {error}") from None
