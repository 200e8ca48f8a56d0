"""The texts of a command that makes something of each: words, lines of a file, ids, chats; and their ids."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

from ..engine.files import Checkpoint
from ..engine.generate import check_prompt
from ..engine.text.chat import prompt_ids
from ..errors import BadInput
from .load import MODEL_HELP, Once, is_model, open_tokenizer
from .prompt import parse_tokens, read_prompt, text_of_file


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL TEXT [TEXT...], -m, -f and --tokens."""
    parser.add_argument("words", nargs="*", metavar="MODEL|TEXT", help="a model (here or with -m), then texts")
    parser.add_argument("-m", "--model", action=Once, metavar="MODEL", help=MODEL_HELP)
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("-f", "--file", action=Once, metavar="FILE", help="a UTF-8 file with a text in each line")
    texts.add_argument(
        "--tokens", action="append", metavar="IDS", help="a text as ids: 1,2,3 or @FILE; once for each text"
    )


def take_model(args: argparse.Namespace) -> None:
    """The first word is the model, unless -m names it. Raises BadInput."""
    if args.model is None and args.words:
        args.model = args.words.pop(0)
    elif args.words and is_model(args.words[0]):
        raise BadInput(f"{args.words[0]} and -m {args.model} are two models; give one")
    given = [name for name in ("words", "file", "tokens", "messages") if getattr(args, name, None)]
    if len(given) != 1:
        named = " and ".join({"words": "words"}.get(name, f"--{name}") for name in given)
        raise BadInput(f"texts come from {named}; give one of them" if given else "no text; give MODEL and a TEXT")


def ids_of_texts(args: argparse.Namespace, checkpoint: Checkpoint) -> list[list[int]]:
    """The ids of each text. Raises BadInput that says which text does not fit."""
    found = list(_ids(args, checkpoint))
    for number, ids in enumerate(found):
        try:
            check_prompt(ids, checkpoint.config)
        except BadInput as error:
            raise BadInput(f"text {number + 1} of {len(found)}: {error}") from None
    return found


def _ids(args: argparse.Namespace, checkpoint: Checkpoint) -> Iterator[list[int]]:
    if args.tokens:
        yield from map(parse_tokens, args.tokens)
        return
    tokenizer, template = open_tokenizer(checkpoint)
    if messages := getattr(args, "messages", None):
        for name in messages:
            told = argparse.Namespace(
                chat=True, messages=name, date=None, tools=None, documents=None, template_arg=None
            )
            chat = read_prompt(told)
            assert not isinstance(chat, str)
            yield prompt_ids(tokenizer, template, replace(chat, add_generation_prompt=False))
        return
    texts = args.words or text_of_file(args.file).splitlines()
    if not texts:
        raise BadInput(f"{args.file} has no line")
    for number, text in enumerate(texts):
        if not text or any("\ud800" <= c <= "\udfff" for c in text):
            wrong = "is not valid UTF-8" if text else "is empty; give at least one character"
            raise BadInput(f"text {number + 1} of {len(texts)} {wrong}")
        yield prompt_ids(tokenizer, template, text)
