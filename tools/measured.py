"""A model on a text: what is opened for that, the text cut into windows, and the figures of these."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from ..engine.evaluate import Figures, Windows, check_base, evaluate, windows
from ..engine.files import Checkpoint
from ..engine.files.logits_file import LogitsFile, open_logits, scored, write_head
from ..engine.generate import check_ids
from ..engine.load import Opened, check_generates, load, set_threads, tokenizer_of, vocabulary_of
from ..errors import BadInput
from .leftovers import whole_file
from .load import note, open_weights, rope_asked, show_compiling
from .part import Desk
from .progress import progress
from .prompt import text_of_file

CONTEXT = 512

Show = Callable[[str, int], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on a text."""

    checkpoint: Checkpoint
    cut: Windows
    figures: Figures


@dataclass(frozen=True, slots=True)
class Sides:
    """What is held against what: the model, and the base as a model, as a file of logits, or none. No weight is decoded
    yet."""

    opened: Opened
    second: Opened | None
    kept: LogitsFile | None

    def check_unchanged(self) -> None:
        """Raises BadInput if a file of either is not what was opened."""
        for used in (self.opened, self.second):
            if used is not None:
                used.checkpoint.check_unchanged()


def sides(args: argparse.Namespace, desk: Desk, say: Callable[[str], None] = note) -> Sides:
    """desk: has those of the part before. Raises BadInput."""
    kept = None if args.logits is None else desk.one("kept", args.logits, lambda: open_logits(args.logits))
    own, other = (args.model, rope_asked(args), args.lora), (args.against, rope_asked(args))
    opened = desk.one("opened", own, lambda: open_weights(*own, say))
    check_generates(opened.checkpoint)
    second = desk.one("second", other, lambda: open_weights(*other, say=say)) if args.against else None
    if second is not None:
        check_generates(second.checkpoint)
    return Sides(opened, second, kept)


def cut_for(args: argparse.Namespace, s: Sides) -> Windows:
    """The windows of the text, or of the file of logits. Raises BadInput for those that the models do not take."""
    c = s.opened.checkpoint.config
    cut = windows(s.kept.ids, s.kept.context, args.windows) if s.kept else of_text(s.opened.checkpoint, args)
    if cut.context > c.context:
        raise BadInput(f"a window of {cut.context} does not fit the context of {c.context}")
    for ids in cut.ids:
        check_ids(ids, c)
    check_base(s.opened.checkpoint, s.kept or (s.second and s.second.checkpoint))
    return cut


def of_text(checkpoint: Checkpoint, args: argparse.Namespace) -> Windows:
    """The windows of -f. Control tokens in it are text."""
    v = vocabulary_of(checkpoint)
    ids = [*v.prefix, *tokenizer_of(checkpoint, v).encode(text_of_file(args.file))]
    return windows(ids, CONTEXT if args.context is None else args.context, args.windows)


def bos_of(checkpoint: Checkpoint) -> int | None:
    """What the model puts before a prompt."""
    v = checkpoint.vocabulary()
    return v.prefix[0] if v is not None and v.prefix else None


def measured(
    args: argparse.Namespace,
    desk: Desk | None = None,
    say: Callable[[str], None] = note,
    show: Show = progress,
    compiling: Callable[[int, int], None] = show_compiling,
) -> Measured:
    """One model on one text. Raises BadInput."""
    desk = Desk() if desk is None else desk
    s = sides(args, desk, say)
    cut = cut_for(args, s)
    found = figures_of(args, s, cut, bos_of(s.opened.checkpoint), desk, show, compiling)
    say_left(cut, say)
    return Measured(s.opened.checkpoint, cut, found)


def say_left(cut: Windows, say: Callable[[str], None] = note) -> None:
    if cut.left:
        say(f"{cut.left} ids at the text's end make no window, and are left out")


def figures_of(
    args: argparse.Namespace,
    s: Sides,
    cut: Windows,
    bos: int | None,
    desk: Desk,
    show: Show,
    compiling: Callable[[int, int], None],
) -> Figures:
    """The figures of these windows, which may be some of a text's. Raises BadInput."""
    threads = args.threads or desk.threads
    how = args.backend, args.precision, threads
    own, other = (args.model, rope_asked(args), args.lora, how), (args.against, rope_asked(args), how)
    second, opened = s.second, s.opened
    model = desk.one("model", own, lambda: load(opened, *how, compiling))
    base = s.kept or (second and desk.one("base", other, lambda: load(second, *how, compiling)))
    set_threads(threads)
    with ExitStack() as stack:
        file = None
        if args.save_logits is not None:
            beside = stack.enter_context(whole_file(args.save_logits, "the logits"))
            file = stack.enter_context(beside.open("wb"))
            write_head(file, cut.context, opened.checkpoint.config.vocab_size, [i for ids in cut.ids for i in ids])
        total = len(cut.ids) * len(scored(cut.context))
        found = evaluate(model, cut, base, bos, file, stack.enter_context(show("eval", total)))
        s.check_unchanged()
    return found
