"""Text as it is generated: ids in, pieces of text out, up to a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from .tokenizer import Tokens


class Generation(Iterator[str]):
    """An iterator of pieces of text: one for each id, and at the end what was held back.

    A piece may be empty: a character is held back until it is whole, and text while a stop string may begin with it.
    An id that ends an answer has no text. Of ids that nothing spells, the pieces are the numbers, a space behind each.
    prompt_ids: what was fed; ids: what came so far, with the one that ended it; finish_reason: None while it goes on,
    "stop" at an id that ends an answer or at a stop string, "length" where the ids ran out.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        tokens: Iterator[int],
        spelling: Tokens,
        stop: Sequence[str | int] = (),
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """stop: strings, which the text ends before, and ids. ended: called behind the last id; it may raise."""
        self.prompt_ids, self.ids = list(prompt_ids), list[int]()
        self.finish_reason: Literal["stop", "length"] | None = None
        self._ends = {*spelling.eos_ids, *(s for s in stop if isinstance(s, int))}
        self._stop = [s for s in stop if isinstance(s, str)]
        self._spells = spelling.spells
        self._spell = spelling.stream() if spelling.spells else lambda id: "" if id is None else f"{id} "
        self._tokens, self._ended, self._over = tokens, ended, False
        self._said, self._held = list[str](), ""

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        id = next(self._tokens, None)
        if id is not None:
            self.ids.append(id)
            piece = self._say("" if id in self._ends and self._spells else self._spell(id))
            if self._over:
                self._ended()
            return piece
        self.finish_reason = "stop" if self.ids and self.ids[-1] in self._ends else "length"
        self._ended()
        if piece := self.end():
            return piece
        raise StopIteration

    def end(self) -> str:
        """Ends it here: no more ids are asked for. Returns what was held back."""
        piece = "" if self._over else self._say(self._spell(None), last=True)
        self._over = True
        return piece

    def _say(self, piece: str, last: bool = False) -> str:
        """What of the text is sure to stay. last: nothing comes behind the piece."""
        text = self._held + piece
        if found := [at for s in self._stop if (at := text.find(s)) >= 0]:
            self.finish_reason, self._over = "stop", True
            end, self._held = min(found), ""
        else:
            end = len(text) - (0 if last else max((overlap(text, s) for s in self._stop), default=0))
            self._held = text[end:]
        self._said.append(text[:end])
        return text[:end]

    @property
    def text(self) -> str:
        """All of it: what has not been asked for yet is generated now."""
        for _ in self:
            pass
        return "".join(self._said)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Generation: {len(self.ids)} ids so far, finish_reason {self.finish_reason!r}>"


def overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may become the stop string's beginning."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
