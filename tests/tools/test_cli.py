"""The command line as a user meets it: exit status, one line on stderr, nothing else on stdout."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine import generate
from qwenref.engine.files.convert import convert
from qwenref.engine.text.tokenizer import Tokens
from qwenref.tools import run
from qwenref.tools.main import COMMANDS, main
from qwenref.tools.progress import progress
from qwenref.trace import aprt

from ..gguf_builder import U32, Gguf
from ..models import model

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


def test_the_newline_that_ends_a_file_is_no_part_of_the_prompt(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp's -f drops one too. What -p says is said on purpose."""
    file = tmp_path / "prompt.txt"
    for said, meant in ((b"hi", b"hi"), (b"hi\n", b"hi"), (b"hi\n\n", b"hi\n"), (b"hi \r\n", b"hi \r")):
        file.write_bytes(said)
        flags = ("run", "-m", str(tiny), "--backend", "reference", "-n", "1", "--json")
        from_file, from_pipe = engine(*flags, "-f", str(file)), engine(*flags, stdin=said)
        exact = engine(*flags, "-p", meant.decode())
        ids = [json.loads(done.stdout)["prompt_ids"] for done in (from_file, from_pipe, exact)]
        assert ids[0] == ids[1] == ids[2] and len(ids[0]) == len(meant)
    assert "empty" in refused("run", stdin=b"\n")


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer and a context of 24, and four bytes behind its last tensor."""
    m = model()
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(replace(m, config=replace(m.config, max_position_embeddings=24)), path)
    with path.open("ab") as file:
        file.write(bytes(4))
    return path


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `$ENGINE ...` in bash, for redirections."""
    with_engine = line.replace("ENGINE", shlex.join(ENGINE))
    return subprocess.run(["bash", "-c", with_engine], capture_output=True, timeout=300, check=False)


def assert_one_line(done: subprocess.CompletedProcess[bytes], says: str) -> None:
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert says in line and line.startswith("engine ")


@pytest.mark.parametrize(
    "words", [(), ("nosuch",), ("run", "-n", "x"), ("run", "-p", "x", "-f", "y"), ("diff", "a"), ("--nosuch",)]
)
def test_a_mistake_in_the_arguments_is_one_line(words: tuple[str, ...]) -> None:
    assert "--help" in refused(*words)


def test_streams_that_the_caller_has_closed(tiny: Path) -> None:
    assert_one_line(shell(f"ENGINE run -m '{tiny}' --backend reference <&-"), "empty")
    assert_one_line(shell(f"ENGINE run -m '{tiny}' --backend reference -p x >&-"), "stdout is closed")
    silent = shell(f"ENGINE run -m '{tiny}' --backend reference -p '' 2>&-")
    assert (silent.returncode, silent.stdout) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["run -p x", "run -p x --json", "inspect", "trace --payload"])
def test_stdout_on_a_full_disk(command: str, tiny: Path) -> None:
    name = command.split(maxsplit=1)[0]
    backend = "" if name == "inspect" else "--backend reference"
    done = shell(f"ENGINE {command} -m '{tiny}' {backend} >/dev/full")
    says = f"engine {name}: stdout did not take all of the answer: No space left on device; send it elsewhere"
    assert done.returncode == 2 and done.stderr.decode().splitlines()[-1] == says
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", ["run -p x", "inspect --tensors", "trace --payload"])
def test_a_reader_that_went_away(command: str, tiny: Path) -> None:
    backend = "" if "inspect" in command else "--backend reference"
    done = shell(f"ENGINE {command} -m '{tiny}' {backend} | (exec <&-; sleep 0.1); echo ${{PIPESTATUS[0]}}")
    assert done.stdout == b"141\n" and b"Traceback" not in done.stderr


