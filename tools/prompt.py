"""The prompt: its text from where the user has it, and its ids, which a process of its own can find.

A vocabulary of 150,000 tokens and their merges takes 0.4 s of Python and 90 MB. With `TokenizerProcess` they pass while
the first process imports Numba and packs the weights, instead of taking turns with it at one interpreter lock.
"""

from __future__ import annotations

import argparse
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..quant.errors import BadInput
from .child import end_with_parent, own_process
from .signals import end_at_a_cut_file

if TYPE_CHECKING:  # NumPy comes with it; a process is started before
    from ..engine.tokenizer import Tokenizer, Tokens


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text. Raises BadInput where there is none, or where it is not UTF-8.

    A file and a pipe end in a newline that nobody means (`echo hi |`): one is dropped, as llama.cpp's -f drops it.
    """
    if args.prompt is not None and args.prompt != "-":
        text: str = args.prompt
    elif args.file is not None:
        try:
            text = _utf8(Path(args.file).read_bytes(), args.file).removesuffix("\n")
        except OSError as error:
            raise BadInput(f"prompt file {args.file}: {error.strerror}") from None
    elif args.prompt == "-" or not sys.stdin.isatty():
        text = _utf8(sys.stdin.buffer.read(), "stdin").removesuffix("\n")
    else:
        raise BadInput("no prompt; give one with -p TEXT, -f FILE, or through a pipe")
    if not text:
        raise BadInput("the prompt is empty; give at least one character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise BadInput("the prompt is not valid UTF-8")
    return text


def _utf8(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"prompt from {name} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}") from None


def prompt_ids(tokenizer: Tokenizer, template: str | None, text: str, args: argparse.Namespace) -> list[int]:
    """The ids of the text, or of the chat that holds it. Control tokens count in a raw prompt, not in a message."""
    if not args.chat:
        return tokenizer.prompt_ids(text)
    from ..engine.chat import chat_ids

    messages = [{"role": "user", "content": text}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return chat_ids(tokenizer, template, messages)


class TokenizerProcess:
    """Finds the ids of a prompt while the caller does something else. A context: the process ends with it, and with the
    caller, whose end of a pipe it watches.

    args: as of `engine run`: model, chat, system.
    """

    def __init__(self, text: str, args: argparse.Namespace) -> None:
        self._result: tuple[list[int], Tokens] | None = None
        request = argparse.Namespace(model=args.model, chat=args.chat, system=args.system)
        self._process = subprocess.Popen(own_process(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        pickle.dump((text, request), self._process.stdin)
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
    for gone in (signal.SIGINT, signal.SIGPIPE):  # the caller says what an interruption means
        signal.signal(gone, signal.SIG_DFL)
    try:
        text, args = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # the caller is gone
        return
    end_with_parent()

    def answer_with(answer: object) -> None:
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.flush()

    end_at_a_cut_file(lambda line: answer_with(BadInput(line)))

    from ..engine.files import open_checkpoint
    from .load import open_tokenizer
    from .models import resolve

    answer: BadInput | tuple[list[int], Tokens]
    try:
        tokenizer, template = open_tokenizer(open_checkpoint(resolve(args.model)))
        answer = prompt_ids(tokenizer, template, text, args), tokenizer.spelling()
    except BadInput as error:
        answer = error
    answer_with(answer)


if __name__ == "__main__":
    serve()
