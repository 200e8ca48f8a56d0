"""The one error for what the user gave wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):  # noqa: N818 (it names what is wrong, not where in the program)
    """What the user gave cannot be used.

    The message is one line that names the thing (file, offset, field, stage, flag) and, where there is one, the way
    out. The command line prints it on stderr and exits with status 2; nothing else catches it. It is a ValueError for
    callers in Python: who catches one here lets BadInput through.
    """


@contextmanager
def blamed_on(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong in here is wrong with this file: the line begins with its name."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{os.fspath(path)}: {error}") from None
