"""engine eval: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..beside import Beside
from ..engine.evaluate import Figures, Windows, evaluate, windows
from ..engine.files import Checkpoint
from ..engine.files.logits_file import LogitsFile, open_logits, scored, write_head
from ..engine.generate import check_ids
from ..engine.kernels import backend, check_precision
from ..engine.load import check_generates, load, set_threads, tokenizer_of, vocabulary_of
from ..errors import BadInput
from .beside_answer import check_place
from .leftovers import written_down
from .load import add_model_arguments, is_model, note, open_spelling, open_weights, rope_asked, show_compiling
from .part import Desk, Outcome
from .parts import adapter_everywhere, add_parts_arguments, everywhere, in_parts, outcomes, tell
from .progress import progress
from .prompt import text_of_file
from .table import Column
from .terminal import json_text, one_line

SHOWN = 10  # flips
CONTEXT = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Perplexity of a text, in windows of which the second half is scored, as llama-perplexity has
it. With --against or --logits also how far the model is from a base: the Kullback-Leibler divergence of their
predictions, how often their likeliest tokens agree, and each flip with its gap, in units of the noise between them."""
    parser.epilog = """exit status: 0 done, 2 bad input (of several texts or models: one of them)
examples:
  engine eval model-q4_k_m.gguf -f text.txt
  engine eval model-q4_0.gguf --against model-f16.gguf -f text.txt
  engine eval model-f16.gguf -f text.txt --save-logits base.dat
  engine eval model-q4_0.gguf --logits base.dat
  engine eval model-q4_0.gguf model-q8_0.gguf -f a.txt -f b.txt --workers 2
  engine eval models/*.gguf -f text.txt --scheduler tcp://10.0.0.1:8786"""
    add_model_arguments(parser, several=True)
    what = "a UTF-8 text, may be given again; of --logits the file's own ids are taken"
    parser.add_argument("-f", "--file", action="append", metavar="FILE", help=what)
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--against", metavar="MODEL2", help="the base, of the same vocabulary")
    base.add_argument("--logits", metavar="FILE", type=Path, help="the base's logits, as llama-perplexity saves them")
    parser.add_argument("--save-logits", metavar="FILE", type=Path, help="write this model's, for llama-perplexity too")
    parser.add_argument("-c", "--context", type=int, metavar="N", help="ids of a window (default: 512)")
    parser.add_argument("--windows", type=int, metavar="N", help="at most so many (default: all of the text's)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every flip")
    add_parts_arguments(parser, "texts or models")


def main(args: argparse.Namespace) -> int:
    check_arguments(args)
    models, texts = args.model or [None], args.file or [None]
    each = [argparse.Namespace(**vars(args) | {"model": m, "file": t}) for m in models for t in texts]
    if in_parts(args, len(each)):
        return several(args, each)
    (alone,) = each
    found = measured(alone)
    report(alone, found)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises BadInput for arguments that exclude each other."""
    if not args.file and args.logits is None and len(args.model or []) > 1 and not is_model(args.model[-1]):
        text = args.model[-1]
        way = f"engine eval {args.model[0]} -f {text}"
        raise BadInput(f"{text}: a text is given with -f, as in {way} (what there is: engine eval --help)")
    if (not args.file) == (args.logits is None):
        raise BadInput("give a text with -f, or a file of logits with --logits, which has its own")
    if args.logits is not None and args.context is not None:
        raise BadInput("--context: the windows are those of --logits")
    if args.windows is not None and args.windows < 1:
        raise BadInput(f"--windows {args.windows}: ask for at least 1")
    if args.save_logits is not None:
        check_place(args.save_logits)


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on a text."""

    checkpoint: Checkpoint
    cut: Windows
    figures: Figures


def measured(
    args: argparse.Namespace,
    desk: Desk | None = None,
    say: Callable[[str], None] = note,
    show: Callable[[str, int], AbstractContextManager[Callable[..., None]]] = progress,
    compiling: Callable[[int, int], None] = show_compiling,
) -> Measured:
    """One model on one text. desk: has the models of the part before. Raises BadInput."""
    desk = Desk() if desk is None else desk
    kept = None if args.logits is None else open_logits(args.logits)
    threads = args.threads or desk.threads
    how = args.model, rope_asked(args), args.lora, args.backend, args.precision, threads
    opened = desk.one("opened", how[:3], lambda: open_weights(*how[:3], say))
    check_generates(opened.checkpoint)
    cut = of_file(kept, args.windows) if kept else of_text(opened.checkpoint, args)
    c = opened.checkpoint.config
    if cut.context > c.context:
        raise BadInput(f"a window of {cut.context} does not fit the context of {c.context}")
    for ids in cut.ids:
        check_ids(ids, c)
    against = args.against, rope_asked(args), args.backend, args.precision, threads
    second = desk.one("second", against[:2], lambda: open_weights(*against[:2], say=say)) if args.against else None
    if second is not None:
        check_generates(second.checkpoint)
    model = desk.one("model", how, lambda: load(opened, args.backend, args.precision, threads, compiling))
    base = kept or (second and desk.one("base", against, lambda: load(second, *against[2:], compiling)))
    set_threads(threads)
    v = opened.checkpoint.vocabulary()
    bos = v.prefix[0] if v is not None and v.prefix else None
    total = len(cut.ids) * len(scored(cut.context))
    with ExitStack() as stack:
        file = beside = None
        if args.save_logits is not None:
            stack.enter_context(written_down(args.save_logits))
            beside = stack.enter_context(Beside(args.save_logits, folder=False))
            file = stack.enter_context(beside.path.open("wb"))
            write_head(file, cut.context, c.vocab_size, [i for ids in cut.ids for i in ids])
        found = evaluate(model, cut, base, bos, file, stack.enter_context(show("eval", total)))
        for used in (opened, second):
            if used is not None:
                used.checkpoint.check_unchanged()
        if file is not None and beside is not None:
            file.close()
            beside.move()
    if cut.left:
        say(f"{cut.left} ids at the text's end make no window, and are left out")
    return Measured(opened.checkpoint, cut, found)


