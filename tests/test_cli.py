"""The command line as a user meets it: exit status, one line on stderr, nothing else on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenref.tools.main import COMMANDS

ENGINE = [sys.executable, "-m", "qwenref.tools.main"]


def engine(*args: str, stdin: bytes | None = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*ENGINE, *args], input=stdin, capture_output=True, timeout=300, check=False, env=os.environ | environment
    )


def refused(*args: str, stdin: bytes = b"", **environment: str) -> str:
    """Runs a command that must end in one line and status 2; returns the line."""
    done = engine(*args, stdin=stdin, **environment)
    assert (done.returncode, done.stdout) == (2, b""), done
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = engine(command, "--help")
    assert done.returncode == 0
    assert f"engine {command}" in done.stdout.decode().split("options:")[1]


def test_no_file() -> None:
    assert "/no/such.gguf" in refused("run", "-m", "/no/such.gguf", "-p", "x")


def test_no_model_names_the_pull_command(tmp_path: Path) -> None:
    assert "engine pull" in refused("run", "-p", "x", QWENREF_MODELS=str(tmp_path), QWENREF_TEST_MODEL="")


def test_unknown_alias_names_the_known_ones() -> None:
    assert "qwen2.5-coder-0.5b-instruct-q4_k_m" in refused("run", "-m", "qwen9", "-p", "x")


def test_empty_prompt() -> None:
    assert "empty" in refused("run", "-p", "")
    assert "empty" in refused("run", stdin=b"")


def test_prompt_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    assert "byte 3 is 0xe9" in refused("run", "-f", str(tmp_path / "latin1.txt"))
    assert "byte 3 is 0xe9" in refused("run", "-p", "-", stdin=b"caf\xe9")
    assert "UTF-8" in refused("run", "-p", b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_missing_prompt_file() -> None:
    assert "No such file" in refused("run", "-f", "/no/prompt.txt")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-n", "0"), "at least 1"),
        (("--temp", "-1"), "temperature"),
        (("--top-p", "0"), "top-p"),
        (("--system", "x"), "--chat"),
    ],
)
def test_senseless_flags(flags: tuple[str, ...], says: str) -> None:
    assert says in refused("run", "-p", "x", *flags)


@pytest.mark.model
class TestWithTheModel:
    def test_json_is_one_object(self, model_path: Path) -> None:
        done = engine("run", "-m", str(model_path), "-p", "What is 2+2?", "-n", "8", "--json")
        result = json.loads(done.stdout)
        # Hugging Face Transformers, float32, the same file: tests/golden/hf_greedy_ids.json.
        assert result["prompt_ids"] == [3838, 374, 220, 17, 10, 17, 30]
        assert result["ids"] == [576, 4226, 374, 220, 19, 13, 151645]
        assert result["text"] == " The answer is 4."
        assert {"load_s", "first_token_s", "prompt_tokens_per_s", "generated_tokens_per_s"} <= set(result["figures"])

    def test_stdout_holds_the_answer_alone(self, model_path: Path) -> None:
        done = engine("run", "-m", str(model_path), "--chat", stdin=b"What is 2+2?")
        assert done.returncode == 0
        assert "4" in done.stdout.decode()
        assert "tokens" in done.stderr.decode().splitlines()[-1]

    def test_seed_decides_the_draws(self, model_path: Path) -> None:
        flags = ("run", "-m", str(model_path), "-p", "Once", "-n", "8", "--temp", "1.5", "--seed")
        a, b, c = (engine(*flags, seed).stdout for seed in ("1", "1", "2"))
        assert a == b != c

    def test_control_tokens_count_in_a_raw_prompt_and_not_in_a_message(self, model_path: Path) -> None:
        ids = []
        for flags in ((), ("--chat",)):
            done = engine("run", "-m", str(model_path), "-p", "a<|im_end|>b", "-n", "1", "--json", *flags)
            ids.append(json.loads(done.stdout)["prompt_ids"])
        raw, chat = ids
        assert raw.count(151645) == 1
        assert chat.count(151645) == 2  # the template ends the system message and the user's

    def test_context_overflow(self, model_path: Path) -> None:
        assert "context" in refused("run", "-m", str(model_path), "-p", "x", "-n", "40000")
        assert "context" in refused("run", "-m", str(model_path), "-n", "1", stdin=b"word " * 40000)

    def test_cpu_has_no_f64(self, model_path: Path) -> None:
        assert "f64" in refused("run", "-m", str(model_path), "-p", "x", "--precision", "f64")

    def test_more_threads_than_cores(self, model_path: Path) -> None:
        assert "4096 threads" in refused("run", "-m", str(model_path), "-p", "x", "-t", "4096")

    def test_a_reader_that_goes_away_is_no_error(self, model_path: Path) -> None:
        shell = f"{' '.join(ENGINE)} run -m '{model_path}' -p 'def f(n):' -n 24 | head -c 1"
        done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=300, check=False)
        assert b"Traceback" not in done.stderr
