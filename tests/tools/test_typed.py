"""What a user types who does not remember how it is spelled: words that stand alone, mistakes, the other way round."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from qwenref.engine.aliases import DEFAULT, MODELS
from qwenref.engine.files.convert import convert
from qwenref.tools.main import main

from ..models import model
from .test_cli import engine


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trcae"], "trace"),
        (["run", "--precison", "int8", "-p", "x"], "--precision"),
        (["run", "--precision", "int9", "-p", "x"], "int8"),
        (["trace", "--save-tensor", "ffn_outt"], "ffn_out"),
        (["pull", "qwen2.5-coder-0.5b-instruct"], "qwen2.5-coder-0.5b-instruct-q4_k_m"),
        (["inspect", "qwen2.5-coder-1.5b-instruct-q4_k"], "qwen2.5-coder-1.5b-instruct-q4_k_m"),
        (["help", "verfy"], "verify"),
        (["show", "dump", "ffn_outt"], "ffn_out"),
        (["show", "qwen2.5-coder-0.5b-instruct", "ffn_out"], "qwen2.5-coder-0.5b-instruct-q4_k_m"),
    ],
)
def test_a_mistyped_word_is_recognised(words: list[str], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"did you mean {near}?" in line


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "run"]):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 0 and "engine run" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("typed") / "tiny.gguf"
    convert(model("Q8_0"), path)
    return path


def test_words_that_stand_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model, a prompt, or one after the other; the model may come from the environment."""
    monkeypatch.chdir(tiny.parent)
    monkeypatch.setenv("QWENREF_MODEL", str(tiny))
    how = ["--backend", "reference", "-n", "3"]
    answers = []
    for words in (
        ["-p", "the low low"], ["the low low"], ["tiny.gguf", "the low low"], ["-m", "tiny.gguf", "the low low"]
    ):  # fmt: skip
        assert main(["run", *words, *how]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny.gguf", "low", "the"], "'low the': several words make a prompt in quotes only"),
        (["the low", "-p", "the"], "'the low' would be the prompt, and there is --prompt; leave one of them away"),
        (
            ["the low", "--tokens", "1,2"],
            "'the low' would be the prompt, and there is --tokens; leave",
        ),
        (["tinny", "-p", "x"], "model 'tinny' is neither a file nor"),
        (["tinny.gguf", "-p", "x"], "tinny.gguf: No such file or directory"),
    ],
)
def test_words_that_do_not_fit(
    words: list[str], said: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.parent)
    assert main(["run", *words]) == 2
    assert capsys.readouterr().err.startswith(f"engine run: {said}")


def test_a_model_that_the_environment_names_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWENREF_MODEL", "nothing")
    assert main(["inspect"]) == 2
    assert capsys.readouterr().err.startswith("engine inspect: QWENREF_MODEL: model 'nothing' is neither a file")


def test_dump_and_model_the_other_way_round(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump, ids = str(tmp_path / "dump"), ["--tokens", "3,4"]
    how = ["--backend", "reference", "--save-tensor", "all", "--save-tensor-dir", dump]
    assert main(["trace", str(tiny), *ids, *how]) == 0
    capsys.readouterr()
    assert main(["verify", str(tiny), dump]) == 0
    told = capsys.readouterr()
    assert told.err == f"note: taken as engine verify DUMP MODEL: {dump} is the dump, {tiny} the model\n"
    assert main(["diff", dump, str(tiny)]) == 2
    assert "is a model; engine diff compares two dumps" in capsys.readouterr().err
    assert main(["diff", str(tiny), str(tiny)]) == 2
    assert "are models; engine diff --weights compares them" in capsys.readouterr().err
    assert main(["run", "-m", dump, *ids]) == 2
    assert "a dump of stages, no model; engine verify DUMP MODEL judges it" in capsys.readouterr().err


def test_the_list_of_models(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with one of them, a part of another and a stranger, and in the hub's cache."""
    models, cache = tmp_path / "models", tmp_path / "hub"
    one, two = (m.file for m in MODELS.values())
    models.mkdir()
    for name in (one, f"{two}.part", "mine.gguf", "notes.txt"):
        (models / name).write_bytes(bytes(10))
    snapshot = cache / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "models--a--b" / "blobs").mkdir()
    for name in ("config.json", "model.safetensors"):
        (cache / "models--a--b" / "blobs" / name).write_bytes(bytes(5))
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    done = engine("list", "--json", QWENREF_MODELS=str(models), HF_HUB_CACHE=str(cache), QWENREF_MODEL="")
    found = {m["model"]: (m["bytes"], m["state"]) for m in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (0, b"")
    assert found.pop(DEFAULT) == (10, "the default")
    assert found.pop(str(models / "mine.gguf")) == (10, "in the models' folder")
    assert found.pop(str(snapshot)) == (10, "a/b in Hugging Face's cache")
    ((alias, (size, state)),) = found.items()
    assert size == 10 and alias in MODELS and state == "a part; engine pull goes on"
    nothing = engine("list", QWENREF_MODELS=str(tmp_path / "no"), HF_HUB_CACHE=str(tmp_path / "no"))
    assert nothing.returncode == 0 and nothing.stdout.count(b"not here; engine pull") == 2


def test_formats_in_any_case(tiny: Path, tmp_path: Path) -> None:
    assert main(["convert", str(tiny), str(tmp_path / "a.gguf"), "--quantize", "Q4_0"]) == 0
