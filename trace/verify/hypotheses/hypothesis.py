"""Hypotheses: known mistakes, each a small function that recomputes a stage as an engine with that mistake would.

One is reported when it reproduces the dump down to rounding, under the dump's own recipe. To add one: a function under
@hypothesis in one of the files beside this one, and a mistake that it explains (tests/plants.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ..site import Site
from ..span import Span

Several = Iterator[tuple[str, Span]]
Variants = Span | None | Several
Recompute = TypeVar("Recompute", bound=Callable[[Site], Variants])


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """name: short, stable, for programs. sentence: for people; {} takes the variant that fitted.

    stages: those that it is about. recompute: a site -> its Span under the mistake, several with what varies, or None.
    by_row: the mistake is the same at some of the positions as at all of them.
    """

    name: str
    sentence: str
    stages: tuple[str, ...]
    recompute: Callable[[Site], Variants]
    by_row: bool = True

    def variants(self, site: Site) -> Iterator[tuple[str, Span]]:
        found = self.recompute(site)
        if isinstance(found, Span):
            yield "", found
        elif found is not None:
            yield from found


def entering(table: list[Hypothesis]) -> Callable[..., Callable[[Recompute], Recompute]]:
    """The decorator `hypothesis(name, sentence, *stages)` of a file, which enters a function into that file's table."""

    def hypothesis(name: str, sentence: str, *stages: str, by_row: bool = True) -> Callable[[Recompute], Recompute]:
        def enter(f: Recompute) -> Recompute:
            table.append(Hypothesis(name, sentence, stages, f, by_row))
            return f

        return enter

    return hypothesis
