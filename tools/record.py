"""engine trace: writes the stages of a forward pass to files, or says what is in them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from math import prod
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.aliases import resolve
from ..engine.files import Checkpoint
from ..engine.generate import check_prompt
from ..engine.load import check_generates
from ..engine.text.chat import Chat, prompt_ids
from ..engine.text.tokenizer import Tokens
from ..errors import BadInput
from ..facts import model_facts
from ..trace.plan import plan
from ..trace.stages import STAGES, of_pieces
from ..trace.store import check_target, phase_name
from ..tracing import check_room, origin, summed_up, written
from .beside_answer import check_place, write_page
from .leftovers import written_down
from .load import (
    Once,
    add_model_arguments,
    load_as_asked,
    open_spelling,
    open_tokenizer,
    open_weights,
    rope_asked,
    texts,
)
from .payload import as_json, as_text
from .prompt import add_chat_arguments, add_tokens_argument, given_tokens, read_prompt
from .terminal import json_text, on_stderr, one_line

PROMPT = "What is 2+2?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs a prompt and writes stages of the forward pass to APRT files (--save-tensor), or prints statistics of\n"
        "all of them (--payload). The pass is the one that `engine run` takes; looking changes no bit of it."
    )
    parser.epilog = f"""stages, in order of execution:
  {", ".join(s.name for s in STAGES)}
examples:
  engine trace model.gguf --save-tensor all
  engine trace model.gguf --save-tensor attn_softmax --save-tensor-layers 0..2
  engine trace model.gguf --payload
  engine trace model.gguf --html trace.html -p 'def f(n):'"""
    add_model_arguments(parser)
    parser.add_argument("--save-tensor", metavar="STAGES", help="comma list of stages, or `all`")
    parser.add_argument(
        "--save-tensor-dir", type=Path, metavar="DIR", help="where to (default: <model stem>-trace beside the model)"
    )
    parser.add_argument(
        "--save-tensor-layers",
        metavar="RANGE",
        default="all",
        help="0..4 (4 not included), 3, 0,5,27 or all (default: all)",
    )
    parser.add_argument("--payload", action="store_true", help="print statistics of every stage")
    parser.add_argument(
        "--positions",
        metavar="LIST",
        default="all",
        help="positions of the prompt to write: all (default), last, or as layers",
    )
    parser.add_argument(
        "--decode-steps",
        type=int,
        default=0,
        metavar="N",
        help="trace N greedy steps after the prompt too (default: 0)",
    )
    add_prompt_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write the statistics of every stage as a page for a browser"
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """-p/--prompt, -f/--file or --tokens; --chat and what belongs to it."""
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "-p", "--prompt", action=Once, metavar="TEXT", help=f"the prompt; - reads stdin (default: {PROMPT!r})"
    )
    prompt.add_argument(
        "-f", "--file", metavar="FILE", help="a UTF-8 file with the prompt; one newline at its end is dropped"
    )
    add_tokens_argument(prompt)
    add_chat_arguments(parser)


def default_directory(model: Path) -> Path:
    """<model stem>-trace beside the model, as aprender has it; of a folder, the folder's name. Of a model in the hub's
    cache, where nothing of ours belongs, it is NAME-trace where the user stands."""
    if cached := re.search(r"models--.*--([^/]+)/snapshots/[^/]+(?:/.*)?$", model.absolute().as_posix()):
        return Path(f"{model.stem if model.is_file() else cached[1]}-trace")
    path = model if model.name not in {"", ".."} else model.resolve()
    return path.with_name(f"{path.name if path.is_dir() else path.stem}-trace")


def best(logits_V: NDArray[np.floating], tokenizer: Tokens | None, count: int = 5) -> list[dict[str, Any]]:
    """The likeliest next tokens; equal logits in order of id."""
    order = np.argsort(-logits_V, kind="stable")[:count]
    return [
        {"id": int(i), "text": tokenizer.text_of(int(i)) if tokenizer else None, "logit": float(logits_V[i])}
        for i in order
    ]


def prompt_of(
    args: argparse.Namespace, ids: list[int] | None, checkpoint: Checkpoint
) -> tuple[list[int], Tokens | None]:
    """The prompt's ids, from the text unless --tokens gave them, and what spells ids out, if the model has that."""
    if ids is not None:
        return ids, open_spelling(checkpoint)
    prompt = read_prompt(args, PROMPT)
    tokenizer, template = open_tokenizer(checkpoint, isinstance(prompt, Chat) and prompt.tools is not None)
    return prompt_ids(tokenizer, template, prompt), tokenizer


