"""A verification that tells itself: as text, as a page, as rows, and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from typing import Any

from ..finding import Verification
from .html import page
from .plain import as_json, row
from .spent import Spent
from .terminal import lines_of
from .text import sentence


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Verification):
    """A Verification, with the names of the dump and of the model for whoever reads it.

    texts: what each of its tokens is as text, where the model spells them. spent: what the engine's arithmetic costs,
    where that was asked for.
    """

    dump: str
    model: str
    texts: tuple[str, ...] | None = None
    spent: Spent | None = None

    @classmethod
    def of(cls, v: Verification, dump: str, model: str, texts: tuple[str, ...] | None = None) -> Report:
        return cls(**{f.name: getattr(v, f.name) for f in fields(v)}, dump=dump, model=model, texts=texts)

    @property
    def sentence(self) -> str:
        """All of it in one sentence, after those that must come first."""
        return sentence(self)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary of plain values for each file of the dump, in order of execution: pandas.DataFrame takes them.

        Errors are relative RMS: `observed` against the plain float64 stage, `left` against the recipe, of which
        `predicted` is allowed; `worst` is the largest error of an element over what it is allowed.
        """
        return [row(f) for f in self.findings]

    @property
    def costs(self) -> list[dict[str, Any]]:
        """A dictionary of plain values for each fact whose cost was asked for, and for all of them; [] if none was."""
        return [] if self.spent is None else [c.as_json() for c in self.spent.costs]

    def as_json(self) -> dict[str, Any]:
        """What `engine verify --json` prints; numbers that JSON does not know are None."""
        return as_json(self) | ({} if self.spent is None else self.spent.as_json())

    def lines(self) -> list[str]:
        """The report for a terminal, names as they are: whoever prints them makes them safe."""
        return lines_of(self) + ([] if self.spent is None else self.spent.lines())

    def html(self) -> str:
        """The page that `engine verify --html` writes: a file of its own; its one script only sorts and unfolds."""
        return page(self, self.dump, self.model, self.texts)

    def _repr_html_(self) -> str:
        """For a notebook: the page in a frame, so that its style stays inside."""
        style = "width:100%;height:42rem;border:0"
        return f'<iframe sandbox srcdoc="{escape(self.html())}" style="{style}"></iframe>'

    def __str__(self) -> str:
        """The report for a terminal. What a name holds of control characters is left out."""
        return "".join(
            c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in "\n".join(self.lines())
        )

    def __repr__(self) -> str:
        return f"<Report: {self.sentence}>"
