"""The cases that could not be handed over once (tests/stopped.py): those that are judged within a second here, all of
them by the oracle (tests/oracle/test_cases.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ...cases import DESCRIBED, NAMED
from ...handovers import WAYS
from ...stopped import STOPPED, numbered, verdict

PAPER = (Path(__file__).parents[3] / "docs" / "cases.md").read_text("utf-8")
QUICK = ("own", "own, torch", "llama.cpp", "vllm", "vllm, torch", "sglang", "transformers", "tensorrt-llm", "onnx")
OF_EACH = {way: next(n for n in STOPPED if STOPPED[n] == way) for way in QUICK}
LEAST = 40  # of the 46


def test_there_are_46_and_each_has_a_way() -> None:
    assert len(STOPPED) == 46 and set(STOPPED.values()) <= WAYS.keys()


def test_the_page_has_each_of_them() -> None:
    section = PAPER[PAPER.index("## Handed over") :]
    rows = re.findall(r"(?m)^\| (\d+) \| (\S+) \| (.*?) \| ([a-z ]+) \| .+ \|$", section)
    told = {int(n): (thread, leaves) for n, thread, leaves, _ in rows}
    assert told == {n: (numbered(n).thread, WAYS[way].leaves) for n, way in STOPPED.items()}
    hows = [how for *_, how in rows]
    assert hows.count(NAMED) >= LEAST and f"Named {hows.count(NAMED)}, " in section


@pytest.mark.parametrize("way", sorted(OF_EACH))
def test_a_case_of_a_way_is_reached(way: str, tmp_path: Path) -> None:
    how, said = verdict(numbered(OF_EACH[way]), tmp_path)
    assert how in (NAMED, DESCRIBED), said


def test_a_mistake_inside_attention_is_named_where_hooks_leave_the_result_alone(tmp_path: Path) -> None:
    """Windows, rows of the cache: the other ways of it are the oracle's."""
    for number in (45, 48):
        (tmp_path / f"{number}").mkdir()
        how, said = verdict(numbered(number), tmp_path / f"{number}")
        assert how == NAMED, said
