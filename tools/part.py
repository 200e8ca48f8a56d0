"""A part of a command that is asked for several things: what it is, what becomes of it, and what is there for the next.

What a part finds does not depend on where it is computed. One that fails says why in its line, and stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from ..errors import BadInput

X = TypeVar("X")


class Desk:
    """Where parts are computed one after the other: what the last one has opened is there for the next.

    threads: to compute with; None for all that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._held: dict[str, tuple[str, Any]] = {}

    def one(self, kind: str, key: object, make: Callable[[], X]) -> X:
        """The one of this kind that is held, if its key is this; else it is let go, and another made."""
        held = self._held.get(kind)
        if held is None or held[0] != repr(key):
            self._held.pop(kind, None)  # first: two models may be more than there is memory for
            held = self._held[kind] = repr(key), make()
        found: X = held[1]
        return found

    def clear(self) -> None:
        self._held.clear()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part.

    status: as the command's of this part alone. told: for JSON, `result` or `error`. cells: its columns of the table
    behind the names; none where it failed. notes: what the command would have said on stderr.
    """

    status: int
    told: Mapping[str, Any]
    cells: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Reached(NamedTuple):
    """How far a part is that is being computed."""

    done: int
    total: int


class Part(Protocol):
    """A part goes to other processes as it is, so it holds plain values, and paths that mean the same there."""

    @property
    def asked(self) -> Mapping[str, str]:
        """What tells it from the others, by the columns' heads."""

    def outcome(self, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
        """Computes it. done: told how much is done, and of how much. Raises BadInput."""


def failed(line: str) -> Outcome:
    return Outcome(2, {"error": line})


def attempt(part: Part, desk: Desk, done: Callable[[int, int], None]) -> Outcome:
    """The part's outcome, also where it has none: with the line that the command alone would have ended in."""
    try:
        return part.outcome(desk, done)
    except BadInput as error:
        return failed(str(error))
    except MemoryError as error:
        desk.clear()
        return failed(f"not enough memory: {error}")
    except OSError as error:
        return failed(f"{error.filename or 'a read or write failed'}: {error.strerror or error}")
