"""The tokenizer's own process: the ids that one process would find, and no way for it to be forgotten or misled."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import pytest

from qwenref.quant.errors import BadInput
from qwenref.tools.convert import convert
from qwenref.tools.load import open_model, open_tokenizer
from qwenref.tools.prompt import TokenizerProcess

from .models import model
from .tiny import tiny_weights, write_gguf

TEXT = "naïve café, 模型\n" * 300


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> argparse.Namespace:
    path = tmp_path_factory.mktemp("prompt") / "tiny.gguf"
    convert(model(), path)
    return argparse.Namespace(model=str(path), chat=False, system=None)


def test_its_ids_and_text_are_those_of_one_process(arguments: argparse.Namespace) -> None:
    here, _ = open_tokenizer(open_model(arguments.model))
    with TokenizerProcess(TEXT, arguments) as process:
        ids, spelling = process.result()
        assert process.result() == (ids, spelling)
    assert ids == here.prompt_ids(TEXT) and len(ids) > 300
    assert spelling.decode(ids) == here.decode(ids) == TEXT
    assert (spelling.vocab_size, spelling.eos_ids) == (here.vocab_size, here.eos_ids)


def test_what_it_refuses_is_refused_here(arguments: argparse.Namespace, tmp_path: Path) -> None:
    silent = write_gguf(tmp_path / "silent.gguf", tiny_weights())
    for request, says in (
        ({"model": str(silent)}, "has no tokenizer"),
        ({"model": "/no/such.gguf"}, "/no/such.gguf"),
        ({"system": "\ud800", "chat": True}, "surrogate"),
    ):
        asked = argparse.Namespace(**vars(arguments) | request)
        with TokenizerProcess(TEXT, asked) as process, pytest.raises(BadInput, match=says):
            process.result()


def test_its_death_is_one_line(arguments: argparse.Namespace) -> None:
    with TokenizerProcess(TEXT, arguments) as process:
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(BadInput, match="ended with status -9"):
            process.result()


CUT = """
import os, sys
from qwenref.engine import files
from qwenref.tools import prompt
opened = files.open_checkpoint
def cut(path):
    checkpoint = opened(path)
    os.truncate(path, 0)
    return checkpoint
files.open_checkpoint = cut
prompt.serve()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system says which file a fault was in")
def test_a_file_that_is_cut_under_it_is_refused_here(
    arguments: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(Path(arguments.model).read_bytes())
    monkeypatch.setattr("qwenref.tools.prompt.own_process", lambda module: [sys.executable, "-c", CUT])
    asked = argparse.Namespace(**vars(arguments) | {"model": str(file)})
    with TokenizerProcess(TEXT, asked) as process, pytest.raises(BadInput, match=r"cut.gguf: was cut to 0 bytes"):
        process.result()


def test_it_ends_with_its_caller(arguments: argparse.Namespace) -> None:
    with TokenizerProcess(TEXT, arguments) as process:
        pass
    assert process._process.returncode is not None


def test_a_file_of_the_users_folder_is_not_imported(
    arguments: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with TokenizerProcess("x", arguments) as process:
        assert process.result()[0]
