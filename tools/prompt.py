"""The prompt: its text or its chat from where the user has it, and its ids, which a process of its own can find.

A vocabulary of 150,000 tokens and their merges takes 0.4 s of Python and 90 MB. With `TokenizerProcess` they pass while
the first process imports Numba and packs the weights, instead of taking turns with it at one interpreter lock.
"""

from __future__ import annotations

import argparse
import pickle
import re
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..child import end_with_parent, own_process
from ..engine.text.chat import Chat, Renderer, prompt_ids
from ..errors import BadInput
from .signals import end_at_a_cut_file

if TYPE_CHECKING:  # NumPy comes with it; a process is started before
    from ..engine.text.tokenizer import Tokens

# What --chat needs to have any meaning: destination, flag.
CHAT_FLAGS = {
    "system": "--system",
    "messages": "--messages",
    "tools": "--tools",
    "documents": "--documents",
    "template_arg": "--template-arg",
    "date": "--date",
}


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """--chat, and what else its template is given."""
    chat = parser.add_argument_group("chat")
    chat.add_argument("--chat", action="store_true", help="wrap the prompt in the model's own chat template")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument(
        "--messages", metavar="FILE", help="JSON list of the chat's messages, in place of a prompt: role, content ..."
    )
    chat.add_argument("--tools", metavar="FILE", help="JSON list of tools that the model may call, as JSON schemas")
    chat.add_argument("--documents", metavar="FILE", help="JSON list of documents to answer from: title, text")
    chat.add_argument(
        "--template-arg",
        action="append",
        metavar="KEY=JSON",
        help="a variable of the template, as in enable_thinking=false; once for each",
    )
    chat.add_argument(
        "--date", metavar="DATE", help="what the template takes for today, as in 2026-01-31 (default: now)"
    )


def check_chat(args: argparse.Namespace) -> None:
    """Raises BadInput for arguments that exclude each other."""
    if not args.chat:
        for name, flag in CHAT_FLAGS.items():
            if getattr(args, name) is not None:
                raise BadInput(f"{flag} is part of a chat; give --chat too")
    if args.messages is not None:
        for name in ("prompt", "file", "system"):
            if getattr(args, name) is not None:
                raise BadInput(f"--messages is the whole chat; put --{name}'s text into it, or leave one of them away")


def read_prompt(args: argparse.Namespace, default: str | None = None) -> str | Chat:
    """The prompt's text, with --chat the chat. Raises BadInput where there is none, or where it is not what it must be.

    default: the text where neither argument nor pipe gives one.
    """
    if not args.chat:
        return _read_text(args, default)
    if args.messages is not None:
        messages = _read_json(args.messages, "--messages")
    else:
        messages = [] if args.system is None else [{"role": "system", "content": args.system}]
        messages.append({"role": "user", "content": _read_text(args, default)})
    try:
        now = None if args.date is None else datetime.fromisoformat(args.date)
    except ValueError:
        raise BadInput(f"--date {args.date!r} is no date; write it as 2026-01-31 or 2026-01-31T12:00") from None
    tools, documents = (
        None if getattr(args, name) is None else _read_json(getattr(args, name), f"--{name}")
        for name in ("tools", "documents")
    )
    arguments: dict[str, Any] = {}
    for said in args.template_arg or []:
        key, value = _template_arg(said)
        if key in arguments:
            raise BadInput(f"--template-arg {key} is given twice")
        arguments[key] = value
    return Chat(messages, tools, documents, arguments, now=now)


def _template_arg(said: str) -> tuple[str, Any]:
    from ..engine.files.strict_json import parse

    key, equals, value = said.partition("=")
    if not (equals and key.isidentifier()):
        raise BadInput(f"--template-arg {said!r:.80}: write KEY=JSON, as in enable_thinking=false")
    if key in ("messages", "tools", "documents"):
        raise BadInput(f"--template-arg {key}: give --{key} FILE")
    try:
        return key, parse(value.encode("utf-8", "surrogateescape"), f"--template-arg {key}")
    except BadInput as error:
        raise BadInput(f"{error} (a text needs its quotes: {key}='\"text\"')") from None


def _read_json(name: str, flag: str) -> Any:
    from ..engine.files.strict_json import parse

    try:
        return parse(Path(name).read_bytes(), f"{flag} {name}")
    except OSError as error:
        raise BadInput(f"{flag} {name}: {error.strerror}") from None


