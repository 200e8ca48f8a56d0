"""What may come next, looked up in what was there: the tokens that followed where the last ones stood before.

A pass over the newest token and a draft costs little more than one over the token alone, for the weights are read once
(Leviathan et al. 2023; the look-up is Saxena's prompt look-up decoding, 2023). The draft's tokens stay as far as they
are what would have been chosen; so the answer is that of no drafts.

Where a forecast comes from: the longest match of the last tokens in prompt and answer; where one token alone matches,
its place behind what was copied last; and what the model itself has said after that token, also behind a draft that was
wrong (Luo et al.'s token recycling, 2024, of the likeliest token alone).

How much is drafted: every look-up is a forecast, and whether it was right is known also where it was not drafted. So a
rate of hits is kept for each kind, and what a pass of so many tokens costs is measured. That draft is made whose
expected tokens are the most for their time; a text without repetitions costs next to nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 15  # tokens of a draft, where nobody says otherwise; with the newest token a pass of 16
LIMIT = 63
WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # tokens of a pass: products of the CPU backend take four at a time
GRAMS = (4, 3, 2)  # tokens that are looked up, the longest first
LONGEST = 16  # of a match: longer ones are as good
NEAR, SAID = 0, -1  # kinds of forecast beside the lengths of a match
BACK, AHEAD = 2, 60  # tokens round the last copied one that are near
MEMORY = 16  # forecasts: how fast a rate follows them
EXTRA = 0.08  # of a token's time for each more in a pass, until that is measured
SLOWER = 1.3  # by which a pass may seem slower than the last one of its width: a slow one may be another job's fault
SURE = 0.85  # of the tokens that a draft promises so many are counted: the one that promises most is oftener wrong


class Forecast(NamedTuple):
    """token: what may come. kind: the length of the match before it, NEAR or SAID. place: where it was found, or 0."""

    token: int
    kind: int
    place: int


class Drafts:
    """The drafts of one answer. most: tokens of one, 0 for none. passes, made: how many passes there were, and how many
    tokens they gave, so that made / passes is a figure for the user.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.passes, self.made = most, 0, 0
        self._seen: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its latest place is
        self._places: dict[int, list[int]] = {}  # token -> where the tokens after it are
        self._said: dict[int, int] = {}
        self._copied = Forecast(-1, NEAR, 0)  # the last look-up that was right; place 0 once one was not
        self._last = 0  # the place behind what was copied last, whatever came since
        self._rates = {SAID: 0.3, NEAR: 0.25, 1: 0.1, 2: 0.3, 3: 0.5}
        self._rates |= {n: min(0.97, 0.7 + 0.03 * (n - 4)) for n in range(4, LONGEST + 1)}
        self._seconds: dict[int, float] = {}  # of a pass, by its width

    @property
    def tokens_per_pass(self) -> float:
        """Of the passes behind the prompt's, at least one."""
        return self.made / self.passes

    def widths(self) -> tuple[int, ...]:
        """How many tokens a pass may have: few numbers, since a backend may prepare for each of them."""
        return (*(n for n in WIDTHS if n <= self.most), self.most + 1)

    def extend(self, tokens: Sequence[int]) -> None:
        """These have come."""
        if self.most:
            for token in tokens:
                self._append(token)

    def said(self, tokens: Sequence[int], logits_TV: NDArray[np.floating]) -> None:
        """What the model held likeliest after each of the tokens of a pass, right ones and wrong ones. `extend` is told
        of the right ones first: else a forecast would come true of itself."""
        if self.most:
            self._said.update(zip(tokens, logits_TV.argmax(axis=1).tolist(), strict=True))

    def took(self, width: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        known = self._seconds.get(width, self._cost(width) * self._seconds[1] if 1 in self._seconds else seconds)
        self._seconds[width] = min(seconds, known * SLOWER)

    def draft(self, room: int) -> list[int]:
        """The tokens that may come next, as many as pay and at most `room`; none where nothing is likely enough."""
        widths = [n for n in self.widths() if n <= room + 1]
        seen, end = self._seen, len(self._seen)
        copied, last = self._copied, self._last
        chance, expected = 1.0, [1.0]  # of a pass with so many tokens drafted: the tokens that it will give
        while len(expected) < widths[-1] and (found := self._find(copied, last)):
            best = max(found, key=lambda f: self._rates[f.kind])
            chance *= self._rates[best.kind]
            expected.append(expected[-1] + chance)
            copied, last = self._follow(best.token, found, last)
            seen.append(best.token)  # what is drafted is looked up as what has come is
        drafted = seen[end:]
        del seen[end:]
        gains = {n: (1 + SURE * (expected[min(n, len(expected)) - 1] - 1)) / self._cost(n) for n in widths}
        return drafted[: max(gains, key=lambda n: gains[n]) - 1]

    def _cost(self, width: int) -> float:
        """The time of a pass of so many tokens, in times of one token's: measured, or as from the next narrower one."""
        one = self._seconds.get(1)
        if one is None or width == 1:
            return 1 + EXTRA * (width - 1)
        if width in self._seconds:
            return max(1.0, self._seconds[width] / one)
        n = max(n for n in self._seconds if n < width)
        extra = (self._seconds[n] / one - 1) / (n - 1) if n > 1 else 0.0
        return 1 + max(EXTRA, extra) * (width - 1)

    def _find(self, copied: Forecast, last: int) -> list[Forecast]:
        """Forecasts of the token behind those seen: by a look-up and by what was said, if there are any."""
        seen = self._seen
        if not seen:
            return []
        match, place = copied.kind, copied.place
        if match < GRAMS[0]:
            for n in GRAMS:
                if n > match and (found := self._after.get(tuple(seen[-n:]))):
                    match, place = n, found
                    break
        if not place and (places := self._places.get(seen[-1])):
            near = bisect_left(places, last - BACK) if last else len(places)
            if near < len(places) and places[near] < last + AHEAD:
                match, place = NEAR, places[near]
            else:
                match, place = 1, places[-1]
        made = [Forecast(seen[place], match, place)] if place else []
        if (token := self._said.get(seen[-1])) is not None:
            made.append(Forecast(token, SAID, 0))
        return made

    @staticmethod
    def _follow(token: int, found: list[Forecast], last: int) -> tuple[Forecast, int]:
        """Where the copy goes on behind a token, and what is near from now on."""
        for f in found:
            if f.place and f.token == token:
                return Forecast(-1, min(f.kind + 1, LONGEST), f.place + 1), f.place + 1
        return Forecast(-1, NEAR, 0), last

    def _append(self, token: int) -> None:
        seen = self._seen
        found = self._find(self._copied, self._last)
        for f in found:
            self._rates[f.kind] += ((f.token == token) - self._rates[f.kind]) / MEMORY
        self._copied, self._last = self._follow(token, found, self._last)
        for n in GRAMS:
            if len(seen) >= n:
                self._after[tuple(seen[-n:])] = len(seen)
        if seen:
            self._places.setdefault(seen[-1], []).append(len(seen))
        seen.append(token)
