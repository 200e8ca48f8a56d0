"""engine compile: what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenref.engine.files.convert import convert
from qwenref.tools.main import main

from ..models import model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compile") / "tiny.gguf"
    convert(model("Q8_0"), path)
    return str(path)


def test_the_second_time_nothing_is_compiled(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", tiny, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["compile", tiny]) == 0
    told = capsys.readouterr()
    assert told.err == "" and told.out.startswith(f"{first['kernels']} kernels, 0 compiled in ")
    assert Path(first["folder"]).is_dir()


def test_all_and_a_model(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", tiny, "--all"]) == 2
    assert capsys.readouterr().err == f"engine compile: --all is for every model; {tiny} is one\n"


def test_a_cache_that_can_not_be_had(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenref.engine.kernels.cpu.machine.compiled.store", lambda: None)
    assert main(["compile", tiny]) == 2
    assert capsys.readouterr().err.startswith("engine compile: kernels can not be kept: ")
