"""engine bench: its rows, and what it refuses. No test asserts a speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenref.engine.kernels.cpu.machine.paths import PATH
from qwenref.tools.bench import Bench, numbers, prompt_ids, table, timed
from qwenref.tools.main import main

from ..tiny import tiny_weights, write_gguf


@pytest.mark.model
def test_rows(model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", str(model_path), "-p", "5", "-n", "3", "-t", "1", "-r", "2", "--json"]
    assert main(["bench", *arguments]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [r["precision"] for r in rows] == ["f32", "int8"]
    for r in rows:
        assert (r["model"], r["threads"], r["rounds"]) == (model_path.name, 1, 2)
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
    assert len(lines) == 3
    assert "2.00 x" in lines[1]
    assert "llama.cpp" in lines[2]


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
        (["-n", "0"], "-p, -n and -r must be at least 1"),
        (["-p", "99999"], "99999 + 64 tokens do not fit 32768 positions"),
        (["--depth", "32768"], "32768 + 64 tokens do not fit 32768 positions"),
        (["-t", "4000"], "4000 threads: this machine has"),
    ],
)
def test_bad_input(arguments: list[str], words: str, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model_path), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_numbers() -> None:
    assert numbers("1,2", "-t") == [1, 2]