def test_text_that_the_terminal_cannot_show(tiny: Path, tmp_path: Path) -> None:
    name = tmp_path / "模型.gguf"
    name.symlink_to(tiny)
    done = engine("inspect", str(name), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and rb"\u6a21\u578b.gguf" in done.stdout


def test_system_errors_that_no_command_expects(tmp_path: Path, tiny: Path) -> None:
    assert "File name too long" in refused("trace", str(tiny), "--save-tensor", "all", "--save-tensor-dir", "a" * 300)


def test_an_interrupt_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwenref.tools.main.parser_for", interrupted)
    assert main(["run", "-p", "x"]) == 130


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_much(args: object) -> int:
        raise MemoryError("Unable to allocate 8.00 TiB")

    monkeypatch.setattr(run, "main", too_much)
    assert main(["run", "-p", "x"]) == 2
    assert capsys.readouterr().err == "engine run: not enough memory: Unable to allocate 8.00 TiB\n"


@pytest.mark.parametrize("command", ["run -p x -n 1", "trace --payload", "inspect"])
@pytest.mark.parametrize("flag", ["", "-m"])
def test_the_model_with_and_without_its_flag(
    command: str, flag: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = command.split()
    words = [name, *([flag] if flag else []), str(tiny), *more, "--json"]
    assert main(words if name == "inspect" else [*words, "--backend", "reference"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["path" if name == "inspect" else "model"] == str(tiny)
    assert f"note: {tiny}: 4 bytes after the last tensor are not used" in err.splitlines()
    with suppress(SystemExit):  # of argparse
        assert main([name, str(tiny), "-m", str(tiny), *more]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def ids_of(tiny: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[int]:
    assert main(["run", "-m", str(tiny), "--backend", "reference", "--json", *words]) == 0
    made: list[int] = json.loads(capsys.readouterr().out)["ids"]
    return made


def test_new_tokens_end_with_the_context(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(ids_of(tiny, capsys, "-p", "x" * 20, "-n", "4")) == 4
    assert len(ids_of(tiny, capsys, "-p", "x" * 20)) == 4  # the default of 256 is a wish, -n 5 a demand
    for length, more, says in ((20, ["-n", "5"], "ask for at most 4"), (24, [], "shorten the prompt"), (25, [], "25")):
        assert main(["run", "-m", str(tiny), "--backend", "reference", "-p", "x" * length, *more]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("qwenref.engine.load.backend", computed)
    for flags, says in (
        (("-p", "x", "-n", "24"), "-n 24 and a prompt do not fit the context of 24"),
        (("-p", "x" * 25), "25 tokens, more than the context of 24"),
        (("-p", "x" * 14, "-n", "11"), "ask for at most 10"),
    ):
        assert main(["run", "-m", str(tiny), "--backend", "reference", *flags]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_prompt_is_refused_before_kernels_are_compiled(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that looked short: the chat's template made it longer."""

    def compile_kernels(w: object, precision: str, progress: Callable[[int, int], None]) -> None:
        progress(1, 2)
        raise AssertionError("kernels were compiled")

    monkeypatch.setattr("qwenref.engine.kernels.reference.compile_kernels", compile_kernels)
    words = ["run", "-m", str(tiny), "--backend", "reference", "--chat", "-p", "x", "-n", "1", "--system", "y" * 40]
    assert main(words) == 2
    assert "context of 24" in capsys.readouterr().err.splitlines()[-1]


ESCAPES = "a\x1b]52;c;cm0gLXJm\x07b\x9b2Jc\x7f\td\r\n"  # would write the clipboard, and clear the screen


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_gets_no_control_characters_and_a_pipe_gets_all(
    terminal: bool, tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "generate", lambda *_: iter(range(len(ESCAPES))))
    monkeypatch.setattr(Tokens, "stream", lambda self: lambda id: "" if id is None else ESCAPES[id])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["run", "-m", str(tiny), "--backend", "reference", "-p", "x"]) == 0
    out = capfd.readouterr().out
    assert out == ("a\ufffd]52;c;cm0gLXJm\ufffdb\ufffd2Jc\ufffd\td\r\n\n" if terminal else ESCAPES + "\n")


def test_a_name_cannot_break_the_line_or_move_the_cursor() -> None:
    line = refused("inspect", "/no/\x1b[2J\n\u202eengine: all is well.gguf")
    assert "/no/\ufffd[2J\ufffd\ufffdengine: all is well.gguf" in line


EVIL = "e\x1b[2J\x7f\x9b\u202ex"


def test_names_on_stdout_and_stderr_hold_no_control_characters(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of folders, of files in them, of what a progress bar is called; in every command that prints such a name."""
    source = tmp_path / EVIL
    (source / "layer-0").mkdir(parents=True)
    aprt.write(source / "layer-0" / "attn_norm.bin", 0, np.ones((2, 64), np.float32))
    for name in (f"{EVIL}\n.bin", "embedding.bin"):
        aprt.write(source / "layer-0" / name, 0, np.ones((2, 64), np.float32))
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for name in (f"{EVIL}.npy", "lm_head.npy"):
        np.save(arrays / name, np.ones(272, np.float32))
    model_of = ["-m", str(tiny)]
    traced = ["trace", str(tiny), "--tokens", "1", "--backend", "reference", "--save-tensor", "lm_head"]
    commands = {
        0: [
            ["diff", str(source), str(source)],
            ["diff", str(source / "layer-0" / f"{EVIL}\n.bin"), str(source / "layer-0" / f"{EVIL}\n.bin")],
            ["import", str(arrays), str(tmp_path / f"{EVIL}d"), *model_of],
            [*traced, "--save-tensor-dir", str(tmp_path / f"{EVIL}t")],
            ["convert", str(tiny), str(tmp_path / f"{EVIL}.apr")],
            ["inspect", str(tmp_path / f"{EVIL}.apr")],
            ["diff", "--weights", str(tiny), str(tmp_path / f"{EVIL}.apr")],
        ],
        1: [["verify", str(source), *model_of]],
        2: [["verify", str(tmp_path / EVIL / EVIL), *model_of], ["run", f"--{EVIL}"]],
    }
    for status, each in commands.items():
        for words in each:
            try:
                assert main(words) == status, words
            except SystemExit as done:  # argparse's
                assert done.code == status
            out, err = capfd.readouterr()
            assert not {c for c in out + err if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")}, (
                words
            )
            assert "\ufffd" in out + err or words[0] in ("diff",), words


def test_a_progress_bar_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(f"[/]{EVIL}", 3) as show:
        show(2)
    assert "\x9b" not in capsys.readouterr().err


def test_a_report_of_a_dump_whose_name_is_no_text(tiny: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are half a surrogate pair in Python: the HTML is written all the same."""
    dump = tmp_path / os.fsdecode(b"d\xff")
    (dump / "layer-0").mkdir(parents=True)
    aprt.write(dump / "layer-0" / os.fsdecode(b"\xfe.bin"), 0, np.ones(3, np.float32))
    aprt.write(dump / "layer-0" / "embedding.bin", 0, np.ones((2, 64), np.float32))
    assert main(["verify", str(dump), "-m", str(tiny), "--html", str(tmp_path / "report.html")]) == 1
    assert "d\\udcff" in (tmp_path / "report.html").read_text("utf-8")


def test_of_60000_notes_ten_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Gguf()
    file = replace(file, keys=[*file.keys, *((f"qwen2.odd.{i}", U32, i) for i in range(60_000))])
    (tmp_path / "m.gguf").write_bytes(file.build())
    main(["inspect", str(tmp_path / "m.gguf")])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1] == "note: and 59990 more of these" and "qwen2.odd.0 " in lines[0]


def test_no_warning_of_a_library_reaches_the_user(tmp_path: Path) -> None:
    """Signalling NaNs, infinities and the largest numbers in a dump: figures on stdout, silence on stderr."""
    values = np.array([0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0], np.uint32).view(np.float32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        aprt.write(tmp_path / name / "lm_head.bin", None, values)
        values = values[::-1].copy()
    done = engine("diff", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (done.returncode, done.stderr) == (1, b"")


def test_json_of_an_interrupted_run_holds_what_was_said(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[int]:
        yield from (70, 71, 72)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate", interrupted)
    assert main(["run", "-m", str(tiny), "--backend", "reference", "-p", "x", "--json"]) == 130
    result = json.loads(capsys.readouterr().out)
    assert result["ids"] == [70, 71, 72] and len(result["text"]) == 3 and result["figures"]["generated_tokens"] == 3


@pytest.mark.model
class TestWithTheModel:
    def test_ctrl_c_keeps_what_was_said(self, model_path: Path) -> None:
        story = [*ENGINE, "run", "-m", str(model_path), "-p", "Once upon a time", "-n", "20000"]
        process = subprocess.Popen(story, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None and len(process.stdout.read(20)) == 20
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT and b"Traceback" not in err  # 130 in a shell
        assert out.endswith(b"\n") and b"tokens" in err.splitlines()[-1]

    def test_json_is_one_object(self, model_path: Path) -> None:
        done = engine("run", "-m", str(model_path), "-p", "What is 2+2?", "-n", "8", "--json")
        result = json.loads(done.stdout)
        # Hugging Face Transformers, float32, the same file: tests/golden/hf_greedy_ids.json.
        assert result["prompt_ids"] == [3838, 374, 220, 17, 10, 17, 30]
        assert result["ids"] == [576, 4226, 374, 220, 19, 13, 151645]
        assert result["text"] == " The answer is 4."
        assert {"load_s", "first_token_s", "prompt_tokens_per_s", "generated_tokens_per_s"} <= set(result["figures"])
        assert result["figures"]["tokens_per_pass"] == 1  # nothing here repeats

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
