"""The prompt and the chat as they are given, and the tokenizer's own process, not to be forgotten or misled."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.files.convert import convert
from qwenref.engine.text.chat import Chat, chat_ids
from qwenref.errors import BadInput
from qwenref.tools.load import open_model, open_tokenizer
from qwenref.tools.main import main
from qwenref.tools.prompt import TokenizerProcess

from ..models import model, vocabulary
from ..tiny import tiny_weights, write_gguf

TEXT = "naïve café, 模型\n" * 300


TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% if documents %}{{ documents[0].title }}\n{% endif %}{% if loud is true %}LOUD{% endif %}"
    "{{ strftime_now('%d %b %Y, %H:%M') }}\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_template(path: Path, template: str) -> str:
    m = model()
    convert(replace(m, vocabulary=lambda: replace(vocabulary(272), chat_template=template)), path)
    return str(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return with_template(tmp_path_factory.mktemp("prompt") / "tiny.gguf", TEMPLATE)


def test_its_ids_and_text_are_those_of_one_process(tiny: str) -> None:
    here, template = open_tokenizer(open_model(tiny))
    with TokenizerProcess(TEXT, tiny) as process:
        ids, spelling = process.result()
        assert process.result() == (ids, spelling)
    assert ids == here.prompt_ids(TEXT) and len(ids) > 300
    assert spelling.decode(ids) == here.decode(ids) == TEXT
    assert (spelling.vocab_size, spelling.eos_ids) == (here.vocab_size, here.eos_ids)
    chat = Chat([{"role": "user", "content": TEXT}])
    with TokenizerProcess(chat, tiny) as process:
        assert process.result()[0] == chat_ids(here, template, chat)


def test_what_it_refuses_is_refused_here(tiny: str, tmp_path: Path) -> None:
    silent = str(write_gguf(tmp_path / "silent.gguf", tiny_weights()))
    for prompt, path, says in (
        (TEXT, silent, "has no tokenizer"),
        (TEXT, "/no/such.gguf", "/no/such.gguf"),
        (Chat([{"role": "user", "content": "\ud800"}]), tiny, "surrogate"),
    ):
        with TokenizerProcess(prompt, path) as process, pytest.raises(BadInput, match=says):
            process.result()


def test_its_death_is_one_line(tiny: str) -> None:
    with TokenizerProcess(TEXT, tiny) as process:
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
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(Path(tiny).read_bytes())
    monkeypatch.setattr("qwenref.tools.prompt.own_process", lambda module: [sys.executable, "-c", CUT])
    with TokenizerProcess(TEXT, str(file)) as process, pytest.raises(BadInput, match=r"cut.gguf: was cut to 0 bytes"):
        process.result()


def test_it_ends_with_its_caller(tiny: str) -> None:
    with TokenizerProcess(TEXT, tiny) as process:
        pass
    assert process._process.returncode is not None


def test_a_file_of_the_users_folder_is_not_imported(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickle", "jinja2", "markupsafe"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with TokenizerProcess(Chat([{"role": "user", "content": "x"}]), tiny) as process:
        assert process.result()[0]


def prompt_of(tiny: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `engine run --chat` makes of its arguments, as text."""
    assert main(["run", "-m", tiny, "--backend", "reference", "-n", "1", "--json", "--chat", *words]) == 0
    here, _ = open_tokenizer(open_model(tiny))
    return here.decode(json.loads(capsys.readouterr().out)["prompt_ids"])


def test_all_that_a_chat_may_be_given(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": "é"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "documents": [{"title": "T", "text": "x"}],
    }
    words = ["--date", "2026-01-31T12:00", "--template-arg", "loud=true"]
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
        words += [f"--{name}", str(tmp_path / name)]
    assert prompt_of(tiny, capsys, *words) == (
        '<|im_start|>tools\n[{"type": "function", "function": {"name": "f"}}]<|im_end|>\nT\nLOUD31 Jan 2026, 12:00\n'
        "<|im_start|>user\né<|im_end|>\n<|im_start|>assistant\n<tool_call>f<|im_end|>\n<|im_start|>assistant\n"
    )
    words = ["-p", "b", "--system", "a", "--date", "2026-01-31", "--template-arg", "add_generation_prompt=false"]
    said = "31 Jan 2026, 00:00\n<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    assert prompt_of(tiny, capsys, *words) == said
    dump = str(tmp_path / "dump")
    trace = ["trace", tiny, "--backend", "reference", "--save-tensor", "lm_head", "--save-tensor-dir", dump, "--chat"]
    assert main([*trace, *words]) == 0
    ids = json.loads((tmp_path / "dump" / "manifest.json").read_text())["run"]["tokens"]
    assert open_tokenizer(open_model(tiny))[0].decode(ids) == said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--messages", "no"), "--messages no: No such file"),
        (("--messages", "."), "--messages .: Is a directory"),
        (("--messages", "empty"), "--messages empty: not JSON"),
        (("--messages", "object"), "messages: a list"),
        (("--messages", "twice"), "stands twice"),
        (("--messages", "latin1"), "not UTF-8 at byte 2"),
        (("--messages", "half"), "surrogate"),
        (("--messages", "nobody"), "entry 0 is no object with a role"),
        (("-p", "x", "--messages", "good"), "--messages is the whole chat"),
        (("--system", "x", "--messages", "good"), "--messages is the whole chat"),
        (("-p", "x", "--tools", "object"), "tools: a list of objects"),
        (("-p", "x", "--documents", "twice"), "stands twice"),
        (("-p", "x", "--template-arg", "loud"), "write KEY=JSON"),
        (("-p", "x", "--template-arg", "a b=1"), "write KEY=JSON"),
        (("-p", "x", "--template-arg", "loud=yes"), "a text needs its quotes: loud='"),
        (("-p", "x", "--template-arg", "tools=[]"), "give --tools FILE"),
        (("-p", "x", "--template-arg", "loud=true", "--template-arg", "loud=false"), "loud is given twice"),
        (("-p", "x", "--template-arg", "lout=1"), "no variable 'lout'; it has add_generation_prompt, documents, loud,"),
        (("-p", "x", "--date", "tomorrow"), "'tomorrow' is no date"),
        (("-p", ""), "empty"),
    ],
)
def test_what_is_no_chat_is_one_line(
    words: tuple[str, ...],
    says: str,
    tiny: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {
        "empty": b"",
        "object": b"{}",
        "twice": b'[{"role": "user", "role": "system"}]',
        "latin1": b'["\xe9"]',
        "half": b'[{"role": "user", "content": "\\ud800"}]',
        "nobody": b'[{"content": "x"}]',
        "good": b'[{"role": "user", "content": "x"}]',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-m", tiny, "--backend", "reference", "-n", "1", "--chat", *words]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("flag", ["--system", "--messages", "--tools", "--documents", "--template-arg", "--date"])
def test_what_is_of_a_chat_needs_chat(flag: str, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run", "-m", tiny, "-p", "x"], ["trace", tiny, "--payload"]):
        assert main([*command, flag, "x"]) == 2
        assert f"{flag} is part of a chat; give --chat too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% set r = range(99999) %}{% for i in r if 1.5 in r %}{% endfor %}", "takes more than 2 s of processor time"),
        ("{{ raise_exception(foo) }}", "line 1: it refuses the messages and gives no reason"),
    ],
)
def test_a_template_that_hangs_or_refuses_is_one_line(
    template: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_template(tmp_path / "tiny.gguf", template)
    assert main(["run", "-m", path, "--backend", "reference", "--chat", "-p", "x", "-n", "1"]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and not out
