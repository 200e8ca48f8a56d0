"""What the commands that compute share: the model's arguments, and what is odd about its file on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.aliases import MODELS, resolve
from ..engine.files import Checkpoint, open_checkpoint
from ..engine.kernels import BACKENDS
from ..engine.load import (
    Loaded,
    Opened,
    bound,
    load,
    set_threads,
    spelling_of,
    tokenizer_of,
    vocabulary_of,
    with_adapters,
    with_scaling,
)
from ..engine.lora import opened_loras
from ..engine.text.tokenizer import Tokenizer, Tokens
from ..errors import BadInput
from .terminal import on_stderr

NOTES = 10  # on one file: one that nobody made by hand may give 65,536


MODEL_HELP = (
    "model file, folder, alias, or ORG/NAME[@REVISION][:FILE] of the hub (default: $QWENREF_MODEL, else the 0.5B)"
)


class Once(argparse.Action):
    """Stores a value, as argparse does; a second one would drop the first without a word."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if (first := getattr(namespace, self.dest, None)) is not None:
            raise argparse.ArgumentError(self, f"given twice, {first!r:.80} and {values!r:.80}; leave one of them away")
        setattr(namespace, self.dest, values)


def add_model_argument(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """MODEL, or -m/--model MODEL; neither is None, the default alias. several: a list of them."""
    model = parser.add_mutually_exclusive_group()
    if several:
        model.add_argument("model", nargs="*", default=argparse.SUPPRESS, metavar="MODEL", help=MODEL_HELP)
        model.add_argument("-m", "--model", action="append", metavar="MODEL", help="the same; may be given again")
        return
    model.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=MODEL_HELP)
    model.add_argument("-m", "--model", action=Once, metavar="MODEL", help="the same")


def is_model(name: str | None) -> bool:
    """Whether a word of the command line is a model for certain: an alias, or there and of a container's kind."""
    if name is None or name in MODELS:
        return name is not None
    path = Path(name)
    return (path / "config.json").is_file() if path.is_dir() else path.is_file() and path.suffix in {".gguf", ".apr"}


def check_no_model(name: str, instead: str) -> None:
    """Raises BadInput for a model's file where none belongs. instead: the way out."""
    if name in MODELS or (Path(name).is_file() and is_model(name)):
        raise BadInput(f"{name} is a model; {instead}")


def add_rope_arguments(parser: argparse.ArgumentParser) -> None:
    """--rope-scaling, --rope-factor, --yarn-orig-ctx: another scaling of RoPE than the file's, as llama.cpp has it."""
    rope = parser.add_argument_group("long texts (docs/models.md)")
    rope.add_argument("--rope-scaling", choices=("none", "linear", "yarn"), help="instead of the file's own scaling")
    rope.add_argument("--rope-factor", type=float, metavar="F", help="how much longer than the training's texts")
    rope.add_argument(
        "--yarn-orig-ctx", type=int, metavar="N", help="length of the training's texts (default: what the file says)"
    )


def add_lora_argument(parser: argparse.ArgumentParser) -> None:
    """--lora, once for each adapter."""
    what = "LoRA adapter, PEFT's folder or a GGUF file, its scale times SCALE; may be given again (docs/models.md)"
    parser.add_argument("--lora", action="append", default=[], metavar="DIR[:SCALE]", help=what)


def rope_asked(args: argparse.Namespace) -> dict[str, Any] | None:
    """What these ask for, by config.json's names; None for the file's own. Raises BadInput for half of it."""
    kind, factor, length = args.rope_scaling, args.rope_factor, args.yarn_orig_ctx
    if kind is None and (factor, length) != (None, None):
        name = "--rope-factor" if factor is not None else "--yarn-orig-ctx"
        raise BadInput(f"{name} says how RoPE is scaled; say --rope-scaling linear or yarn, too")
    if kind is None:
        return None
    if (kind == "none") != (factor is None):
        raise BadInput(f"--rope-scaling {kind} {'has no' if kind == 'none' else 'needs a'} --rope-factor")
    if length is not None and kind != "yarn":
        raise BadInput(f"--yarn-orig-ctx is of --rope-scaling yarn, not of {kind}")
    said = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": length}
    return {name: value for name, value in said.items() if value is not None}


