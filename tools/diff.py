"""engine diff: two dumps, two stage files, or the weights of two models, side by side."""

from __future__ import annotations

import argparse
import csv
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..trace.diff import TOLERANCE, TOP, Diff, diff
from ..trace.pair import Known
from ..trace.stages import of_pieces
from .beside_answer import check_place, write_page
from .diff_text import lines_of
from .load import Once, is_model, open_model, open_spelling, texts
from .source import KINDS, add_source_arguments, asked
from .terminal import json_text, on_stderr, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares B with the reference A: two dumps of any engines, two stage files, or with --weights two model\n"
        "files. Exit status 0: within tolerance; 1: beyond; 2: not comparable.\n" + KINDS
    )
    parser.epilog = """examples:
  engine diff reference-trace candidate-trace
  engine diff reference-trace sglang-dump/ --row 2
  engine diff hf.safetensors vllm.pt -m model.gguf
  engine diff a/layer-0/attention.bin b/layer-0/attention.bin --top 20
  engine diff a b --tolerance 1e-5 --json
  engine diff a b --html report.html -m model.gguf
  engine diff --weights model.gguf model.apr"""
    parser.add_argument("a", metavar="A", help="the reference")
    parser.add_argument("b", metavar="B", help="what is held against it")
    parser.add_argument("--weights", action="store_true", help="compare the tensors of two model files by meaning")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help=f"largest relative error, RMS(A - B) / RMS(A), of a stage that passes (default: {TOLERANCE:g})",
    )
    parser.add_argument("--top", type=int, metavar="K", help=f"largest differences to list of a stage (default: {TOP})")
    parser.add_argument(
        "-m",
        "--model",
        action=Once,
        metavar="MODEL",
        help="the model that was run, where no dump of ours says its sizes",
    )
    add_source_arguments(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object; NaN and infinity are null")
    form.add_argument("--csv", action="store_true", help="a line per stage")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write a report that opens in a browser, too; -m spells its tokens"
    )


def main(args: argparse.Namespace) -> int:
    if args.weights and args.html is not None:
        raise BadInput("--html is a page of stages; with --weights there is --json")
    if args.weights:
        return int(import_module(".diff_weights", __package__).main(args))
    if models := [name for name in (args.a, args.b) if is_model(name)]:
        what = (
            "are models; engine diff --weights compares them"
            if len(models) == 2
            else ("is a model; engine diff compares two dumps, engine verify judges a dump by a model")
        )
        raise BadInput(f"{' and '.join(models)} {what}")
    if args.html is not None:
        check_place(args.html)
    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    found = diff(args.a, args.b, tolerance=tolerance, top=TOP if args.top is None else args.top, known=known(args))
    for note in found.pairs.notes:
        on_stderr(f"note: {note}")
    if args.html is not None:
        from ..trace.verify.report.compared import page

        write_page(args.html, page(found, args.a, args.b, spelled(args.model, found.pairs.tokens)))
    if args.json:
        print(json_text(as_json(args, found)))
    elif args.csv:
        write_csv(found)
    else:
        print("\n".join(map(one_line, lines_of(args.a, args.b, found))))
    return 0 if found.within else 1


def known(args: argparse.Namespace) -> Known:
    """What opens dumps of other engines."""
    said = asked(args)
    if args.model is None:
        return Known(asked=said)
    from .load import open_weights

    w = open_weights(args.model).weights
    return Known(w.config.sizes, w.config.num_hidden_layers, of_pieces(w.pieces), said)


def spelled(model: str | None, tokens: tuple[int, ...] | None) -> list[str] | None:
    """The tokens' text, or their ids where no model says what they are."""
    if tokens is None or model is None:
        return None if tokens is None else [*map(str, tokens)]
    return texts(tokens, open_spelling(open_model(model)))


def as_json(args: argparse.Namespace, found: Diff) -> dict[str, Any]:
    first, pairs = found.first_beyond, found.pairs
    return {
        "schema": "qwenref-diff-v1",
        "a": args.a,
        "b": args.b,
        "measure": "relative = RMS(a - b) / RMS(a)",
        "tolerance": found.tolerance,
        "within": found.within,
        "tolerance_needed": found.tolerance_needed,
        "first_beyond": None if first is None else first.a.label,
        "only_a": pairs.only_a,
        "only_b": pairs.only_b,
        "fed_other_tokens": pairs.apart,
        "ignored": pairs.ignored,
        "stages": found.as_json(),
    }


def write_csv(found: Diff) -> None:
    rows = [{k: one_line(v) if isinstance(v, str) else v for k, v in row.items()} for row in found.rows]
    fields = list(dict.fromkeys(k for row in rows for k in row))
    writer = csv.DictWriter(sys.stdout, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
