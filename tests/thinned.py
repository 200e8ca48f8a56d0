"""Matrices of tests: a part of the combinations runs always, all of them by `make matrix`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], named: Callable[[Any], str], one_in: int) -> list[Any]:
    """pytest's parameters: every one_in-th runs always, the others are of the matrix (conftest.py).

    one_in is to share no factor with how the cases repeat, so that each engine, mistake and layer has its turn.
    """
    marks = [pytest.mark.matrix]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), id=named(case), marks=marks if n % one_in else [])
        for n, case in enumerate(cases)
    ]


def always(parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The values of those that run always."""
    return [p.values for p in parameters if not p.marks]