def main(args: argparse.Namespace) -> int:
    if args.save_tensor is None and not args.payload and args.html is None:
        raise BadInput(
            "nothing asked for; give --save-tensor STAGES (or all) for files, --payload or --html FILE for statistics"
        )
    if args.html is not None:
        check_place(args.html)
    if args.save_tensor is None and (args.save_tensor_dir is not None or args.positions != "all"):
        raise BadInput("--save-tensor-dir and --positions say what to write; give --save-tensor STAGES too")
    ids = given_tokens(args)
    saved = shown = None
    if args.save_tensor is not None:
        saved = plan(args.save_tensor, args.save_tensor_layers, args.positions, args.decode_steps)
    if args.payload or args.html is not None:
        shown = plan("all", args.save_tensor_layers, "all", args.decode_steps)

    path = resolve(args.model)
    target = default_directory(path) if args.save_tensor_dir is None else args.save_tensor_dir
    if saved is not None:
        check_target(target)
    opened = open_weights(str(path), rope_asked(args), args.lora)
    checkpoint, c = opened.checkpoint, opened.checkpoint.config
    if args.decode_steps:
        check_generates(checkpoint)
    has = of_pieces(opened.weights.pieces)
    saved, shown = (p and p.within(has) for p in (saved, shown))
    for p in (saved, shown):
        if p is not None:
            p.check(c.num_hidden_layers)
    ids, tokenizer = prompt_of(args, ids, checkpoint)
    check_prompt(ids, c, args.decode_steps)
    if saved is not None:
        saved.check(c.num_hidden_layers, len(ids))
        check_room(saved, c, len(ids), target)

    facts = beside(model_facts, checkpoint) if saved is not None else None  # hashes while weights are packed and used
    model = load_as_asked(args, opened)
    if saved is not None and facts is not None:
        with written_down(target):
            made = written(model, ids, saved, target, facts.result, shown)
    else:
        assert shown is not None
        made = summed_up(model, ids, shown)
    broken = origin(model, ids, made)
    if broken is not None:
        on_stderr(f"note: {broken}")
    report: dict[str, Any] = {
        "model": str(checkpoint.path),
        "backend": args.backend,
        "precision": args.precision,
        "tokens": ids,
        "generated": made.generated,
        "next": [best(x, tokenizer) for x in made.logits] if opened.weights.lm_head is not None else [],
        "not_finite": broken,
    }
    if saved is not None:
        report |= {"directory": str(target), "files": [f | {"bytes": file_bytes(f)} for f in made.files]}
    if args.html is not None:
        from ..trace.verify.report.traced import Candidate, page

        name = f"{checkpoint.path}, {args.backend}, {args.precision}"
        chosen = [
            [Candidate(str(g["id"] if g["text"] is None else g["text"]), g["logit"]) for g in n] for n in report["next"]
        ]
        write_page(args.html, page(name, made.summaries, texts(ids, tokenizer), chosen))
    if args.json:
        if args.payload:
            report |= as_json(made.summaries)
        print(json_text(report))
        return 0
    if args.payload:
        print(as_text(made.summaries))
    print_files(report)
    print_tokens(report, tokenizer)
    return 0


def beside(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """The function's result, from a thread that nobody waits for at the end of the process."""
    result: Future[Any] = Future()

    def work() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    Thread(target=work, daemon=True).start()
    return result


def file_bytes(f: Mapping[str, Any]) -> int:
    return 12 + 4 * prod(f["shape"])


def print_files(report: Mapping[str, Any]) -> None:
    for f in report.get("files", []):
        print(one_line(f"{f['bytes']:>12,}  {' x '.join(map(str, f['shape'])):<16}  {f['path']}"))
    if files := report.get("files"):
        count = f"{len(files)} file{'s' * (len(files) > 1)}"
        print(one_line(f"{count}, {sum(f['bytes'] for f in files):,} bytes in {report['directory']}"))


def print_tokens(report: Mapping[str, Any], tokenizer: Tokens | None) -> None:
    ids, made = report["tokens"], report["generated"]
    print(f"tokens: {' '.join(map(str, ids))}" + (f", then {' '.join(map(str, made))}" if made else ""))
    for phase, choices in enumerate(report["next"]):
        spelled = "  ".join(
            f"{t['id']}{'' if t['text'] is None else ' ' + repr(t['text'])} "
            + ("not finite" if not np.isfinite(t["logit"]) else f"{t['logit']:.4f}")
            for t in choices
        )
        print(f"next after {phase_name(phase)}: {spelled}")
