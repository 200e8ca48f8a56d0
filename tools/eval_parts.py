"""engine eval in parts, here, by workers or on a cluster: of several texts and models each pair is a part, of one text
and one model each few windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..engine.evaluate import Figures, Windows
from ..engine.files.logits_file import scored
from ..engine.kernels import backend, check_precision
from ..engine.load import Opened
from ..errors import BadInput
from .load import open_weights, show_compiling
from .measured import Measured, Show, Sides, bos_of, cut_for, figures_of, measured, say_left, sides
from .part import Desk, Outcome
from .parts import adapter_everywhere, everywhere, outcomes, tell
from .table import Column
from .terminal import one_line

MOST = 256  # parts of a text: enough for workers of different speed, and each worth its way


def check_shared(args: argparse.Namespace, count: int) -> None:
    """Raises BadInput for what several processes do not do for each other. count: of pairs of a model and a text."""
    if args.save_logits is not None:
        one = "one text and one model" if count > 1 else "one process; leave --workers and --scheduler away"
        raise BadInput(f"--save-logits is of {one}")
    for name in args.file or []:
        if count > 1 and Path(name).exists() and not (Path(name).is_file() or Path(name).is_dir()):
            raise BadInput(f"{name}: can be read once, and is asked for by several; write it to a file first")
    if args.threads is not None and (args.workers or args.scheduler):
        raise BadInput("--threads: workers share the cores, and those of a cluster have threads of their own")


def elsewhere(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments, by names that mean the same to a process that stands elsewhere."""
    named = {
        "model": everywhere(args.model),
        "file": args.file and everywhere(args.file),
        "logits": args.logits and Path(everywhere(str(args.logits))),
        "against": args.against and everywhere(args.against),
        "lora": [adapter_everywhere(spec) for spec in args.lora],
    }
    return argparse.Namespace(**vars(args) | named)


def told_to(done: Callable[[int, int], None]) -> Show:
    """Progress that is told to whoever waits for the part."""
    return lambda label, total: nullcontext(lambda so_far: done(so_far, total))


def silent(so_far: int, of: int) -> None:
    """What is said of kernels that are compiled, where nobody reads it."""


# ---- several texts or models


@dataclass(frozen=True, slots=True)
class EvalPart:
    """A model on a text. args: the command's, with one of each, by names that mean the same elsewhere."""

    asked: dict[str, str]
    args: argparse.Namespace

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        notes: list[str] = []
        found = measured(self.args, desk, notes.append, told_to(done), silent)
        s = found.figures.summary()
        cells = [f"{s['perplexity']:.4f}", f"{s['perplexity_error']:.4f}"]
        if self.args.against or self.args.logits:
            cells += [f"{s['kl']:.6f}", f"{s['top1_agreement']:.2%}"]
        return Outcome(0, {"result": as_json(self.args, found)}, tuple(cells), tuple(notes))


def several(args: argparse.Namespace, each: Sequence[argparse.Namespace]) -> int:
    """A table of them, model by model: who computes one text after the other loads its model once."""
    parts = []
    for one in each:
        asked = {"model": one.model or everywhere(None), "text": one.file or str(one.logits)}
        parts.append(EvalPart(asked, elsewhere(one)))
    if args.scheduler is None:
        check_precision(backend(args.backend), args.backend, args.precision)
    if args.workers:
        compile_first(args)
    columns = [Column("perplexity"), Column("+-")]
    if base := args.against or args.logits:
        columns += [Column("KL"), Column("same top")]
        if not args.json:
            print(one_line(f"base: {base}"))
    return tell("eval", parts, outcomes("eval", parts, args), columns, args.json)


def compile_first(args: argparse.Namespace) -> None:
    """Makes the models' kernels ready with all cores: the workers would each compile all of them, with fewer."""
    for name in [*(args.model or [None]), *([args.against] if args.against else [])]:
        with suppress(BadInput, OSError):  # its part says so
            compile_kernels(args, open_weights(name, say=lambda line: None))


def compile_kernels(args: argparse.Namespace, opened: Opened) -> None:
    backend(args.backend).compile_kernels(opened.weights, args.precision, show_compiling)


def as_json(args: argparse.Namespace, found: Measured) -> dict[str, Any]:
    base, cut = args.against or args.logits, found.cut
    told: dict[str, Any] = {
        "schema": "qwenref-eval-v1",
        "model": str(found.checkpoint.path),
        "base": base and str(base),
    }
    told |= {"context": cut.context, "windows": len(cut.ids), "left_out": cut.left}
    return told | {"summary": found.figures.summary(), "flips": [asdict(f) for f in found.figures.flips]}


# ---- one text and one model


@dataclass(frozen=True, slots=True)
class WindowsPart:
    """Some windows of a text, with their ids: whoever computes them needs neither text nor tokenizer."""

    asked: dict[str, str]
    args: argparse.Namespace
    cut: Windows
    bos: int | None

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        s = sides(self.args, desk, lambda line: None)
        return Outcome(0, {"result": figures_of(self.args, s, self.cut, self.bos, desk, told_to(done), silent)})


def shared_out(args: argparse.Namespace) -> Measured:
    """One model on one text, whose windows are shared out. They are put together in their order, so that each figure
    has the bits that one process finds.

    Raises BadInput, of several failures with the one that one process would have come to.
    """
    desk = Desk()
    s = sides(args, desk)
    before = stamps(s)
    cut = cut_for(args, s)
    if args.scheduler is None:
        check_precision(backend(args.backend), args.backend, args.precision)
        for opened in (s.opened, s.second):
            if opened is not None:
                compile_kernels(args, opened)
    bos = bos_of(s.opened.checkpoint)
    size, count = -(-len(cut.ids) // MOST), len(scored(cut.context))
    parts = [
        WindowsPart({"windows": f"{at + 1}-{at + len(some.ids)}"}, elsewhere(args), some, bos)
        for at, some in ((at, cut.part(at, at + size)) for at in range(0, len(cut.ids), size))
    ]
    figures = Figures()
    found = outcomes("eval", parts, args, [len(p.cut.ids) * count for p in parts])
    for part, outcome in zip(parts, found, strict=False):  # none behind the first that failed
        if "error" in outcome.told:
            raise BadInput(f"windows {part.asked['windows']}: {outcome.told['error']}")
        figures.extend(outcome.told["result"])
    check_same(s, before)
    say_left(cut)
    return Measured(s.opened.checkpoint, cut, figures)


def stamps(s: Sides) -> dict[Path, tuple[int, ...] | None]:
    """What tells each file of both sides from another by the same name; None for one that is not there."""
    found: dict[Path, tuple[int, ...] | None] = {}
    models = [used.checkpoint.files for used in (s.opened, s.second) if used is not None]
    for path in (*(path for files in models for path in files), *([s.kept.path] if s.kept else [])):
        try:
            now = path.stat()
            found[path] = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns
        except OSError:
            found[path] = None
    return found


def check_same(s: Sides, before: Mapping[Path, tuple[int, ...] | None]) -> None:
    """Raises BadInput if a file has not been the same all the time: workers may have opened others."""
    s.check_unchanged()
    for path, now in stamps(s).items():
        if now != before[path]:
            raise BadInput(f"{path}: was replaced while it was being read; nothing of the result is kept")
