"""engine verify: judges a dump stage by stage, and names the mistake."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cost import facts_of
from ..engine.files import Checkpoint
from ..engine.text.chat import Chat, prompt_ids
from ..engine.text.tokenizer import Tokens
from ..judging import judged, opened_for, with_cost
from .beside_answer import check_place, write_page
from .choice import add_choice_arguments, chosen
from .load import (
    Once,
    add_lora_argument,
    add_model_argument,
    add_rope_arguments,
    check_no_model,
    is_model,
    open_spelling,
    open_tokenizer,
    open_weights,
    rope_asked,
)
from .progress import progress
from .prompt import add_chat_arguments, check_chat, read_prompt
from .source import KINDS, add_source_arguments, asked, say_notes
from .terminal import json_text, on_stderr, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Recomputes every stage of a dump in float64 from the dump's own inputs, finds what the engine computes with,\n"
        "and says of each stage whether that explains it. What is not explained is located and, if known, named.\n"
        + KINDS
    )
    parser.epilog = """exit status: 0 all that was judged is explained, 1 something is not,
2 nothing could be judged

examples:
  engine verify dump/ model.gguf
  engine verify dump.safetensors -m model.gguf --html report.html
  engine verify sglang-dump/ -m Qwen2.5-7B/ --row 2
  engine verify hooks.pt -m model.gguf --tokens 3838,374,220
  engine verify dump/ -m model.gguf --stage attn_out --layer 0..4
  engine verify dump/ -m model.gguf --cost
  engine verify dump.pt -m model.gguf --prompt 'What is 2+2?' --chat
  engine verify dump/ -m model-f16.gguf --against model-q4_k_m.gguf --json"""
    parser.add_argument("dump", metavar="DUMP", help="file or folder that holds the dump")
    add_model_argument(parser)
    add_source_arguments(parser)
    add_rope_arguments(parser)
    add_lora_argument(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "-p", "--prompt", action=Once, metavar="TEXT", help="what was asked: are the ids that were run its ids?"
    )
    text.add_argument("-f", "--file", metavar="FILE", help="the same, from a UTF-8 file")
    add_chat_arguments(parser)
    parser.add_argument("--against", metavar="MODEL2", help="a second model whose weights may explain a difference")
    add_choice_arguments(parser)
    parser.add_argument(
        "--cost",
        action="store_true",
        help="run the tokens in float64 with each fact of the engine's arithmetic alone: what it costs",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a report that opens in a browser, too")


def main(args: argparse.Namespace) -> int:
    if args.html is not None:
        check_place(args.html)
    if is_model(args.dump) and args.model is not None and not is_model(args.model):
        on_stderr(f"note: taken as engine verify DUMP MODEL: {args.model} is the dump, {args.dump} the model")
        args.dump, args.model = args.model, args.dump
    check_no_model(args.dump, "engine verify DUMP MODEL judges a dump by it")
    said, told = asked(args), chosen(args)
    check_chat(args)
    model = open_weights(args.model, rope_asked(args), args.lora)
    wanted = ids_of(args, model.checkpoint)
    dump = opened_for(args.dump, model, said)
    say_notes(dump)
    told.check(args.dump, [(e.stage.name, e.layer, e.phase) for e in dump.entries])
    against = open_weights(args.against, rope_asked(args)) if args.against else None
    with progress("verify", len(dump.entries)) as done:
        result = judged(dump, model, against, done)
    if args.cost:
        with progress("cost", len(list(facts_of(result.recipe)))) as done:
            result = with_cost(result, model, done)
    result = told.of(result)
    if args.html is not None:
        write_page(args.html, result.html())
    apart = None if wanted is None else difference(wanted, result.tokens, open_spelling(model.checkpoint))
    if args.json:
        prompt = {} if wanted is None else {"prompt": {"tokens": wanted, "difference": apart}}
        print(json_text(result.as_json() | prompt, indent=1))
    else:
        if wanted is not None:
            print(one_line(apart or f"The ids that were run are those of the prompt, {len(wanted)} of them."))
        print("\n".join(map(one_line, result.lines())))
    if result.status == 2:
        on_stderr(f"engine verify: {args.dump}: nothing could be judged; the report says why")
    return result.status or int(apart is not None)


def ids_of(args: argparse.Namespace, checkpoint: Checkpoint) -> list[int] | None:
    """The ids of the prompt that was given, by the model's own tokenizer and template; None if none was."""
    if args.prompt is None and args.file is None and not args.chat:
        return None
    prompt = read_prompt(args)
    tokenizer, template = open_tokenizer(checkpoint, isinstance(prompt, Chat) and prompt.tools is not None)
    return prompt_ids(tokenizer, template, prompt)


def difference(wanted: list[int], held: Sequence[int] | None, spelling: Tokens | None) -> str | None:
    """Where the ids that were run leave those of the prompt; None if they begin with all of them."""
    if held is None:
        return "The dump does not say which ids were run, so that they cannot be compared with the prompt's."

    def spelled(ids: Sequence[int], at: int) -> str:
        if at >= len(ids):
            return "nothing"
        return f"{ids[at]}" + ("" if spelling is None else f" {spelling.text_of(ids[at])!r}")

    at = next((i for i, (a, b) in enumerate(zip(wanted, held, strict=False)) if a != b), min(len(wanted), len(held)))
    if at == len(wanted):
        return None
    ids = f"the prompt has {len(wanted)} ids, and {len(held)} were run"
    return f"Other ids than the prompt's: {ids}; at {at} it has {spelled(wanted, at)}, and {spelled(held, at)} was run."
