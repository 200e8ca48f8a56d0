"""Every public case (tests/cases.py), and the fitted hypotheses in float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ..cases import CASES, MISSED, NAMED, OUTSIDE, Case, outcome
from ..stopped import STOPPED, numbered, verdict
from ..trace.verify.test_hypotheses_fitted import FITTED
from ..trace.verify.test_hypotheses_fitted import test_planted as planted

pytestmark = pytest.mark.oracle
LEAST = 50  # that are named
REACHED = [c for c in CASES if c.make is not None]
HOW: Counter[str] = Counter()
HANDED: Counter[str] = Counter()
HANDED_LEAST = 42  # of the 45 that a stage tells


@pytest.mark.parametrize("c", REACHED, ids=lambda c: str(c.number))
def test_a_case_is_not_missed(c: Case) -> None:
    how, said = outcome(c)
    HOW[how] += 1
    assert how not in (MISSED, OUTSIDE), said


def test_most_cases_are_named() -> None:
    if HOW.total() < len(REACHED):
        pytest.skip("only where every case has run")
    assert HOW[NAMED] >= LEAST, HOW


@pytest.mark.parametrize("number", STOPPED)
def test_a_case_as_its_engine_hands_it_over(number: int, tmp_path: Path) -> None:
    c = numbered(number)
    if c.make is None:
        pytest.skip(c.reason)
    how, said = verdict(c, tmp_path)
    HANDED[how] += 1
    assert how not in (MISSED, OUTSIDE), said


def test_most_cases_are_named_as_their_engines_hand_them_over() -> None:
    if HANDED.total() < len([n for n in STOPPED if numbered(n).make]):
        pytest.skip("only where every case has run")
    assert HANDED[NAMED] >= HANDED_LEAST, HANDED


@pytest.mark.parametrize("name", FITTED)
def test_planted_in_float32(name: str) -> None:
    planted(name, "cpu f32")
