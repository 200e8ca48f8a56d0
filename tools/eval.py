"""engine eval: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import BadInput
from .beside_answer import check_place
from .eval_parts import as_json, check_shared, several, shared_out
from .load import add_model_arguments, is_model, open_spelling
from .measured import Measured, measured
from .parts import add_parts_arguments, in_parts
from .terminal import json_text, one_line

SHOWN = 10  # flips


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
  engine eval model-q4_0.gguf --against model-f16.gguf -f long.txt --workers 4
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
    add_parts_arguments(parser, "several texts or models: one table; one text: its windows are shared out")


def main(args: argparse.Namespace) -> int:
    check_arguments(args)
    models, texts = args.model or [None], args.file or [None]
    each = [argparse.Namespace(**vars(args) | {"model": m, "file": t}) for m in models for t in texts]
    shared = in_parts(args, len(each))
    if shared:
        check_shared(args, len(each))
    if len(each) > 1:
        return several(args, each)
    (alone,) = each
    report(alone, shared_out(alone) if shared else measured(alone))
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
