"""Tables in 80 columns: what is too long goes on below, or has a sign where it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from .terminal import one_line

WIDTH = 80


def hanging(head: str, text: str) -> Iterator[str]:
    """A label and what it says, which goes on below itself. A word longer than the line, as a path, stays whole."""
    text, room = one_line(text), max(20, WIDTH - len(head))  # first: a name may hold a line feed
    lines = wrap(text, room, break_long_words=False, break_on_hyphens=False) if len(text) > room else [text]
    yield (head + (lines[0] if lines else "")).rstrip()
    yield from (" " * len(head) + line for line in lines[1:])


def middle(text: str, longest: int) -> str:
    """Beginning and end of what is too long."""
    return text if len(text) <= longest else f"{text[: (longest - 1) // 2]}…{text[len(text) - longest // 2 :]}"


def count(n: int, digits: int) -> str:
    """A number in so many characters: as it is, or rounded to a power of ten's multiple (`3e+07`)."""
    return str(n) if len(str(n)) <= digits else f"{n:.0e}"