def add_model_arguments(parser: argparse.ArgumentParser, words: bool = False, several: bool = False) -> None:
    """MODEL or -m/--model, --backend, --precision, -t/--threads, and the scaling of RoPE.

    words: instead of MODEL as many words as there are, in args.words (run.py's). several: models, as many.
    """
    if words:
        what = "a model, or without -p a prompt of several words, or one after the other"
        parser.add_argument("words", nargs="*", metavar="MODEL|PROMPT", help=what)
        parser.add_argument("-m", "--model", action=Once, metavar="MODEL", help=MODEL_HELP)
    else:
        add_model_argument(parser, several)
    add_computing_arguments(parser)


def add_computing_arguments(parser: argparse.ArgumentParser) -> None:
    """--backend, --precision, -t/--threads, --lora and the scaling of RoPE."""
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="what computes (default: cpu)")
    parser.add_argument(
        "--precision",
        choices=("f32", "int16", "int8", "f64"),
        default="f32",
        help="f32: activations are never rounded; int16: to 16 bits, with 1/257 of int8's noise, cpu only; int8: as "
        "ggml does; f64: reference only",
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="threads (default: all cores)")
    add_lora_argument(parser)
    add_rope_arguments(parser)


def note(line: str) -> None:
    """Says on stderr what is odd."""
    on_stderr(f"note: {line}")


def open_model(path_or_alias: str | None, say: Callable[[str], None] = note) -> Checkpoint:
    """The model's file opened; what is odd about it is said."""
    checkpoint = open_checkpoint(resolve(path_or_alias))
    for line in checkpoint.notes[:NOTES]:
        say(line)
    if (more := len(checkpoint.notes) - NOTES) > 0:
        say(f"and {more} more of these")
    return checkpoint


def open_weights(
    path_or_alias: str | None,
    rope_scaling: Mapping[str, Any] | None = None,
    loras: Sequence[str] = (),
    say: Callable[[str], None] = note,
) -> Opened:
    """The model's file opened and its tensors bound to their roles; nothing is decoded yet. rope_scaling: instead of
    the file's own (rope_asked). loras: adapters, as --lora has them. say: is told what is odd about the file."""
    adapters = opened_loras(loras)  # of the two the smaller
    return with_adapters(bound(with_scaling(open_model(path_or_alias, say), rope_scaling)), adapters)


def load_as_asked(args: argparse.Namespace, opened: Opened, first: Callable[[], object] = lambda: None) -> Loaded:
    """The opened model in the form of the backend and precision that the arguments name, with their threads.

    first: is called before kernels are compiled, which can take a minute; it may raise BadInput to spare the user that.
    """

    def compiling(done: int, total: int) -> None:
        first()
        show_compiling(done, total)

    loaded = load(opened, args.backend, args.precision, args.threads, compiling)
    set_threads(args.threads)
    return loaded


def show_compiling(done: int, total: int) -> None:
    """The line that says why the first run takes longer."""
    start, end = ("\r", "" if done + 1 < total else "\n") if sys.stderr.isatty() else ("", "\n")
    if sys.stderr.isatty() or done == 1:
        print(f"{start}compiling kernels (first run) {done + 1}/{total}", end=end, file=sys.stderr, flush=True)


def open_spelling(checkpoint: Checkpoint, say: Callable[[str], None] = note) -> Tokens | None:
    """What spells ids out, for a prompt that came as ids; None, and it is said, where nothing can."""
    try:
        v = checkpoint.vocabulary()
    except BadInput as error:
        say(f"the tokenizer can not be read, ids are not spelled out: {error}")
        return None
    return None if v is None else spelling_of(checkpoint, v)


def texts(ids: Sequence[int], spelling: Tokens | None) -> list[str]:
    """Each token's text; its id where nothing spells it."""
    return [str(i) if spelling is None else spelling.text_of(i) for i in ids]


def open_tokenizer(
    checkpoint: Checkpoint, tools: bool = False, say: Callable[[str], None] = note
) -> tuple[Tokenizer, str | None]:
    """The file's own tokenizer and chat template. Raises BadInput if the file has no tokenizer."""
    vocabulary = vocabulary_of(checkpoint)
    for line in vocabulary.notes:
        say(f"{checkpoint.path}: {line}")
    return tokenizer_of(checkpoint, vocabulary), vocabulary.template(tools)
