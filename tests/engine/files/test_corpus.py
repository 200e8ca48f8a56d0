"""Model files that other tools made (docs/corpus.md): run, inspected and converted, held to what their makers said.

tests/corpus/make.py made the files and the expectations, and names its tools.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwenref
from qwenref.engine.bind import bind
from qwenref.engine.files import Checkpoint, open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.generate import generate
from qwenref.engine.kernels import reference
from qwenref.engine.load import bound, load
from qwenref.engine.text.chat import Chat, chat_ids
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.engine.weights import Layer, Weights
from qwenref.quant.tensor import QTensor
from qwenref.tools.load import open_tokenizer
from qwenref.tools.main import main

from ...corpus.table import render

HERE = Path(__file__).parents[2]
EXPECTED = json.loads((HERE / "corpus" / "expected.json").read_text(encoding="utf-8"))
MODELS = {m["name"]: m for m in EXPECTED["models"]}
RUN = [name for name, m in MODELS.items() if "runs" in m]
ROWS = [name for name, m in MODELS.items() if "rows" in m]
REFUSED = [name for name, m in MODELS.items() if "refused" in m]

# What the engine gets wrong, by what is wrong. Each is a strict xfail: a model that is cured must leave the list.
FAULTS: dict[str, str] = {}
# Whose CPU kernels no other test compiles: that would take a minute. They run on the reference backend, and by `make
# matrix` on the CPU's.
SELDOM = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "TQ1_0"}
KNOWN_FAILING = {name: fault for fault, names in FAULTS.items() for name in names.split()}


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


def on_backends(names: list[str]) -> list[Any]:
    """Names and backends."""
    found = []
    for name in names:
        marks = [pytest.mark.xfail(strict=True, reason=KNOWN_FAILING[name])] if name in KNOWN_FAILING else []
        if SELDOM & set(MODELS[name].get("formats", ())):
            found.append(pytest.param(name, "reference", marks=marks))
            marks = [*marks, pytest.mark.matrix]
        found.append(pytest.param(name, "cpu", marks=marks))
    return found


def answers(m: Checkpoint, runs: list[dict[str, Any]], ends: tuple[int, ...], backend: str) -> Iterator[list[int]]:
    """Greedy ids after each of the prompts, as `engine run` finds them, in f32; with room for more where it ended."""
    loaded = load(bound(m), backend)
    for run in runs:
        room = len(run["ids"]) + (5 if run.get("ended") else 0)
        yield list(generate(run["prompt_ids"], loaded.weights, loaded.kernels, "f32", room, ends))


def check(path: Path, want: dict[str, Any], backend: str) -> tuple[Tokenizer | None, str | None]:
    """Tokenizer and answers of a model against its maker's. Returns the tokenizer and the chat template."""
    m = open_checkpoint(path)
    t, template = open_tokenizer(m) if m.vocabulary() else (None, None)
    assert (t is not None) == ("tokenizer" in want)
    if t is not None:
        said = EXPECTED["tokenizers"][want["tokenizer"]]
        for text, ids in zip(EXPECTED["texts"], said["texts"], strict=True):
            assert t.prompt_ids(text) == ids, text
        if "nfd" in said:
            assert t.prompt_ids(EXPECTED["nfd"]) == said["nfd"]
        for run in want["runs"]:
            assert t.prompt_ids(run["text"]) == run["prompt_ids"]
    ends = t.eos_ids if t is not None else ()
    assert list(answers(m, want["runs"], ends, backend)) == [run["ids"] for run in want["runs"]]
    return t, template


@pytest.mark.parametrize(("name", "backend"), on_backends(RUN))
def test_a_model_that_another_tool_made(name: str, backend: str, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    want = MODELS[name]
    path = corpus / want["path"]
    t, template = check(path, want, backend)
    if t is not None and "chat" in (said := EXPECTED["tokenizers"][want["tokenizer"]]):
        assert chat_ids(t, template, Chat(EXPECTED["chat"])) == said["chat"]

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
        assert check(tmp_path / target, want, backend)[1] == template
        source = tmp_path / target


@pytest.mark.parametrize("name", named(ROWS))
def test_a_model_without_logits_that_another_tool_made(name: str, corpus: Path, tmp_path: Path, capsys: Any) -> None:
    """Its rows or scores, to float32's rounding in two engines, also of a copy; engine run says what it is."""
    want = MODELS[name]
    convert(open_checkpoint(corpus / want["path"]), tmp_path / "copy")
    for path in (corpus / want["path"], tmp_path / "copy"):
        m = qwenref.load(path)
        assert main(["inspect", str(path), "--check"]) == 0 and capsys.readouterr().out
        assert main(["run", str(path), "-p", "x"]) == 2 and "engine " in capsys.readouterr().err
        for row in want["rows"]:
            got = m.score(row["text"]) if m.config.head.labels else m.embed(row["text"], normalize=False)
            assert m.prompt_ids(row["text"]) == row["prompt_ids"]
            assert np.abs(got - row["values"]).max() < 1e-5 * np.abs(row["values"]).max()


MISTAKES: dict[str, Callable[[Weights], Weights]] = {
    "another theta": lambda w: replace(w, inv_freq_h=w.inv_freq_h**1.1),
    "no rotary embedding": lambda w: replace(w, inv_freq_h=0 * w.inv_freq_h),
    "keys without bias": lambda w: replace(w, layers=tuple(replace(x, qkv_bias_E=no_bias(x)) for x in w.layers)),
    "keys and values exchanged": lambda w: replace(
        w, layers=tuple(replace(x, qkv=(x.qkv[0], *x.qkv[:0:-1])) for x in w.layers)
    ),
    "gate and up exchanged": lambda w: replace(w, layers=tuple(replace(x, gate_up=x.gate_up[::-1]) for x in w.layers)),
    "the layers' norms exchanged": lambda w: replace(
        w, layers=tuple(replace(x, attn_norm_D=x.ffn_norm_D, ffn_norm_D=x.attn_norm_D) for x in w.layers)
    ),
}


def no_bias(x: Layer) -> tuple[QTensor, QTensor, QTensor]:
    q, k, v = x.qkv_bias_E
    return q, replace(k, data=0 * k.data), v


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["t5-bf16-sharded", "t5-f32-tied", "gguf-f32", "quant-q4_0"])
def test_the_answers_would_show_a_mistake(name: str, mistake: str, corpus: Path) -> None:
    want = MODELS[name]
    m = open_checkpoint(corpus / want["path"])
    right = bind(m.config, m.tensors)
    for weights, same in ((right, True), (MISTAKES[mistake](right), False)):
        w = reference.prepare(weights, "f32")
        ids = [list(generate(run["prompt_ids"], w, reference, "f32", len(run["ids"]))) for run in want["runs"]]
        assert (ids == [run["ids"] for run in want["runs"]]) is same


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
    assert f"{len(MODELS)} small ones" in (HERE.parent / "README.md").read_text(encoding="utf-8")
    assert len(MODELS) >= 60
