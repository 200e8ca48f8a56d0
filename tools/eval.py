"""engine eval: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..beside import Beside
from ..engine.evaluate import Figures, Windows, evaluate, windows
from ..engine.files import Checkpoint
from ..engine.files.logits_file import LogitsFile, open_logits, scored, write_head
from ..engine.load import load, tokenizer_of, vocabulary_of
from ..errors import BadInput
from .beside_answer import check_place
from .leftovers import written_down
from .load import add_model_arguments, load_as_asked, open_spelling, open_weights, rope_asked, show_compiling
from .progress import progress
from .prompt import text_of_file
from .terminal import json_text, on_stderr, one_line

SHOWN = 10  # flips
CONTEXT = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = """Perplexity of a text, in windows of which the second half is scored, as llama-perplexity has
it. With --against or --logits also how far the model is from a base: the Kullback-Leibler divergence of their
predictions, how often their likeliest tokens agree, and each flip with its gap, in units of the noise between them."""
    parser.epilog = """exit status: 0 done, 2 bad input
examples:
  engine eval model-q4_k_m.gguf -f text.txt
  engine eval model-q4_0.gguf --against model-f16.gguf -f text.txt
  engine eval model-f16.gguf -f text.txt --save-logits base.dat
  engine eval model-q4_0.gguf --logits base.dat"""
    add_model_arguments(parser)
    parser.add_argument("-f", "--file", metavar="FILE", help="a UTF-8 text; of --logits the file's own ids are taken")
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--against", metavar="MODEL2", help="the base, of the same vocabulary")
    base.add_argument("--logits", metavar="FILE", type=Path, help="the base's logits, as llama-perplexity saves them")
    parser.add_argument("--save-logits", metavar="FILE", type=Path, help="write this model's, for llama-perplexity too")
    parser.add_argument("-c", "--context", type=int, metavar="N", help="ids of a window (default: 512)")
    parser.add_argument("--windows", type=int, metavar="N", help="at most so many (default: all of the text's)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every flip")


def main(args: argparse.Namespace) -> int:
    if (args.file is None) == (args.logits is None):
        raise BadInput("give a text with -f, or a file of logits with --logits, which has its own")
    if args.logits is not None and args.context is not None:
        raise BadInput("--context: the windows are those of --logits")
    if args.windows is not None and args.windows < 1:
        raise BadInput(f"--windows {args.windows}: ask for at least 1")
    if args.save_logits is not None:
        check_place(args.save_logits)
    kept = None if args.logits is None else open_logits(args.logits)
    opened = open_weights(args.model, rope_asked(args), args.lora)
    cut = of_file(kept, args.windows) if kept else of_text(opened.checkpoint, args)
    c = opened.checkpoint.config
    if cut.context > c.context:
        raise BadInput(f"a window of {cut.context} does not fit the context of {c.context}")
    if (worst := max(i for ids in cut.ids for i in ids)) >= c.vocab_size:
        raise BadInput(f"token id {worst} is outside the vocabulary of {c.vocab_size}")
    second = open_weights(args.against, rope_asked(args)) if args.against else None
    model = load_as_asked(args, opened)
    base = kept or (second and load(second, args.backend, args.precision, args.threads, show_compiling))
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
        show = stack.enter_context(progress("eval", total))
        found = evaluate(model, cut, base, bos, file, show)
        for used in (opened, second):
            if used is not None:
                used.checkpoint.check_unchanged()
        if file is not None and beside is not None:
            file.close()
            beside.move()
    if cut.left:
        on_stderr(f"note: {cut.left} ids at the text's end make no window, and are left out")
    report(args, opened.checkpoint, cut, found)
    return 0


def of_text(checkpoint: Checkpoint, args: argparse.Namespace) -> Windows:
    """The windows of -f. Control tokens in it are text."""
    v = vocabulary_of(checkpoint)
    ids = [*v.prefix, *tokenizer_of(checkpoint, v).encode(text_of_file(args.file))]
    return windows(ids, CONTEXT if args.context is None else args.context, args.windows)


def of_file(kept: LogitsFile, most: int | None) -> Windows:
    return windows(kept.ids, kept.context, most)


def report(args: argparse.Namespace, checkpoint: Checkpoint, cut: Windows, found: Figures) -> None:
    s = found.summary()
    base = args.against or args.logits
    if args.json:
        told: dict[str, Any] = {"schema": "qwenref-eval-v1", "model": str(checkpoint.path), "base": base and str(base)}
        told |= {"context": cut.context, "windows": len(cut.ids), "left_out": cut.left}
        print(json_text(told | {"summary": s, "flips": [asdict(f) for f in found.flips]}))
        return
    print(f"{len(cut.ids)} windows of {cut.context} ids, {s['scored']} positions scored")
    print(f"perplexity      {s['perplexity']:>12.4f} +- {s['perplexity_error']:.4f}")
    if not base:
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