# ---- several texts or models


@dataclass(frozen=True, slots=True)
class EvalPart:
    """A model on a text. args: the command's, with one of each, by names that mean the same elsewhere."""

    asked: dict[str, str]
    args: argparse.Namespace

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        notes: list[str] = []
        found = measured(
            self.args,
            desk,
            notes.append,
            lambda label, total: nullcontext(lambda so_far: done(so_far, total)),
            lambda so_far, total: None,
        )
        s = found.figures.summary()
        cells = [f"{s['perplexity']:.4f}", f"{s['perplexity_error']:.4f}"]
        if self.args.against or self.args.logits:
            cells += [f"{s['kl']:.6f}", f"{s['top1_agreement']:.2%}"]
        return Outcome(0, {"result": as_json(self.args, found)}, tuple(cells), tuple(notes))


def several(args: argparse.Namespace, each: Sequence[argparse.Namespace]) -> int:
    """A table of them, model by model: who computes one text after the other loads its model once."""
    if args.save_logits is not None:
        raise BadInput("--save-logits is of one text and one model")
    if args.threads is not None and (args.workers or args.scheduler):
        raise BadInput("--threads: workers share the cores, and those of a cluster have threads of their own")
    parts = []
    for one in each:
        asked = {"model": one.model or everywhere(None), "text": one.file or str(one.logits)}
        elsewhere = {
            "model": everywhere(one.model),
            "file": one.file and everywhere(one.file),
            "logits": one.logits and Path(everywhere(str(one.logits))),
            "against": one.against and everywhere(one.against),
            "lora": [adapter_everywhere(spec) for spec in one.lora],
        }
        parts.append(EvalPart(asked, argparse.Namespace(**vars(one) | elsewhere)))
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
    ops = backend(args.backend)
    for name in [*(args.model or [None]), *([args.against] if args.against else [])]:
        with suppress(BadInput, OSError):  # its part says so
            opened = open_weights(name, say=lambda line: None)
            ops.compile_kernels(opened.weights, args.precision, show_compiling)


def of_text(checkpoint: Checkpoint, args: argparse.Namespace) -> Windows:
    """The windows of -f. Control tokens in it are text."""
    v = vocabulary_of(checkpoint)
    ids = [*v.prefix, *tokenizer_of(checkpoint, v).encode(text_of_file(args.file))]
    return windows(ids, CONTEXT if args.context is None else args.context, args.windows)


def of_file(kept: LogitsFile, most: int | None) -> Windows:
    return windows(kept.ids, kept.context, most)


def as_json(args: argparse.Namespace, found: Measured) -> dict[str, Any]:
    base, cut = args.against or args.logits, found.cut
    told: dict[str, Any] = {
        "schema": "qwenref-eval-v1",
        "model": str(found.checkpoint.path),
        "base": base and str(base),
    }
    told |= {"context": cut.context, "windows": len(cut.ids), "left_out": cut.left}
    return told | {"summary": found.figures.summary(), "flips": [asdict(f) for f in found.figures.flips]}


def report(args: argparse.Namespace, measured: Measured) -> None:
    if args.json:
        print(json_text(as_json(args, measured)))
        return
    checkpoint, cut, found = measured.checkpoint, measured.cut, measured.figures
    s = found.summary()
    print(f"{len(cut.ids)} windows of {cut.context} ids, {s['scored']} positions scored")
    print(f"perplexity      {s['perplexity']:>12.4f} +- {s['perplexity_error']:.4f}")
    if not (args.against or args.logits):
        return
    print(f"base's          {s['base_perplexity']:>12.4f} +- {s['base_perplexity_error']:.4f}")
    print(f"ln(ratio)       {s['log_ratio']:>12.6f} +- {s['log_ratio_error']:.6f}")
    spread = f"median {s['kl_median']:.6f}, 99 % {s['kl_99']:.6f}, max {s['kl_max']:.6f}"
    print(f"KL divergence   {s['kl']:>12.6f} +- {s['kl_error']:.6f}\n                {spread}")
    print(f"same top token  {s['top1_agreement']:>12.4%} +- {s['top1_agreement_error']:.4%}")
    change = f"+- {s['delta_p_error']:.4%}   RMS {s['delta_p_rms']:.4%}"
    print(f"change of p     {s['delta_p']:>12.4%} {change}")
    spelling = open_spelling(checkpoint)

    def spelled(i: int) -> str:
        return f"{i}" if spelling is None else f"{i} {spelling.text_of(i)!r}"

    for f in sorted(found.flips, key=lambda f: -f.gap)[:SHOWN]:
        noise = f"{f.gap / f.noise:.1f} times the noise there" if f.noise else "without noise"
        print(
            one_line(f"flip after id {f.token}: {spelled(f.base)} became {spelled(f.model)}, gap {f.gap:.4f}: {noise}")
        )
    if (more := len(found.flips) - SHOWN) > 0:
        print(f"and {more} flips more, with smaller gaps (--json has all)")
