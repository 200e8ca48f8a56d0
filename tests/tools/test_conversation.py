"""engine run on a terminal: turns, Ctrl-C, Ctrl-D, and what is kept between them."""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.files.convert import convert
from qwenref.tools import conversation
from qwenref.tools.load import load_as_asked, open_tokenizer, open_weights
from qwenref.tools.main import main, parser_for

from ..models import model

ENGINE = [sys.executable, "-m", "qwenref.tools.main"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("talk") / "tiny.gguf"
    convert(model("Q8_0"), path)
    return str(path)


def talk(tiny: str, *words: str) -> conversation.Talk:
    args = parser_for("run").parse_args(["run", *words])
    args.model = tiny
    opened = open_weights(tiny)
    tokenizer, template = open_tokenizer(opened.checkpoint)
    assert template
    return conversation.Talk(args, load_as_asked(args, opened), tokenizer, template)


def test_the_second_turn_is_that_of_the_whole_chat(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = talk(tiny, "-n", "3", "--system", "low")
    one.answer("the")
    first = one.messages[-1]["content"]
    one.answer("low")
    said = capsys.readouterr().out.splitlines()
    assert [m["role"] for m in one.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert said[:1] == first.split("\n")[:1]
    other = talk(tiny, "-n", "3", "--system", "low")
    other.messages = one.messages[:-2]
    other.answer("low")
    assert other.messages == one.messages
    one.begin()
    assert one.messages == [{"role": "system", "content": "low"}]


def test_ctrl_c_ends_the_answer_and_keeps_it(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole: Callable[..., Iterator[int]] = conversation.generate

    def told(*given: Any, **how: Any) -> Iterator[int]:
        for number, token in enumerate(whole(*given, **how)):
            yield token
            if number == 1:
                raise KeyboardInterrupt

    one = talk(tiny, "-n", "9")
    monkeypatch.setattr(conversation, "generate", told)
    one.answer("low")
    monkeypatch.undo()
    assert [m["role"] for m in one.messages] == ["user", "assistant"]
    one.answer("the")
    assert len(one.messages) == 4


def test_what_does_not_fit_is_taken_back(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = talk(tiny, "-n", "99999")
    one.answer("low")
    assert one.messages == [] and "do not fit the context of" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal(tiny: str) -> None:
    there, here = os.openpty()
    words = [*ENGINE, "run", tiny, "-n", "2"]
    with subprocess.Popen(words, stdin=here, stdout=here, stderr=subprocess.PIPE, start_new_session=True) as process:
        os.close(here)
        heard = b""

        def until(count: int, again: Callable[[], object] = lambda: None) -> None:
            """A signal that comes just before the terminal is waited for is seen with the next key only."""
            nonlocal heard
            for _ in range(60):
                again()
                while select.select([there], [], [], 1)[0]:
                    heard += os.read(there, 4096)
                    if heard.count(b"> ") >= count:
                        return
            process.kill()
            raise AssertionError(heard)

        until(1)
        os.write(there, b"low\n")
        until(2)
        until(3, lambda: process.send_signal(2))  # at the prompt: a new line, no more
        os.write(there, b"/new\n")
        until(heard.count(b"> ") + 1)
        os.write(there, b"\x04")
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read().decode().splitlines()[-1] == conversation.HINT
    os.close(there)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "--json is the answer to one prompt"),
        (["--date", "2026-01-31"], "--date belongs to a prompt"),
    ],
)
def test_what_only_a_prompt_has(
    words: list[str], said: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qwenref.tools.run.talks", lambda args: True)
    assert main(["run", tiny, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    plain = model("Q8_0")
    vocabulary = plain.vocabulary()
    assert vocabulary is not None
    path = tmp_path / "plain.gguf"
    convert(replace(plain, vocabulary=lambda: replace(vocabulary, chat_template=None)), path)
    args = argparse.Namespace(**vars(parser_for("run").parse_args(["run"])) | {"model": str(path)})
    with pytest.raises(conversation.BadInput, match="has no chat template to talk by"):
        conversation.converse(args)
