"""The command `engine`: finds the command's file, and turns bad input into one line and exit status 2."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the working directory first. It found this one; it shall find no other there,
    # not even __future__. (The two above are in memory when Python starts.)
    del sys.path[0]

import argparse
import errno
import io
import re
import signal
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import BadInput, meant
from .help_text import HelpText
from .terminal import on_stderr

# command: (file in this folder, one line). `trace` and `inspect` live in record.py and inspect_model.py: a file named
# like a module of the standard library shadows it when run as a script.
COMMANDS = {
    "run": ("run", "answer a prompt"),
    "pull": ("pull", "download a model"),
    "list": ("list", "the models that are here"),
    "inspect": ("inspect_model", "what is in a model file"),
    "convert": ("convert", "a model into another container"),
    "trace": ("record", "write or summarise every stage of a forward pass"),
    "show": ("show", "look at a stage: values, statistics, pictures"),
    "embed": ("embed", "texts as vectors, by an embedding model or any other"),
    "score": ("score", "what a reward model or a classifier says of texts"),
    "eval": ("eval", "perplexity of a text, and how far from another model"),
    "diff": ("diff", "two dumps, or the weights of two models, side by side"),
    "verify": ("verify", "judge a dump of any engine, stage by stage"),
    "dump-hf": ("dump_hf", "write every stage of a Hugging Face Transformers run"),
    "dump-llamacpp": ("dump_llamacpp", "write every stage of a llama.cpp run"),
    "import": ("import_dump", "take in a dump that another tool has made"),
    "compile": ("compile", "make the CPU's kernels ready before anyone waits for them"),
    "doctor": ("doctor", "what a bug report needs: versions, machine, a test of bits"),
    "bench": ("bench", "measure speed, against memory and against llama.cpp"),
    "completion": ("completion", "what makes TAB complete commands, options and models"),
}

# What others call it (llama.cpp, Transformers, ollama, polygraphy), and what it is here.
ELSEWHERE = {
    "chat": "run", "generate": "run", "models": "list", "ls": "list", "info": "inspect",
    "quantize": "convert", "export": "convert", "download": "pull", "compare": "diff", "perplexity": "eval",
    "dump": "trace", "judge": "verify", "benchmark": "bench", "--n-predict": "--max-tokens",
    "--max-new-tokens": "--max-tokens", "--temperature": "--temp", "--outtype": "--quantize", "--ctx-size": "--context",
    "--device": "--backend", "--dtype": "--precision", "--adapter": "--lora", "--rtol": "--tolerance",
}  # fmt: skip


PASTED = re.compile("[\u2010-\u2015\u2212][\\w-]+")  # an option, as a text processor makes it
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quotas


def near(word: str, known: Iterable[str]) -> str:
    """As `meant`; a name from elsewhere, or one that holds the other, is nearer than one of similar letters."""
    known, bare = [*known], word.lstrip("-")
    held = [k for k in known if k.startswith("--") and len(bare) > 3 and (bare in k or word.startswith(k))]
    if word in ELSEWHERE and ELSEWHERE[word] in known:
        held = [ELSEWHERE[word]]
    if word.startswith("--") and not held:  # two dashes are no likeness
        found = meant(bare, [k[2:] for k in known if k.startswith("--")])
        return found.replace("did you mean ", "did you mean --")
    return f"; did you mean {held[0]}?" if held else meant(word, known)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no number") from None


def path(text: str) -> Path:
    if not text:  # which would be the folder where the user stands
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


class Last(argparse._StoreAction):
    """Stores a value, as argparse does; another one after it would drop it without a word."""

    first: str | None = None  # a parser parses once

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if option_string is not None:
            if self.first is not None and self.first != repr(values):
                raise argparse.ArgumentError(self, f"given twice, {self.first:.80} and {values!r:.80}; leave one away")
            self.first = repr(values)
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake costs one line, as all bad input does, and not the usage with it; what was meant is
    said where a known word is near.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for kind, read in ((int, whole_number), (float, number), (Path, path)):
            self.register("type", kind, read)
        self.register("action", None, Last)
        self.given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(args or ())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        names = (w.split("=")[0] for w in self.given if re.match("--?[a-z]", w))
        strange = next((n for n in names if not any(o.startswith(n) or n.startswith(o) for o in known)), None)
        if strange and "not allowed with" in message:  # its value was taken for a positional argument
            message = f"unrecognized arguments: {strange}{near(strange, known)}"
        if wrong := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w-]+", wrong[2])
            message += near(wrong[1], [*choices, "help"] if "COMMAND" in message else choices)
        on_stderr(f"{self.prog}: {message:.1500} (what there is: {self.prog} --help)")
        self.exit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A word that nothing takes is the mistake of the command that it was given to."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            groups = (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
            own = next((choices[found.command] for choices in groups if choices), self)
            own.error(f"unrecognized arguments: {' '.join(rest)}{near(rest[0], own._option_string_actions)}")
        return found


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line; only the named command's file is imported (start-up is a figure too)."""
    parser = Parser(
        prog="engine",
        description="An independent Qwen2 engine: runs a model, shows every stage of it, judges other engines' dumps.",
        epilog="example: engine run -p 'What is 2+2?' --chat    (engine help run: all about one command)",
    )
    parser.add_argument("--version", action="version", version=f"qwenref {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        sub = commands.add_parser(name, help=line, formatter_class=HelpText)
        if name == command:
            import_module(f".{module}", __package__).add_arguments(sub)
    return parser


def check_streams() -> None:
    """Standard streams that can be used. Raises BadInput where the answer would have nowhere to go.

    One that the caller has closed is None. stdin then reads as empty; what would go to stderr is dropped.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        raise BadInput("stdout is closed, so nothing could be said")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a model writes in every script, whatever the locale's encoding holds
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """What stdout still holds cannot be written; keeps the interpreter from trying, and complaining, at exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 differs or unexplained (diff, verify), 2 bad input, 141 nobody reads.

    128 + n where a signal ended it; without argv, which means that the process is ours, it dies of the signal instead.
    """
    own = argv is None  # the command, and not a call from another program
    if argv is None:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
            from .completion import answer

            answer(parser_for)
        argv = sys.argv[1:]
        os.environ["PYTHONSAFEPATH"] = "1"  # what is started here imports nothing from the working directory
    argv = list(argv)
    if argv[:1] == ["help"]:
        argv = [*(word for word in argv[1:2] if word != "help"), "--help"]
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        check_streams()
        if own:
            from . import signals

            signals.Ending()
            signals.end_at_a_cut_file(lambda line: say(command, line))
        if not sys.warnoptions:  # they are for who wrote the code that warns; what a user must know is said
            warnings.simplefilter("ignore")
        if argv and argv[0].startswith("-") and not any(o.startswith(argv[0]) for o in ("-h", "--help", "--version")):
            command = None
            raise BadInput(f"{argv[0]}: the command comes first, as in engine run -p 'What is 2+2?' (engine --help)")
        if pasted := next(filter(PASTED.fullmatch, argv), None):
            raise BadInput(f"{pasted}: begins with a dash of print; options begin with - or --")
        args = parser_for(command).parse_args(argv)
        status = import_module(f".{COMMANDS[args.command][0]}", __package__).main(args)
        sys.stdout.flush()
        return int(status)
    except BadInput as error:
        line = str(error)
    except KeyboardInterrupt as told:
        return 128 + getattr(told, "number", signal.SIGINT)
    except BrokenPipeError:
        drop_output()
        return 141
    except MemoryError as error:
        line = f"not enough memory: {error}"
    except OSError as error:
        # Where no command knows more of it: stdout on a full disk, a folder without permission, too long a name.
        drop_output()
        line = f"{error.filename or 'a read or write failed'}: {error.strerror or error}"
        if error.filename is None and error.errno in FULL:  # a file would have been named by who writes it
            line = f"stdout did not take all of the answer: {error.strerror}; send it elsewhere"
    say(command, line)
    return 2


def say(command: str | None, line: str) -> None:
    """What is wrong, on one line of stderr."""
    on_stderr(f"engine {command}: {line}" if command else f"engine: {line}")


if __name__ == "__main__":
    sys.exit(main())
