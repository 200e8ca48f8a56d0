"""What --help says of every command: in the width of a terminal, with nothing lost, and examples as they are typed"""

from __future__ import annotations

import argparse

import pytest

from qwenref.tools.help_text import HelpText
from qwenref.tools.main import COMMANDS, main, parser_for


def help_of(words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_eighty_columns_hold_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same words are there as in a terminal without end."""
    words = [command] if command else []
    text = help_of(words, 80, monkeypatch, capsys)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert text.split() == help_of(words, 10_000, monkeypatch, capsys).split()


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_lines_of_their_own(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of([command], 80, monkeypatch, capsys)
    (commands,) = (a for a in parser_for(command)._actions if isinstance(a, argparse._SubParsersAction))
    epilog = commands.choices[command].epilog
    examples = [line for line in str(epilog).splitlines() if f"engine {command} " in f"{line} "]
    assert examples
    assert [line for line in examples if line not in text.splitlines()] == []


def test_paragraphs_run_on_and_lists_do_not() -> None:
    parser = argparse.ArgumentParser("x", formatter_class=lambda prog: HelpText(prog, width=30), add_help=False)
    parser.description = "One paragraph,\nof two lines.\n\nA list:\n  - one\n  - two, longer than the width is\nend"
    said = "One paragraph, of two lines.\n\nA list:\n  - one\n  - two, longer than the width\n      is\nend\n"
    assert parser.format_help().partition("\n\n")[2] == said
