"""The one error for what the user gave wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class BadInput(ValueError):  # noqa: N818 (it names what is wrong, not where in the program)
    """What the user gave cannot be used.

    The message is one line that names the thing (file, offset, field, stage, flag) and, where there is one, the way
    out. The command line prints it on stderr and exits with status 2; nothing else catches it. It is a ValueError for
    callers in Python: who catches one here lets BadInput through.
    """

    def __str__(self) -> str:
        """A name that a file made up may hold a line feed: a sign stands for it."""
        return "\N{REPLACEMENT CHARACTER}".join(super().__str__().splitlines())


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a message: which of the known words this may have been, if any is near."""
    from difflib import get_close_matches

    near = get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def blamed_on(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong in here is wrong with this file: the line begins with its name."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{os.fspath(path)}: {error}") from None
