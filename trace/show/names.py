"""What tokens are called: by their text, where something spells it, else by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Spelling(Protocol):
    """A model's own spelling of its ids (engine/text/tokenizer.py)."""

    vocab_size: int

    def text_of(self, id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Names:
    """ids: those that were run, by position; empty where nobody knows them. spelling: None where nothing spells them.

    Texts are as Python quotes them: blanks and line breaks are seen.
    """

    ids: Sequence[int]
    spelling: Spelling | None

    def text(self, token: int) -> str | None:
        """A token's text as it is, None where nothing spells it."""
        known = self.spelling is not None and 0 <= token < self.spelling.vocab_size
        return self.spelling.text_of(token) if known and self.spelling is not None else None

    def spelled(self, token: int) -> str:
        """A token's text in quotes, "" where nothing spells it."""
        text = self.text(token)
        return "" if text is None else repr(text)

    def at(self, position: int) -> str:
        """The token at a position: its text or its id, "" where nobody knows it."""
        if position >= len(self.ids):
            return ""
        return self.spelled(self.ids[position]) or str(self.ids[position])
