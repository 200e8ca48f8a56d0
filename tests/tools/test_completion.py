"""engine completion: bash itself, with the script that is printed, completes what was typed"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenref.engine.aliases import DEFAULT, MODELS
from qwenref.tools.main import COMMANDS, main
from qwenref.trace.stages import STAGES

BASH = shutil.which("bash")

# What bash does at TAB: the function that `complete` has for the command, with the line in COMP_*. Its own splitting of
# a line (at = and : too) is read -a with COMP_WORDBREAKS for separators; these lines have blanks alone.
AT_TAB = """
eval "$(engine completion bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
read -ra COMP_WORDS <<< "$COMP_LINE"
case $COMP_LINE in *' ') COMP_WORDS+=('') ;; esac
COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
at=$(complete -p engine) && at=${at#*-F } && ${at%% *} engine
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands: `engine` on the PATH, a folder of pulled models, files of several kinds."""
    place = tmp_path_factory.mktemp("completion")
    (place / "bin").mkdir()
    command = place / "bin" / "engine"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m qwenref.tools.main "$@"\n', "utf-8")
    command.chmod(0o755)
    (place / "models").mkdir()
    (place / "models" / "pulled.gguf").touch()
    for name in ("mine.gguf", "mine.txt"):
        (place / name).touch()
    (place / "minefolder").mkdir()
    return place


def completed(line: str, place: Path) -> list[str]:
    assert BASH is not None
    here = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "QWENREF_MODELS": str(place / "models"),
        "HOME": str(place),
    }
    done = subprocess.run(
        [BASH, "--norc", "-c", AT_TAB, "bash", line], capture_output=True, text=True, check=False, cwd=place,
        env=os.environ | here, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_what_there_is(place: Path) -> None:
    assert completed("engine dump-", place) == ["dump-hf", "dump-llamacpp"]
    assert {*completed("engine ", place)} >= {*COMMANDS, "help"}
    assert completed("engine help ver", place) == ["verify"]
    assert completed("engine trace --save-tensor-", place) == ["--save-tensor-dir", "--save-tensor-layers"]
    assert completed("engine run --precision int", place) == ["int16", "int8"]
    names = [s.name for s in STAGES if s.name.startswith("attn_")]
    assert sorted(completed("engine trace --save-tensor attn_", place)) == sorted(names)
    assert completed("engine verify mine --stage lm_head,attn_nor", place) == ["lm_head,attn_norm"]
    assert {*completed("engine inspect ", place)} == {*MODELS, str(place / "models/pulled.gguf"), "mine.gguf"} | {
        f"{name}/" for name in ("bin", "minefolder", "models")
    }
    assert completed(f"engine run -m {DEFAULT[:14]}", place) == [m for m in MODELS if m.startswith(DEFAULT[:14])]
    assert {*completed("engine diff min", place)} == {"mine.gguf", "mine.txt", "minefolder/"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    told = capsys.readouterr()
    assert "engine" in told.out and "qwenref" in told.out and told.err == ""


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "pip install 'qwenref[completion]'" in told.err


def test_no_command_pays_for_it() -> None:
    """Not a module of it is imported by a command that was typed."""
    program = "import sys; from qwenref.tools.main import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    asked = program + "assert not {m for m in sys.modules if 'complet' in m and m != 'rlcompleter'}, sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", asked], capture_output=True, check=False).returncode == 0
