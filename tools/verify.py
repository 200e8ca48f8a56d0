"""engine verify: judges a dump stage by stage, and names the mistake."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cost import facts_of
from ..engine.files import Checkpoint
from ..engine.text.chat import Chat, prompt_ids
from ..engine.text.tokenizer import Tokens
from ..errors import BadInput
from ..judging import judged, opened_for, with_cost
from ..trace.sources import Asked
from ..trace.verify.finding import UNEXPLAINED, UNJUDGED
from ..trace.verify.report.report import Report
from ..trace.verify.report.text import in_short
from .beside_answer import check_place, write_page
from .choice import Choice, add_choice_arguments, chosen
from .load import (
    Once,
    add_lora_argument,
    add_model_argument,
    add_rope_arguments,
    check_no_model,
    is_model,
    note,
    open_spelling,
    open_tokenizer,
    open_weights,
    rope_asked,
)
from .part import Desk, Outcome
from .parts import adapter_everywhere, add_parts_arguments, everywhere, in_parts, outcomes, tell
from .progress import progress
from .prompt import add_chat_arguments, check_chat, read_prompt
from .source import KINDS, add_source_arguments, asked, say_notes
from .table import Column
from .terminal import json_text, on_stderr, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Recomputes every stage of a dump in float64 from the dump's own inputs, finds what the engine computes with,\n"
        "and says of each stage whether that explains it. What is not explained is located and, if known, named.\n"
        + KINDS
    )
    parser.epilog = """exit status: 0 all that was judged is explained, 1 something is not,
2 nothing could be judged; of several dumps the worst of theirs

examples:
  engine verify dump/ model.gguf
  engine verify dump.safetensors -m model.gguf --html report.html
  engine verify sglang-dump/ -m Qwen2.5-7B/ --row 2
  engine verify hooks.pt -m model.gguf --tokens 3838,374,220
  engine verify dump/ -m model.gguf --stage attn_out --layer 0..4
  engine verify dump/ -m model.gguf --cost
  engine verify dump.pt -m model.gguf --prompt 'What is 2+2?' --chat
  engine verify dump/ -m model-f16.gguf --against model-q4_k_m.gguf --json
  engine verify run-1/ run-2/ run-3/ -m model.gguf --workers 2"""
    parser.add_argument("dump", nargs="+", metavar="DUMP", help="file or folder that holds a dump; of several a table")
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
    add_parts_arguments(parser, "several dumps: one table")


def main(args: argparse.Namespace) -> int:
    if args.html is not None:
        check_place(args.html)
    dumps, args.model = told_apart(args.dump, args.model)
    for dump in dumps:
        check_no_model(dump, "engine verify DUMP MODEL judges a dump by it")
    said, told = asked(args), chosen(args)
    check_chat(args)
    if in_parts(args, len(dumps)):
        return several(args, dumps, said, told)
    (args.dump,) = dumps
    one = Question(args, said, told, prompt_of(args))
    answer = one.answered()
    result, wanted, apart = answer.report, answer.wanted, answer.apart
    if args.html is not None:
        write_page(args.html, result.html())
    if args.json:
        print(json_text(answer.as_json(), indent=1))
    else:
        if wanted is not None:
            print(one_line(apart or f"The ids that were run are those of the prompt, {len(wanted)} of them."))
        print("\n".join(map(one_line, result.lines())))
    if result.status == 2:
        on_stderr(f"engine verify: {args.dump}: nothing could be judged; the report says why")
    return answer.status


def told_apart(words: list[str], model: str | None) -> tuple[list[str], str | None]:
    """The dumps, and the model, which is the last of several words if no -m gives it. Raises BadInput."""
    if model is not None and len(words) > 1 and is_model(words[-1]):
        raise BadInput(f"argument -m/--model: not allowed with argument MODEL, which is {words[-1]}")
    if model is None and len(words) > 1:
        *words, model = words
    if model is not None and is_model(words[0]) and not is_model(model):
        given, model, words = model, words[0], words[1:]
        words = [*words, given]
        is_dump = "is the dump" if len(words) == 1 else "are the dumps"
        on_stderr(f"note: taken as engine verify DUMP MODEL: {', '.join(words)} {is_dump}, {model} the model")
    return words, model


@dataclass(frozen=True, slots=True)
class Answer:
    """wanted: the ids of the prompt that was given. apart: where the ids that were run leave them."""

    report: Report
    wanted: list[int] | None
    apart: str | None

    @property
    def status(self) -> int:
        return self.report.status or int(self.apart is not None)

    def as_json(self) -> dict[str, Any]:
        prompt = {} if self.wanted is None else {"prompt": {"tokens": self.wanted, "difference": self.apart}}
        return self.report.as_json() | prompt


@dataclass(frozen=True, slots=True)
class Question:
    """A dump, and what is asked of it. args: the command's, with one dump. prompt: that it may have been run on."""

    args: argparse.Namespace
    said: Asked
    told: Choice
    prompt: str | Chat | None

    def answered(
        self,
        desk: Desk | None = None,
        say: Callable[[str], None] = note,
        show: Callable[[str, int], AbstractContextManager[Callable[..., None]]] = progress,
    ) -> Answer:
        """desk: has the models of the dump before. Raises BadInput."""
        args, desk = self.args, Desk() if desk is None else desk
        how = args.model, rope_asked(args), args.lora
        model = desk.one("opened", how, lambda: open_weights(*how, say))
        wanted = None if self.prompt is None else ids_of(self.prompt, model.checkpoint, say)
        dump = opened_for(args.dump, model, self.said)
        say_notes(dump, say=say)
        self.told.check(args.dump, [(e.stage.name, e.layer, e.phase) for e in dump.entries])
        against = None
        if args.against:
            other = args.against, rope_asked(args)
            against = desk.one("second", other, lambda: open_weights(*other, say=say))
        with show("verify", len(dump.entries)) as done:
            result = judged(dump, model, against, done)
        if args.cost:
            with show("cost", len(list(facts_of(result.recipe)))) as done:
                result = with_cost(result, model, done)
        result = self.told.of(result)
        apart = None if wanted is None else difference(wanted, result.tokens, open_spelling(model.checkpoint, say))
        return Answer(result, wanted, apart)


