"""Model files that other tools made (docs/corpus.md): opened, run, inspected and converted, held to what their makers said.

tests/corpus/make.py made the files and the expectations, and names its tools.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.bind import bind
from qwenref.engine.chat import chat_ids
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.generate import generate
from qwenref.engine.kernels import backend
from qwenref.engine.tokenizer import Tokenizer
from qwenref.tools.convert import convert
from qwenref.tools.load import open_tokenizer
from qwenref.tools.main import main

from .corpus.table import render

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "corpus" / "expected.json").read_text(encoding="utf-8"))
MODELS = {m["name"]: m for m in EXPECTED["models"]}
RUN = [name for name, m in MODELS.items() if "refused" not in m]
REFUSED = [name for name, m in MODELS.items() if "refused" in m]

# What the engine gets wrong, and why. Each is a strict xfail: one that is cured must leave this list.
KNOWN_FAILING: dict[str, str] = {}


def named(names: list[str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=KNOWN_FAILING[name]))
        if name in KNOWN_FAILING
        else name
        for name in names
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(HERE / "corpus" / "models.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


def answers(m: Checkpoint, runs: list[dict[str, Any]], ends: tuple[int, ...], on: str) -> Iterator[list[int]]:
    """Greedy ids after each of the prompts, as `engine run` finds them, in f32."""
    k = backend(on)
    w = k.prepare(bind(m.config, m.tensors), "f32")
    for run in runs:
        yield list(generate(run["prompt_ids"], w, k, "f32", len(run["ids"]), ends))


def tokenizer(m: Checkpoint) -> tuple[Tokenizer | None, str | None]:
    return open_tokenizer(m) if m.vocabulary() else (None, None)


def check(path: Path, want: dict[str, Any], on: str) -> None:
    """Tokenizer and answers of a model against its maker's."""
    m = open_checkpoint(path)
    t, template = tokenizer(m)
    assert (t is not None) == ("tokenizer" in want)
    if t is not None:
        said = EXPECTED["tokenizers"][want["tokenizer"]]
        for text, ids in zip(EXPECTED["texts"], said["texts"], strict=True):
            assert t.prompt_ids(text) == ids, text
        if "nfd" in said:
            assert t.prompt_ids(EXPECTED["nfd"]) == said["nfd"]
        if "chat" in said:
            assert chat_ids(t, template, EXPECTED["chat"]) == said["chat"]
        for run in want["runs"]:
            assert t.prompt_ids(run["text"]) == run["prompt_ids"]
    ends = t.eos_ids if t is not None else ()
    assert list(answers(m, want["runs"], ends, on)) == [run["ids"] for run in want["runs"]]


@pytest.mark.parametrize("name", named(RUN))
def test_a_model_that_another_tool_made(name: str, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    want = MODELS[name]
    path = corpus / want["path"]
    check(path, want, "cpu")

    assert main(["inspect", str(path), "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    config = told["config"] | {"tied": told["config"]["tie_word_embeddings"]}
    for field, value in want["config"].items():
        assert config[field] == pytest.approx(value, rel=1e-6), field
    if "formats" in want:
        assert sorted(row["format"] for row in told["formats"]) == want["formats"]

    source = path
    for target in ("a.gguf", "b.apr", "c", "d.gguf"):
        convert(open_checkpoint(source), tmp_path / target)
        check(tmp_path / target, want, "reference")
        source = tmp_path / target


@pytest.mark.parametrize("name", named(REFUSED))
def test_a_model_that_must_be_refused(name: str, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """One line that names what it is and the way out; nothing on stdout, nothing written."""
    path = str(corpus / MODELS[name]["path"])
    for words in (["run", path, "-p", "x"], ["convert", path, str(tmp_path / "out.gguf")]):
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        for word in MODELS[name]["refused"]:
            assert re.search(word, err), (word, err)
    assert list(tmp_path.iterdir()) == []


def test_the_page_in_docs_is_this_corpus() -> None:
    assert (HERE.parent / "docs" / "corpus.md").read_text(encoding="utf-8") == render(EXPECTED)
    assert len(MODELS) >= 60
