"""What may come next, looked up in what was there: the tokens that followed the last n-gram where it stood before.

A pass over the newest token and a draft costs little more than one over the token alone, for the weights are read once
(Leviathan et al. 2023; the look-up is Saxena's prompt look-up decoding, 2023). The draft's tokens stay as far as they
are what would have been chosen; so the answer is that of no drafts.

How much is drafted: every look-up is a forecast, and whether it was right is known also where it was not drafted. So a
rate of hits is kept for each length of the match, and drafts are made where that is high: a text without repetitions
costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 7  # tokens of a draft, where nobody says otherwise; with the newest token a pass of 8
LIMIT = 63
GRAMS = (4, 3, 2)  # tokens that are looked up, the longest first
LONGEST = 16  # of a match: longer ones are as good
SURE = 0.7  # rate of hits from which a draft is made
SHORT = 3  # tokens of a draft while full ones are not as sure
SURER = 0.9
MEMORY = 8  # forecasts: how fast a rate follows them


class Drafts:
    """The drafts of one answer. most: tokens of one, 0 for none. passes, made: how many passes there were, and how many
    tokens they gave, so that made / passes is a figure for the user.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.passes, self.made = most, 0, 0
        self._seen: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its latest place is
        self._next, self._match = 0, 0  # where the forecast token is (0: nowhere), and the length of the match before
        # A match of 4 counts as 3 hits of 4, until there are others.
        self._rates = [1 - 1 / max(n, 1) for n in range(LONGEST + 1)]

    @property
    def tokens_per_pass(self) -> float:
        """Of the passes behind the prompt's, at least one."""
        return self.made / self.passes

    def widths(self) -> tuple[int, ...]:
        """How many tokens a pass may have: few numbers, since a backend may prepare for each of them."""
        return tuple(sorted({1, min(SHORT, self.most) + 1, self.most + 1}))

    def extend(self, tokens: Sequence[int]) -> None:
        """These have come."""
        if self.most:
            for token in tokens:
                self._append(token)

    def draft(self) -> list[int]:
        """The tokens that may come next, as many as pay; none where nothing is sure enough."""
        rate = self._rates[self._match] if self._next else 0.0
        count = 0 if rate < SURE else self.most if rate >= SURER else min(SHORT, self.most)
        text = self._seen[self._next : self._next + count]
        while len(text) < count:  # it has come to its own end, and goes on with itself
            text.append(text[len(text) - (len(self._seen) - self._next)])
        return text

    def _append(self, token: int) -> None:
        seen = self._seen
        if self._next:
            hit = seen[self._next] == token
            self._rates[self._match] += (hit - self._rates[self._match]) / MEMORY
            self._next, self._match = (self._next + 1, min(self._match + 1, LONGEST)) if hit else (0, 0)
        seen.append(token)
        grams = {n: tuple(seen[-n:]) for n in GRAMS if len(seen) >= n}
        if self._match < GRAMS[0]:
            for n, gram in grams.items():
                if n > self._match and gram in self._after:
                    self._next, self._match = self._after[gram], n
                    break
        for gram in grams.values():
            self._after[gram] = len(seen)