# ---- several dumps

COLUMNS = [Column("judged"), Column("unexplained"), Column("what", text=True)]


@dataclass(frozen=True, slots=True)
class VerifyPart:
    """A dump of several, called by names that mean the same elsewhere."""

    asked: dict[str, str]
    question: Question

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        notes: list[str] = []

        def show(label: str, total: int) -> AbstractContextManager[Callable[..., None]]:
            return nullcontext(lambda so_far: done(so_far, total))

        answer = self.question.answered(desk, notes.append, show)
        found = answer.report.findings
        unexplained = sum(f.verdict == UNEXPLAINED for f in found)
        count = len(found) - sum(f.verdict == UNJUDGED for f in found)
        what = in_short(answer.report) if answer.apart is None or unexplained else answer.apart
        return Outcome(answer.status, {"result": answer.as_json()}, (f"{count}", f"{unexplained}", what), tuple(notes))


def several(args: argparse.Namespace, dumps: Sequence[str], said: Asked, told: Choice) -> int:
    """A table of them, each judged by the one model."""
    if args.html is not None:
        raise BadInput("--html is the page of one dump; ask for it with that dump alone")
    prompt = prompt_of(args)
    elsewhere = {
        "model": everywhere(args.model),
        "against": args.against and everywhere(args.against),
        "lora": [adapter_everywhere(spec) for spec in args.lora],
    }
    parts = []
    for dump in dumps:
        one = argparse.Namespace(**vars(args) | elsewhere | {"dump": everywhere(dump)})
        parts.append(VerifyPart({"dump": dump}, Question(one, said, told, prompt)))
    return tell("verify", parts, outcomes("verify", parts, args), COLUMNS, args.json)


def prompt_of(args: argparse.Namespace) -> str | Chat | None:
    """The prompt that was given; None if none was."""
    return None if args.prompt is None and args.file is None and not args.chat else read_prompt(args)


def ids_of(prompt: str | Chat, checkpoint: Checkpoint, say: Callable[[str], None] = note) -> list[int]:
    """The ids of the prompt, by the model's own tokenizer and template."""
    tokenizer, template = open_tokenizer(checkpoint, isinstance(prompt, Chat) and prompt.tools is not None, say)
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
