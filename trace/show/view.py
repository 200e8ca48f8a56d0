"""A part of a stage: heads of rows of columns, whatever axes the stage has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ..dump import Entry

HEADS = ("N", "K")  # letters that are heads; T is the rows, the last letter the columns
COLUMNS = {"S": "key", "V": "token"}  # what a column is; a channel otherwise
SLICE = re.compile(r"\s*(-?\d{1,9})?\s*(?::|\.\.)\s*(-?\d{1,9})?\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of one head. values: of all the view's columns; computed: those that the engine computed. Of scores and
    probabilities what stands after the query's own key is a fill."""

    head: int | None
    row: int
    position: int
    values: NDArray[np.float32]
    computed: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class View:
    """entry: the stage. heads, rows, columns: the numbers that are looked at; heads None where the stage has none.
    values: those, with the stage's own axes. positions: of all rows of the entry, absolute.
    """

    entry: Entry
    heads: range | None
    rows: range
    columns: range
    values: NDArray[np.float32]
    positions: tuple[int, ...]

    @property
    def by_head(self) -> NDArray[np.float32]:
        """[heads or 1, rows, columns]."""
        if self.heads is not None and self.entry.stage.letters.index("T") == 0:
            return self.values.transpose(1, 0, 2)
        return self.values.reshape(len(self.heads or (None,)), len(self.rows), len(self.columns))

    @property
    def column_is(self) -> str:
        return COLUMNS.get(self.entry.stage.letters[-1], "channel")

    def lines(self) -> Iterator[Line]:
        """Head by head, row by row."""
        fills = "S" in self.entry.stage.letters
        for h, rows in zip(self.heads or (None,), self.by_head, strict=True):
            for r, values in zip(self.rows, rows, strict=True):
                at = self.positions[r]
                seen = max(0, at + 1 - self.columns.start) if fills else len(values)
                yield Line(h, r, at, values, values[:seen])

    def computed(self) -> NDArray[np.float32]:
        """All that the engine computed of it, flat."""
        return np.concatenate([line.computed for line in self.lines()])


def view(e: Entry, heads: str | None = None, rows: str | None = None, columns: str | None = None) -> View:
    """The part of an entry that A:B, or a single number, names on each axis; None is all of it.

    Raises BadInput for heads where the stage has none, and for a part that is not there.
    """
    letters = e.stage.letters
    if not letters or len(e.shape) != len(letters):
        raise BadInput(f"{e.path}: its axes are not known; give the model with -m")
    length = dict(zip(letters, e.shape, strict=True))
    head = next((letter for letter in HEADS if letter in letters[:-1]), None)
    if head is None and heads is not None:
        raise BadInput(f"--head {heads}: {e.stage.name} has no heads; it is {e.stage.shape.replace(' ', ' x ')}")
    chosen = {
        letters[-1]: part(columns, length[letters[-1]], "--columns"),
        "T": part(rows, length.get("T", 1), "--rows"),
        **({} if head is None else {head: part(heads, length[head], "--head")}),
    }
    values = e.values()[tuple(slice(chosen[a].start, chosen[a].stop) for a in letters)]
    T, end = length.get("T", 1), length.get("S", length.get("T", 1))
    positions = e.positions or tuple(range(end - T, end))
    return View(e, chosen.get(head) if head else None, chosen["T"], chosen[letters[-1]], values, positions)


def part(text: str | None, size: int, flag: str) -> range:
    """`5`, `2:8`, `:8`, `-3:` (the last three), also with two dots. Raises BadInput that says what there is."""
    if text is None:
        return range(size)
    there = f"there are 0 to {size - 1}"
    if re.fullmatch(r"\s*-?\d{1,9}\s*", text, re.ASCII):
        n = int(text)
        if not -size <= n < size:
            raise BadInput(f"{flag} {text.strip()} is past the last; {there}")
        return range(size)[n : n + 1 or None]
    m = SLICE.fullmatch(text)
    if m is None:
        raise BadInput(f"{flag} {text!r:.80} is neither a number nor A:B, as in 2:8; {there}")
    start, stop = (None if word is None else int(word) for word in m.groups())
    if (found := range(size)[start:stop]) and all(-size <= n <= size for n in (start or 0, stop or 0)):
        return found
    raise BadInput(f"{flag} {text.strip()} is empty or past the last; {there}, and B is not included")
