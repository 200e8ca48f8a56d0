"""Matrices of tests: a part of the combinations runs always, all of them by `make matrix`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(
    cases: Iterable[Any], named: Callable[[Any], str], one_in: int, of: Callable[[Any], Any] = lambda case: None
) -> list[Any]:
    """pytest's parameters: every one_in-th of a kind (of) runs always, the others are of the matrix (conftest.py).

    one_in is to share no factor with how the cases repeat, so that each engine, mistake and layer has its turn.
    """
    found, seen = [], Counter[Any]()
    for case in cases:
        marks = [pytest.mark.matrix] if seen[of(case)] % one_in else []
        seen[of(case)] += 1
        found.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), id=named(case), marks=marks))
    return found


def always(parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The values of those that run always."""
    return [p.values for p in parameters if not p.marks]
