"""engine verify: judges a dump stage by stage, and names the mistake."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..beside import Beside
from ..errors import BadInput
from ..judging import judged, opened_for
from ..trace.verify.report.text import lines_of
from .leftovers import written_down
from .load import add_model_argument, open_weights
from .progress import progress
from .source import KINDS, add_source_arguments, asked, say_notes
from .terminal import json_text, on_stderr, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Recomputes every stage of a dump in float64 from the dump's own inputs, finds what the engine computes with,\n"
        "and says of each stage whether that explains it. What is not explained is located and, if known, named.\n"
        + KINDS
    )
    parser.epilog = """exit status: 0 all that was judged is explained, 1 something is not, 2 nothing could be judged
examples:
  engine verify dump/ model.gguf
  engine verify dump.safetensors -m model.gguf --html report.html
  engine verify sglang-dump/ -m Qwen2.5-7B/ --row 2
  engine verify hooks.pt -m model.gguf --tokens 3838,374,220
  engine verify dump/ -m model-f16.gguf --against model-q4_k_m.gguf --json"""
    parser.add_argument("dump", metavar="DUMP", help="file or folder that holds the dump")
    add_model_argument(parser)
    add_source_arguments(parser)
    parser.add_argument("--against", metavar="MODEL2", help="a second model whose weights may explain a difference")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a report that opens in a browser, too")


def main(args: argparse.Namespace) -> int:
    if args.html is not None and not args.html.absolute().parent.is_dir():
        raise BadInput(f"{args.html}: no such folder")
    said = asked(args)
    model = open_weights(args.model)
    dump = opened_for(args.dump, model, said)
    say_notes(dump)
    against = open_weights(args.against) if args.against else None
    with progress("verify", len(dump.entries)) as done:
        result = judged(dump, model, against, done)
    if args.html is not None:
        write(args.html, result.html())
    if args.json:
        print(json_text(result.as_json(), indent=1))
    else:
        print("\n".join(map(one_line, lines_of(result))))
    if result.status == 2:
        on_stderr(f"engine verify: {args.dump}: nothing could be judged; the report says why")
    return result.status


def write(path: Path, text: str) -> None:
    """Beside its place, then moved there: whole or not at all."""
    try:
        with written_down(path), Beside(path, folder=False) as beside:
            beside.path.write_text(text, "utf-8", "backslashreplace")  # a file's name may be no text
            beside.move()
    except OSError as error:
        raise BadInput(f"{path}: cannot write the report: {error.strerror}") from None
