"""The papers are true: their Python examples run, their console blocks are run, and every command line is one.

A console block that no test can run has a line `<!-- not run by tests: REASON -->` before it.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from qwenref.engine.aliases import DEFAULT, MODELS
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.tools.main import COMMANDS, ELSEWHERE, main, parser_for

from .models import model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"
EXAMPLES = doctest.DocTestParser().get_examples(PAGE.read_text("utf-8"))
PAPERS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRONG = ROOT / "docs" / "mistakes.md"  # whose command lines are to fail (tests/tools/test_mistakes_said.py)
PAPERS += sorted((ROOT / "skills").rglob("*.md"))


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


# ---- console blocks


@dataclass(frozen=True)
class Step:
    """A line behind `$`, and the lines that a reader is told to expect."""

    line: str
    said: tuple[str, ...]


def blocks(page: Path) -> Iterator[list[Step]]:
    """The console blocks of a page that are to be run. One that can not be says why in the line before."""
    text = page.read_text("utf-8")
    for found in re.finditer(r"(?m)(?:^<!-- not run by tests: (\S.*) -->\n)?^```console\n((?s:.*?))^```$", text):
        if found[1]:
            continue
        steps: list[Step] = []
        for line in found[2].splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:], ()))
            else:
                steps[-1] = Step(steps[-1].line, (*steps[-1].said, line))
        yield steps


def same(a: str, b: str) -> bool:
    """Equal but for the figures' last digits: errors of float64's cosine or exponential differ from libm to libm."""
    number = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")
    pairs = zip(number.findall(a), number.findall(b), strict=False)
    return number.sub("", a) == number.sub("", b) and all(isclose(float(x), float(y), rel_tol=0.01) for x, y in pairs)


def unlike(said: tuple[str, ...], printed: list[str]) -> str:
    """The first line that is not as the page says, if one is. `...` is any number of lines, none too."""
    at, any_number = 0, False
    for line in said:
        if line == "...":
            any_number = True
            continue
        while any_number and at < len(printed) and not same(printed[at], line):
            at += 1
        if at == len(printed) or not same(printed[at], line):
            return f"says  {line}\nprints {printed[at] if at < len(printed) else 'no such line'}"
        at, any_number = at + 1, False
    return "" if any_number or at == len(printed) else f"prints also {printed[at]}"


CONSOLES = {page.name: list(blocks(page)) for page in PAPERS}


def test_console_blocks_are_found() -> None:
    assert sum(map(len, CONSOLES.values())) >= 3, "the pages have such blocks; this looks for them in vain"


@pytest.mark.model
@pytest.mark.parametrize("page", [name for name, found in CONSOLES.items() if found])
def test_console_blocks_say_what_is_printed(
    page: str, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In order, in one folder, beside the model that they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QWENREF_MODELS", str(model_path.parent))
    (tmp_path / model_path.name).symlink_to(model_path)
    status = 0
    for step in (step for steps in CONSOLES[page] for step in steps):
        if step.line == "echo $?":
            printed = [str(status)]
        else:
            program, *words = shlex.split(step.line)
            assert program == "engine", f"{step.line}: say before the block why no test runs it"
            status = main(words)
            told = capfd.readouterr()
            printed = [*told.out.splitlines(), *re.findall(r"(?m)^engine .*$", told.err)]  # on a screen both are seen
        assert not unlike(step.said, printed), f"{page}: $ {step.line}"


# ---- command lines


def command_lines() -> Iterator[tuple[str, str, bool]]:
    """(where, command line, whether it is whole): those in blocks, in sentences, and those that helps end in."""
    for page in (p for p in PAPERS if p != WRONG):
        fenced = False
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            where = f"{page.relative_to(ROOT)}:{number}"
            if line.startswith("```"):
                fenced = not fenced
            elif fenced or line.startswith("    "):
                if found := re.search(r"(?:^\s*(?:\$ )?|\bdo )(engine (?!trace:).*)", line):
                    yield where, found[1], "[" not in found[1]
            else:
                yield from ((where, inline, False) for inline in re.findall(r"`(engine [^`]+)`", line))
    for name in COMMANDS:
        for number, line in enumerate(help_of(name).splitlines(), 1):
            if found := re.match(r"\s+(?:\w+=\S+ )?(engine \S.*)", line):
                yield f"engine {name} --help:{number}", found[1], True


def help_of(command: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        parser_for(command).parse_args([command, "--help"])
    return out.getvalue().partition("\noptions:")[2].partition("\nexample")[2]


def words_of(line: str) -> list[str]:
    """A command's words, without what a shell does with its output."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;>&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|;>&"):
            break
        words.append(word)
    return [re.sub(r"^\$\w+$", "1", word) for word in words[1:]]


@pytest.mark.parametrize(("where", "line", "whole"), [pytest.param(*x, id=x[0]) for x in command_lines()])
def test_every_command_line_is_one(where: str, line: str, whole: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """Its command exists, and so does each of its options; a whole line (not a name, nor a synopsis) is understood."""
    command, *words = words_of(line)
    assert command in COMMANDS, f"{where}: there is no engine {command}"
    parser = parser_for(command)
    if whole:
        try:
            parser.parse_args([command, *words])
        except SystemExit:
            pytest.fail(f"{where}: {line}\n{capfd.readouterr().err}")
    else:
        (group,) = (a for a in parser._actions if a.dest == "command")
        known = group.choices[command]._option_string_actions  # type: ignore[index,union-attr]
        assert {w.strip("[]") for w in words if w.lstrip("[").startswith("-")} <= set(known), where


OTHERS = {
    "llama.cpp": "--save-all-logits --kl-divergence-base --yarn-beta-fast --yarn-beta-slow --merge --lora",
    "pip": "--quiet --no-deps --only-binary --no-cache-dir --no-input --retries --timeout --dest",
    "engine itself": "--version",
}


def test_no_message_names_an_option_that_nothing_has() -> None:
    known = {option for options in OTHERS.values() for option in options.split()}
    for name in COMMANDS:
        (group,) = (a for a in parser_for(name)._actions if a.dest == "command")
        known |= set(group.choices[name]._option_string_actions)  # type: ignore[index,union-attr]
    assert set(ELSEWHERE.values()) <= known | set(COMMANDS)
    known |= set(ELSEWHERE)
    named: dict[str, str] = {}
    for path in (p for folder in ("engine", "quant", "trace", "tools") for p in (ROOT / folder).rglob("*.py")):
        if path.parent.name == "dev":  # programs with options of their own
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]+(?![\w-]*[:)])", node.value):  # not CSS's
                    named.setdefault(option, f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {option: where for option, where in named.items() if option not in known} == {}
