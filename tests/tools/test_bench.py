"""engine bench: its rows, and what it refuses. No test asserts a speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwenref.engine.drafts import Drafts
from qwenref.engine.kernels.cpu.machine.paths import PATH
from qwenref.errors import BadInput
from qwenref.tools import bench_drafts
from qwenref.tools.bench import Bench, numbers, prompt_ids, table, timed
from qwenref.tools.bench_drafts import Answers, read_prompts
from qwenref.tools.main import main

from ..tiny import tiny_weights, write_gguf


@pytest.mark.model
def test_rows(model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", str(model_path), "-p", "5", "-n", "3", "-t", "1", "-r", "1", "--json"]
    assert main(["bench", *arguments]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [r["precision"] for r in rows] == ["f32", "int8"]
    for r in rows:
        assert (r["model"], r["threads"], r["rounds"]) == (model_path.name, 1, 1)
        assert min(r["prompt_tokens_per_s"], r["generated_tokens_per_s"], r["first_token_s"], r["ready_s"]) > 0
        assert r["bandwidth_share"] > 0
        # Every matrix but the embedding is read once a token, in the file's own width.
        assert 0.7 * model_path.stat().st_size < r["bytes_per_token"] < model_path.stat().st_size < 2 * r["peak_bytes"]


def test_model_without_tokenizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It has no text to time a first token with; all else is measured, be the matrices ever so small."""
    path = write_gguf(tmp_path / "tiny.gguf", tiny_weights(vocab=32, layers=1))
    arguments = ["-p", "3", "-n", "2", "-t", "1", "-r", "1", "--depth", "9", "--precision", "int8", "--json"]
    assert main(["bench", str(path), *arguments]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert (row["prompt_tokens"], row["depth"], row["path"]) == (3, 9, PATH)
    assert row["generated_tokens_per_s"] > 0
    matrices = 32 * 64 + 64 * (64 + 32 + 32 + 64 + 3 * 96)  # the head; Q, K, V, O, gate, up, down
    assert row["bytes_per_token"] == 4 * matrices and row["bandwidth_share"] >= 0
    assert "first_token_s" not in row


def finished(engine: str, seconds: list[tuple[float, float]], **facts: int) -> Bench:
    """A Bench whose rounds are over, without a process."""
    bench = object.__new__(Bench)
    bench.engine, bench.precision, bench.prompt, bench.generated, bench.load_s = engine, "int8", 100, 10, 0.5
    bench.depth = 100
    bench.facts = {"threads": 2, **facts}
    bench.rounds = [{"prompt_s": p, "generate_s": g, "read_bytes_per_s": 1e9, "peak_bytes": 5} for p, g in seconds]
    return bench


def test_ratios_are_taken_round_by_round() -> None:
    ours = finished("qwenref", [(1.0, 1.0), (2.0, 2.0), (4.0, 1.0)], bytes_per_token=10**8)
    peer = finished("llama.cpp", [(2.0, 1.0), (4.0, 2.0), (8.0, 2.0)])
    row = ours.row("m", peer)
    assert row["prompt_tokens_per_s"] == 50.0
    assert row["prompt_tokens_per_s_ratio"] == 2.0
    assert row["generated_tokens_per_s_spread"] == [5.0, 10.0]
    assert row["generated_tokens_per_s_ratio"] == 1.0
    assert row["bandwidth_share"] == 1.0
    lines = table([row, peer.row("m", None)]).splitlines()
    first, second = lines[: len(lines) // 2], lines[len(lines) // 2 + 1 :]
    assert [line.split()[0] for line in first] == [line.split()[0] for line in second]
    assert [line.split()[0] for line in first] == ["engine", "qwenref", "llama.cpp"]
    assert "2.00 x" in first[1] and "1.00 x" in second[1]


def test_generation_is_timed_behind_the_depth() -> None:
    """Of a depth the prompt's time is that of the prompt alone, and the tokens' that of those behind the depth."""

    def run(count: int, new: int) -> tuple[float, float]:
        return float(count), float(1000 * count + new)

    assert timed(run, 5, 3, 0) == {"prompt_s": 5, "generate_s": 5003}
    assert timed(run, 5, 3, 70) == {"prompt_s": 5, "generate_s": 70003}


def test_prompt_is_inside_the_vocabulary() -> None:
    assert len(set(prompt_ids(300, 400))) == 300
    assert all(0 <= i < vocab_size for vocab_size in (1, 100, 272) for i in prompt_ids(5000, vocab_size))


@pytest.mark.model
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "f16"], "no precision 'f16'; it has f32, int16, int8"),
        (["-t", "0"], "-t 0: give numbers of at least 1"),
        (["-t", "two"], "-t two: give numbers of at least 1"),
        (["-n", "0"], "-n 0: give at least 1"),
        (["-p", "99999"], "99999 + 64 tokens do not fit 32768 positions"),
        (["--depth", "32768"], "32768 + 64 tokens do not fit 32768 positions"),
        (["-t", "4000"], "4000 threads: this machine has"),
        (["--draft", "3"], "--draft is of --prompts; give a file of prompts too"),
        (["--chat"], "--chat is of --prompts"),
        (["--prompts", "none.txt"], "text file none.txt: No such file"),
        (["--prompts", "none.txt", "-p", "5"], "-p is not of --prompts"),
        (["--prompts", "none.txt", "--depth", "5"], "--depth is not of --prompts"),
        (["--prompts", "none.txt", "--vs", "llama.cpp"], "--vs is not of --prompts"),
        (["--prompts", "none.txt", "--draft", "off"], "drafts are measured against none; give 1 to 63 tokens"),
        (["--prompts", "none.txt", "--draft", "64"], "give 1 to 63 tokens"),
        (["--prompts", "none.txt", "-t", "4000"], "4000 threads: this machine has"),
    ],
)
def test_bad_input(arguments: list[str], words: str, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model_path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_numbers() -> None:
    assert numbers("1,2", "-t") == [1, 2]


def test_prompts_are_a_list_or_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    for text, found in (
        ("one\n\n  two\n", ["one", "  two"]),
        ('["a\\nb", "c"]\n', ["a\nb", "c"]),
        ("{} is no list\n", ["{} is no list"]),
    ):
        path.write_text(text)
        assert read_prompts(str(path)) == found
    for text, says in (
        ("\n \n", "no prompt is in it"),
        ("[]", "no prompt"),
        ('["a", 3]', "3 is no prompt"),
        ("[", "JSON"),
    ):
        path.write_text(text)
        with pytest.raises(BadInput, match=says):
            read_prompts(str(path))


def test_drafts_are_compared_round_by_round() -> None:
    """6 tokens behind the first, in 2 passes; a slow round slows both, so the ratio of each round counts."""
    a = Answers("x" * 40, [1, 2], list(range(7)), passes=2, seconds={False: [3.0, 6.0, 1.5], True: [1.0, 3.0, 1.0]})
    row = a.row()
    assert (row["prompt_tokens"], row["generated_tokens"], row["rounds"]) == (2, 7, 3)
    assert row["tokens_per_pass"] == 3.0 and row["ratio"] == 2.0
    assert row["plain_tokens_per_s"] == 2.0 and row["drafted_tokens_per_s_spread"] == [2.0, 6.0]
    short = Answers("y", [1], [5], seconds={False: [0.0], True: [0.0]}).row()
    assert "ratio" not in short
    lines = bench_drafts.table([r | {"precision": "int8", "threads": 2} for r in (row, short)]).splitlines()
    assert lines[1] == "int8, 2 threads:" and len(lines) == 4
    assert "2.00x" in lines[2] and f"{'x' * 7}…{'x' * 7} " in lines[2]


def test_an_answer_that_drafts_change_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def generate(ids: list[int], *_: Any, drafts: Drafts) -> Iterator[int]:
        asked.append(drafts.most)
        drafts.passes = 1
        yield from [1, 2, drafts.most if len(asked) > 3 else 0]

    model: Any = SimpleNamespace(weights=None, kernels=None, precision="int8")
    opened: Any = SimpleNamespace(checkpoint=SimpleNamespace(vocabulary=lambda: None))
    monkeypatch.setattr(bench_drafts, "generate", generate)
    monkeypatch.setattr(bench_drafts, "spelling_of", lambda *_: SimpleNamespace(eos_ids=[]))
    with pytest.raises(AssertionError, match="drafts have changed the answer to 'p'"):
        bench_drafts.take_turns(model, opened, [Answers("p", [7])], 3, 5, 2, warm_up=1)
    assert asked == [5, 0, 5, 5, 0]  # a warm-up, and turns that begin with either


@pytest.mark.model
def test_prompts_with_and_without_drafts(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text("a b c a b c a b c a b c a b c\nWhat is 2+2?\n")
    arguments = ["-m", str(model_path), "--prompts", str(tmp_path / "p"), "-n", "12", "-r", "1", "-t", "1"]
    assert main(["bench", *arguments, "--precision", "int8", "--draft", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["prompt"][:7] for r in rows] == ["a b c a", "What is"]
    assert all((r["draft"], r["precision"], r["threads"], r["rounds"]) == (3, "int8", 1, 1) for r in rows)
    assert rows[0]["tokens_per_pass"] > 1.5 and all(1 <= r["tokens_per_pass"] <= 4 and r["ratio"] > 0 for r in rows)