def _read_text(args: argparse.Namespace, default: str | None) -> str:
    """The newline that ends a file or a pipe means nothing (`echo hi |`): it is dropped, as by llama.cpp's -f."""
    if args.prompt is not None and args.prompt != "-":
        text: str = args.prompt
    elif args.file is not None:
        text = text_of_file(args.file)
    elif args.prompt is None and default is not None:
        return default
    elif args.prompt == "-" or not sys.stdin.isatty():
        text = _utf8(sys.stdin.buffer.read(), "stdin").removesuffix("\n")
    else:
        raise BadInput("no prompt; give one with -p TEXT, -f FILE, or through a pipe")
    if not text:
        raise BadInput("the prompt is empty; give at least one character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BadInput("the prompt is not valid UTF-8")
    return text


def text_of_file(name: str) -> str:
    """A file's text, without one newline at its end. Raises BadInput."""
    try:
        return _utf8(Path(name).read_bytes(), name).removesuffix("\n")
    except OSError as error:
        way = "; /dev/stdin is the standard input" if name == "-" else ""
        raise BadInput(f"text file {name}: {error.strerror}{way}") from None


def add_tokens_argument(group: argparse._MutuallyExclusiveGroup) -> None:
    """--tokens, beside the other ways to give a prompt."""
    what = "the prompt as token ids: '1 2 3' or 1,2,3, or @FILE with such a list; needs no tokenizer"
    group.add_argument("--tokens", metavar="IDS", help=what)


def given_tokens(args: argparse.Namespace) -> list[int] | None:
    """The ids of --tokens, None where a text is the prompt. Raises BadInput for arguments that exclude each other."""
    if args.tokens is not None and args.chat:
        raise BadInput("--chat wraps text, --tokens are ids; give one of them")
    check_chat(args)
    return None if args.tokens is None else parse_tokens(args.tokens)


def parse_tokens(text: str) -> list[int]:
    """Token ids between commas or white space, or in the file behind an @. Raises BadInput that names what is none."""
    if text.startswith("@"):
        try:
            data = Path(text[1:]).read_bytes()
        except (OSError, ValueError) as error:
            raise BadInput(f"--tokens {text}: {getattr(error, 'strerror', None) or error}") from None
        text = _utf8(data, text[1:])
    words = [w for part in text.split(",") for w in part.split() or [""]]
    if bad := [w for w in words if not re.fullmatch(r"\d{1,9}", w, re.ASCII)]:
        raise BadInput(f"--tokens {text!r:.60}: {bad[0]!r:.40} is no token id; give numbers, as in 3838,374,220")
    return [int(w) for w in words]


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        what = "is UTF-16" if utf16 else f"is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}"
        raise BadInput(f"text from {name} {what}; save it as UTF-8") from None


class TokenizerProcess:
    """Finds the ids of a prompt while the caller does something else. A context: the process ends with it, and with the
    caller, whose end of a pipe it watches.

    model: path or alias.
    """

    def __init__(self, prompt: str | Chat, model: str | None) -> None:
        self._result: tuple[list[int], Tokens] | None = None
        self._process = subprocess.Popen(own_process(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        pickle.dump((prompt, model), self._process.stdin)
        self._process.stdin.flush()

    def result(self) -> tuple[list[int], Tokens]:
        """The prompt's ids, and what spells ids out. Raises BadInput as the tokenizer and the chat template do."""
        if self._result is None:
            assert self._process.stdout is not None
            try:
                answer = pickle.load(self._process.stdout)
            except EOFError:
                raise BadInput(f"the tokenizer's process ended with status {self._process.wait()}") from None
            if isinstance(answer, BadInput):
                raise answer
            self._result = answer
        return self._result

    def __enter__(self) -> TokenizerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it never read
                pipe.close()


def serve() -> None:
    """The process's side: a request on stdin, an answer on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the caller says what an interruption means
    try:
        prompt, model = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the caller is gone
        return
    end_with_parent()

    def answer_with(answer: object) -> None:
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody may wait for the answer any more
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.flush()

    end_at_a_cut_file(lambda line: answer_with(BadInput(line)))

    answer: BadInput | tuple[list[int], Tokens]
    try:
        with Renderer() if isinstance(prompt, Chat) else nullcontext() as renderer:  # gets ready beside the vocabulary
            from ..engine.aliases import resolve
            from ..engine.files import open_checkpoint
            from .load import open_tokenizer

            tools = isinstance(prompt, Chat) and prompt.tools is not None
            tokenizer, template = open_tokenizer(open_checkpoint(resolve(model)), tools)
            answer = prompt_ids(tokenizer, template, prompt, renderer), tokenizer.spelling()
    except BadInput as error:
        answer = error
    answer_with(answer)


if __name__ == "__main__":
    serve()
