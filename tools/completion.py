"""engine completion: what makes a shell complete commands, options, stages and models; and the answers at TAB"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from typing import Any

from ..engine.aliases import MODELS
from ..errors import BadInput
from ..trace.stages import STAGES
from .list import ENDINGS, others

SHELLS = ("bash", "zsh", "fish", "powershell")
NAMES = ("engine", "qwenref")  # of the command
EXTRA = "completion needs the package argcomplete; get it with: pip install 'qwenref[completion]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints a script for a shell. With it, TAB completes commands, options and their values, stages,\n"
        "aliases of models, pulled files and paths. (pip install 'qwenref[completion]')"
    )
    parser.epilog = """examples:
  eval "$(engine completion bash)"     (in ~/.bashrc)
  eval "$(engine completion zsh)"      (in ~/.zshrc, below compinit)
  engine completion fish > ~/.config/fish/completions/engine.fish"""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def main(args: argparse.Namespace) -> int:
    try:
        from argcomplete import shellcode
    except ImportError:
        raise BadInput(EXTRA) from None
    print(shellcode(list(NAMES), shell=args.shell))
    return 0


def answer(parser_for: Callable[[str | None], argparse.ArgumentParser]) -> None:
    """What the shell asks for at TAB: argcomplete reads the line from the environment, writes words to a file
    descriptor, and ends the process. parser_for: the command line's parser, with the arguments of one command.
    """
    try:
        from argcomplete import autocomplete
        from argcomplete.lexers import split_line
    except ImportError:  # uninstalled since: no words, and no line across the prompt
        raise SystemExit(1) from None
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words = [word for word in split_line(line, point)[3][1:] if not word.startswith("-")]
    parser = parser_for(words[0] if words else None)
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    commands.add_parser("help").add_argument("about", choices=[*commands.choices])
    for command in commands.choices.values():
        for action in command._actions:
            if completer := COMPLETERS.get(str(action.metavar)):
                action.completer = completer
    autocomplete(parser, always_complete_options=False)


def models(prefix: str, **_: Any) -> Iterable[str]:
    """Every alias, what else was pulled, and what has a container's ending."""
    from argcomplete.completers import FilesCompleter

    known = [*MODELS, *(m["model"] for m in others())]
    return [*(name for name in known if name.startswith(prefix)), *FilesCompleter(ENDINGS)(prefix)]


def stages(prefix: str, **_: Any) -> Iterable[str]:
    """The last of a comma list; not those that stand in it already."""
    before, comma, _last = prefix.rpartition(",")
    return [before + comma + s.name for s in STAGES if s.name not in before.split(",")]


# By what the help calls a value. What is not here and has no choices is a path.
COMPLETERS: dict[str, Callable[..., Iterable[str]]] = {
    "MODEL": models,
    "MODEL2": models,
    "MODEL|PROMPT": models,
    "MODEL|TEXT": models,
    "SRC": models,
    "STAGES": stages,
    "NAMES": stages,
}
