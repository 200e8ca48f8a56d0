"""A stranger's engine of quantised files (tests/home_made.py), wrong in the ways of public stories, and right in ways
of its own: what `engine verify` says of its dumps. Each kind of mistake has a case that runs always."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qwenref
from qwenref.quant.tensor import QTensor, dequantize

from ...cases_quantised import CASES, DESCRIBED, MODELS, NAMED, Case, model, outcome
from ...home_made import NUMBERS, SIZES, decode, read_model

ALWAYS = {3, 16, 20, 25, 29}  # which take half a second each


def kept(c: Case) -> object:
    marks = [] if c.number in ALWAYS else [pytest.mark.matrix]
    return pytest.param(c, id=f"{c.number}-{c.thread}", marks=marks)


@pytest.mark.parametrize("c", [kept(c) for c in CASES if not c.right])
def test_the_mistake_is_told(c: Case) -> None:
    how, said = outcome(c)
    assert how == (NAMED if c.said else DESCRIBED), said


@pytest.mark.parametrize("c", [kept(c) for c in CASES if c.right])
def test_nothing_is_said_of_a_right_engine(c: Case) -> None:
    how, said = outcome(c)
    assert how == NAMED, said


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_reads_what_this_package_reads(name: str) -> None:
    """Two readers and two decoders, that share no line."""
    _, tensors = read_model(model(name))
    for fmt, shape, blocks in tensors.values():
        if fmt != "F32":
            mine = dequantize(QTensor(fmt, shape, blocks.reshape(-1)))
            np.testing.assert_array_equal(decode(fmt, blocks).reshape(shape), mine)
    assert set(NUMBERS) == set(SIZES)


def test_the_page_has_every_case() -> None:
    page = Path(qwenref.__path__[0], "docs", "cases_quantised.md").read_text()
    for c in CASES:
        assert f"| {c.number} | {c.story if c.right else c.thread} |" in page, c.number
