"""engine run: answers a prompt, streaming."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..engine.aliases import resolve
from ..errors import BadInput
from .prompt import TokenizerProcess, add_chat_arguments, add_tokens_argument, given_tokens, read_prompt

if TYPE_CHECKING:
    from ..engine.files import Checkpoint
    from ..engine.text.tokenizer import Tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..engine.drafts import MOST
    from ..engine.generate import MAX_TOKENS
    from .load import Once, add_model_arguments

    parser.description = """Continues a prompt, or answers it as a chat (--chat). The text goes to stdout as it comes,
figures to stderr. A file or a pipe gets the model's text exactly; a terminal gets no control characters of it.
On a terminal and without a prompt it is a conversation: Ctrl-C ends an answer, Ctrl-D the conversation."""
    parser.epilog = """examples:
  engine run 'What is 2+2?' --chat
  engine run model.gguf -p 'What is 2+2?'
  engine run --chat --messages chat.json --tools tools.json
  engine run -p 'def fibonacci(n):' -n 48
  engine run -f prompt.txt --json
  engine run --tokens 3838,374,220,17,10,17,30"""
    add_model_arguments(parser, words=True)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "-p",
        "--prompt",
        action=Once,
        metavar="TEXT",
        help="the prompt, exactly; - reads it from stdin (the default where stdin is a pipe)",
    )
    prompt.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="a UTF-8 file with the prompt; one newline at its end, or at stdin's, is dropped",
    )
    add_tokens_argument(prompt)
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"stop after N new tokens (default: {MAX_TOKENS}, or as many as the context still holds)",
    )
    parser.add_argument("--temp", type=float, default=0.0, metavar="X", help="temperature; 0, the default, is greedy")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (0: all)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of mass P (1: all)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    parser.add_argument(
        "--draft",
        type=draft_tokens,
        metavar="N",
        help=f"draft up to N tokens by looking up what came before, and check them in one pass; off: none. The answer "
        f"stays the same (default: {MOST} where the choice is greedy and the backend is cpu, else off)",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object with ids, text and figures instead of streaming"
    )
    add_chat_arguments(parser)


def draft_tokens(text: str) -> int:
    """Of --draft: off is 0."""
    if text == "off":
        return 0
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of tokens, or off")
    return int(text)


def describe(f: dict[str, Any]) -> str:
    """The one line of figures."""
    line = f"load {f['load_s']:.2f} s; prompt {f['prompt_tokens']} tokens, {f['prompt_tokens_per_s']:.1f}/s"
    line += f"; first token after {f['first_token_s']:.2f} s"
    if f["generated_tokens_per_s"]:
        line += f"; generated {f['generated_tokens']} tokens, {f['generated_tokens_per_s']:.1f}/s"
    if f["tokens_per_pass"] not in (None, 1):
        line += f", {f['tokens_per_pass']:.2f} a pass"
    return line


def main(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    take_words(args)
    if talks(args):
        from .conversation import converse

        return converse(args)
    given = given_tokens(args)
    if args.max_tokens is not None and args.max_tokens < 1:
        raise BadInput(f"-n {args.max_tokens}: ask for at least 1 token")
    if given is not None:
        return answer(len(given), lambda c: (given, spelling(c)), args, started)
    prompt = read_prompt(args)
    args.model = str(resolve(args.model))  # once for both processes: it may have to be fetched
    with TokenizerProcess(prompt, args.model) as tokenizer:
        size = len(prompt) if isinstance(prompt, str) else len(repr(prompt))
        return answer(size, lambda _: tokenizer.result(), args, started)


def talks(args: argparse.Namespace) -> bool:
    """Whether there is no prompt, but somebody at a terminal who may say one."""
    asked = (args.prompt, args.file, args.tokens, args.messages)
    return not any(a is not None for a in asked) and sys.stdin.isatty() and sys.stdout.isatty()


def could_be_model(word: str) -> bool:
    """Whether a word looks like one, be it there or mistyped: a path, a file's name, an alias, an id of the hub."""
    return bool(set(word) & set("/\\.:-")) or os.path.exists(word)


