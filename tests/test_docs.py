"""docs/python.md: its examples run, and say what it says they do."""

from __future__ import annotations

import contextlib
import doctest
import io
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.aliases import DEFAULT, MODELS
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert

from .models import model

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
EXAMPLES = doctest.DocTestParser().get_examples(PAGE.read_text("utf-8"))


@pytest.mark.model
def test_the_examples_say_what_the_page_says(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENREF_MODELS", str(model_path.parent))
    test = doctest.DocTest(EXAMPLES, {}, PAGE.name, str(PAGE), 0, None)
    told = doctest.DocTestRunner(verbose=False).run(test)
    assert (told.failed, told.attempted) == (0, len(EXAMPLES)), capsys.readouterr().out


def test_the_examples_run_with_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one in the alias's place: what an example prints, or the error that it raises, is of the page's kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENREF_MODELS", str(tmp_path))
    convert(model("Q8_0"), tmp_path / MODELS[DEFAULT].file)
    assert open_checkpoint(tmp_path / MODELS[DEFAULT].file).vocabulary() is not None
    names: dict[str, Any] = {}
    for example in EXAMPLES:
        out, error = io.StringIO(), None
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(example.source, PAGE.name, "single"), names)
        except ValueError as e:
            error = f"{type(e).__module__}.{type(e).__name__}"
        said = bool(example.want) and example.exc_msg is None
        assert bool(out.getvalue()) == said, example.source
        assert (example.exc_msg or "").partition(":")[0] == (error or ""), example.source
