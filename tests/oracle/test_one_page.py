"""Engines as they are, each handed over as docs/dumps.md says, without a map: explained, and called what they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .one_page import ENGINES, PAPER, PROMPTS, Engine, batch, models, verdict

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("e", ENGINES, ids=lambda e: e.name)
def test_an_engine_as_it_is(e: Engine, both: Path) -> None:
    if e.missing:
        pytest.skip(f"{', '.join(e.missing)} is not installed")
    said = verdict(e.dump(both), both / "m.gguf")
    assert said["status"] == 0, said["sentence"]
    number = int(re.match(r"All (\d+) stages", said["sentence"])[1])  # type: ignore[index]
    assert number >= 3 * 12 + 3
    kind = next((d for d in ("bfloat16", "float16") if d in e.name), "float32")
    words = said["recipe_words"].removeprefix("The engine computes with: ")
    assert kind in words and ("bfloat16" in words) == (kind == "bfloat16")


def test_each_row_of_a_batch(both: Path) -> None:
    if ENGINES[0].missing:
        pytest.skip("torch or transformers is not installed")
    path = batch(both)
    for row, prompt in enumerate(PROMPTS):
        said = verdict(path, both / "m.gguf", f"--row={row}")
        assert said["status"] == 0 and said["tokens"] == prompt, said["sentence"]


def test_the_paper_shows_every_engine() -> None:
    page = PAPER.read_text("utf-8")
    shown = page[page.index("qwenref.tests.oracle.one_page") :]
    assert all(re.search(f"(?m)^{re.escape(e.name)} ", shown) for e in ENGINES)