def take_words(args: argparse.Namespace) -> None:
    """Sorts the words that stand alone into args.model and args.prompt: a model, a prompt, or a model and a prompt.

    One word is a prompt only where it has spaces in it and no file is called so: a mistyped file is no prompt.
    Raises BadInput.
    """
    from .load import is_model

    words: list[str] = list(args.words)
    if len(words) > 1 and args.model is None and not could_be_model(words[0]):
        whole = " ".join(words)
        raise BadInput(f"{words[0]!r:.80} is no model, and several words make a prompt in quotes only: {whole!r:.200}")
    if words and args.model is None and (is_model(words[0]) or not any(map(str.isspace, words[0]))):
        args.model = words.pop(0)
    elif words and args.model is not None and is_model(words[0]):
        raise BadInput(f"{words[0]} and -m {args.model} are two models; give one")
    if len(words) > 1:
        raise BadInput(f"{' '.join(words)!r:.200}: several words make a prompt in quotes only")
    if words:
        for name in ("prompt", "file", "tokens", "messages"):
            if getattr(args, name) is not None:
                raise BadInput(f"{words[0]!r:.80} would be the prompt, and there is --{name}; leave one of them away")
        args.prompt = words[0]


def spelling(checkpoint: Checkpoint) -> Tokens:
    """What spells ids out, or what only knows which ids end an answer: then ids are the answer."""
    from ..engine.load import spelling_of
    from .load import open_spelling

    return open_spelling(checkpoint) or spelling_of(checkpoint, None)


def answer(
    size: int, tokenizer: Callable[[Checkpoint], tuple[list[int], Tokens]], args: argparse.Namespace, started: float
) -> int:
    """size: of the prompt, in characters or ids; tokenizer: its ids and what spells them, asked for once."""
    from ..engine.generate import check_prompt, drafts_for, generate, new_tokens
    from ..engine.kernels import backend
    from ..engine.load import blaming, check_generates
    from ..engine.sample import Sampling
    from ..engine.text.generation import Generation
    from .load import load_as_asked, open_weights, rope_asked
    from .progress import progress
    from .terminal import for_stdout, json_text

    sampling = Sampling(args.temp, args.top_k, args.top_p, args.seed)
    opened = open_weights(args.model, rope_asked(args), args.lora)
    checkpoint = opened.checkpoint
    check_generates(checkpoint)
    drafts = drafts_for(backend(args.backend), args.backend, sampling, args.draft)
    context = checkpoint.config.context
    if args.max_tokens is not None and args.max_tokens >= context:
        raise BadInput(f"-n {args.max_tokens} and a prompt do not fit the context of {context}")

    @cache
    def tokenized() -> tuple[Tokens, list[int], int]:
        """What spells ids out, the prompt's ids and how many new ones: known to fit the context."""
        ids, spelling = tokenizer(checkpoint)
        new = new_tokens(len(ids), checkpoint.config, args.max_tokens)
        check_prompt(ids, checkpoint.config, new)
        return spelling, ids, new

    if size + (args.max_tokens or 1) > context // 2:  # a prompt that may be too long is known to fit before
        tokenized()  # the weights are packed,
    model = load_as_asked(args, opened, tokenized)  # and any before a kernel is compiled
    spelling, ids, max_tokens = tokenized()
    loaded = time.perf_counter()

    with progress("prompt", len(ids)) as advance:
        made_of = (ids, model.weights, model.kernels, args.precision)
        tokens = blaming(generate(*made_of, max_tokens, spelling.eos_ids, sampling, advance, drafts), opened)
        made = Generation(ids, tokens, spelling, ended=checkpoint.check_unchanged)
        first_piece = next(made)
    first = time.perf_counter()
    told: KeyboardInterrupt | None = None
    try:
        for piece in chain((first_piece,), made):
            if not args.json:
                print(for_stdout(piece), end="", flush=True)
    except KeyboardInterrupt as interrupt:
        told = interrupt
        checkpoint.check_unchanged()
    except BadInput:
        if not args.json:  # what was said ends in a line of its own
            print()
        raise
    rest = made.end()
    done = time.perf_counter()

    figures = {
        "load_s": round(loaded - started, 3),
        "first_token_s": round(first - started, 3),
        "prompt_tokens": len(ids),
        "prompt_tokens_per_s": round(len(ids) / (first - loaded), 2),
        "generated_tokens": len(made.ids),
        "generated_tokens_per_s": round((len(made.ids) - 1) / (done - first), 2) if len(made.ids) > 1 else None,
        "tokens_per_pass": round(drafts.tokens_per_pass, 2) if drafts.passes else None,
    }
    if args.json:
        text = made.text if spelling.spells else None
        result: dict[str, Any] = {"model": str(checkpoint.path), "backend": args.backend, "precision": args.precision}
        print(json_text(result | {"prompt_ids": ids, "ids": made.ids, "text": text, "figures": figures}))
    else:
        print(for_stdout(rest))
        print(describe(figures), file=sys.stderr)
    if told is not None:
        raise told
    return 0
