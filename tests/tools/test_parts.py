"""Several texts, models or dumps at once: one table, the same whoever computes it, also where workers are killed"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwenref.cores import cores
from qwenref.engine.files.convert import convert
from qwenref.tests.parts import Cut, Failing, Share, Stalled, killing
from qwenref.tools.main import main
from qwenref.tools.table import Column, table
from qwenref.tools.workers import Worker, with_workers

from ..models import model

TEXT = "The quick brown fox jumps over the lazy dog, and low and behold: the low lot.\n"
EVAL = ["base.gguf", "coarse.gguf", "-f", "a", "-f", "b", "-f", "c", "--against", "base.gguf"]
VERIFY = ["mine", "theirs", "none", "base.gguf"]
STAGES = "embedding"  # what takes time is the hypotheses for all that follows from it
QUICK = ["-c", "16", "--backend", "reference"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; a dump of each; two texts and a file that is none."""
    at = tmp_path_factory.mktemp("parts")
    convert(model("F32"), at / "base.gguf")
    convert(model("F32"), at / "coarse.gguf", quantize="q4_0")
    (at / "a").write_text(TEXT)
    (at / "b").write_text(TEXT[::-1])
    (at / "c").write_bytes(b"\xff")
    for name, of in (("mine", "base"), ("theirs", "coarse")):
        words = ["-p", "low", "--backend", "reference", "--save-tensor", STAGES, "--save-tensor-dir", str(at / name)]
        assert main(["trace", str(at / f"{of}.gguf"), *words]) == 0
    return at


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_a_table_is_as_wide_as_a_terminal_and_loses_no_name() -> None:
    names = [{"model": f"/a/long/way/to/the/models/of/somebody/{n}.gguf", "text": f"texts/{n}" * 9} for n in "xy"]
    cells = ("471.3864", "47.4346", "layer 7 k_post_rope: " + "RoPE's theta is 10,000 " * 5)
    lines = table(names, [cells, "one\x1b line " * 20], [Column("perplexity"), Column("+-"), Column("what", text=True)])
    assert max(map(len, lines)) <= 80 and "\x1b" not in "".join(lines)
    assert lines[0].split() == ["model", "text", "perplexity", "+-", "what"]
    assert "/x.gguf" in lines[1] and "texts/x " in lines[1] and "471.3864  47.4346  layer 7" in lines[1]
    assert lines[1].endswith("…") and "/y.gguf" in lines[2]
    assert " ".join(lines[2:]).count("line") == 20, "what failed says all of it"
    assert {line.index("4") for line in lines[1:2]} == {lines[0].index("perplexity") + 2}, "figures to the right"
    shared = table([{"model": "m", "text": "a"}, {"model": "m", "text": "b"}], ["x", "y"], [Column("perplexity")])
    assert shared == ["model: m", "text  perplexity", "a     x", "b     y"]


def test_eval_is_the_same_whoever_computes_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Here, by one worker, by two; each of its results is what the command says of that model and text alone."""
    here = told(capsys, "eval", *EVAL, *QUICK, status=2)
    for workers in ("1", "2"):
        assert told(capsys, "eval", *EVAL, *QUICK, "--workers", workers, status=2) == here
    assert [(p["asked"]["model"], p["asked"]["text"], p["status"]) for p in here["parts"]] == [
        (m, t, 2 if t == "c" else 0) for m in ("base.gguf", "coarse.gguf") for t in "abc"
    ]
    for part in here["parts"]:
        words = [part["asked"]["model"], "-f", part["asked"]["text"], "--against", "base.gguf", *QUICK]
        if part["status"]:
            assert main(["eval", *words]) == 2
            said = capsys.readouterr().err.removeprefix("engine eval: ").strip()
            assert part["error"] == said.replace("from c", f"from {Path('c').absolute()}")
        else:
            paths = {"model": str(Path(words[0]).absolute()), "base": str(Path("base.gguf").absolute())}
            assert part["result"] == told(capsys, "eval", *words, status=0) | paths
    assert len({p["result"]["summary"]["nll"] for p in here["parts"] if "result" in p}) == 4


LONG = 9  # times the text: 38 windows of 16 ids


@pytest.mark.parametrize("base", [["--against", "coarse.gguf"], ["--logits", "base.dat"], []])
def test_the_windows_of_one_text_are_shared_out(
    base: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To two workers, of which one is killed with windows in hand: every digit is that of one process."""
    Path("long").write_text(TEXT * LONG)
    if not Path("base.dat").exists():
        assert main(["eval", "coarse.gguf", "-f", "long", *QUICK, "--save-logits", "base.dat"]) == 0
    text = [] if "--logits" in base else ["-f", "long", "-c", "16"]
    words = ["eval", "base.gguf", *text, *base, "--backend", "reference"]
    alone = told(capsys, *words, status=0)
    assert alone["windows"] == 38 and (not base or alone["flips"])
    assert main(words) == 0
    printed = capsys.readouterr()
    taken: list[int] = []
    take = Worker.take

    def taking(worker: Worker, number: int, part: Any) -> None:
        take(worker, number, part)
        taken.append(number)
        if len(taken) == 7:
            os.kill(worker.process.pid, signal.SIGKILL)

    bars: list[tuple[Any, ...]] = []

    @contextmanager
    def bar(*words: Any) -> Iterator[Any]:
        bars.append(words)
        yield lambda *done: bars.append(done)

    monkeypatch.setattr(Worker, "take", taking)
    monkeypatch.setattr("qwenref.tools.parts.progress", bar)
    assert told(capsys, *words, "--workers", "2", status=0) == alone
    assert len(taken) == alone["windows"] + 1, "one was done again"
    assert bars[0] == ("eval", alone["summary"]["scored"], "") and bars[-1] == (alone["summary"]["scored"],)
    monkeypatch.setattr(Worker, "take", take)
    if "--against" in base:
        assert main([*words, "--workers", "1"]) == 0
        assert capsys.readouterr() == printed


def test_windows_that_fail_end_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the line of the first of them, whichever is told first; and what is behind it is not computed."""
    Path("long").write_text(TEXT * LONG)
    words = ["eval", "base.gguf", "-f", "long", *QUICK]
    whole = [Failing({"n": str(n)}, 1.5 if n == 2 else 0) for n in range(60)]
    for workers in (1, 2):
        found = with_workers(whole, workers, lambda *how_far: None, whole=True)
        assert [o.told.get("error") for o in found] == [None, None, "2"]

    started = Worker.__init__

    def starting(worker: Worker, *rest: Any) -> None:
        shutil.copy("coarse.gguf", "new")
        Path("new").replace("again.gguf")
        started(worker, *rest)

    shutil.copy("base.gguf", "again.gguf")
    monkeypatch.setattr(Worker, "__init__", starting)
    assert main(["eval", "again.gguf", *words[2:], "--workers", "1"]) == 2
    captured = capsys.readouterr()
    said = "again.gguf: was replaced while it was being read; nothing of the result is kept\n"
    assert (captured.out, captured.err.removeprefix("engine eval: ")) == ("", said)


def test_verify_is_the_same_whoever_computes_it(capsys: pytest.CaptureFixture[str]) -> None:
    here = told(capsys, "verify", *VERIFY, status=2)
    assert told(capsys, "verify", *VERIFY, "--workers", "2", status=2) == here
    assert [(p["asked"]["dump"], p["status"]) for p in here["parts"]] == [("mine", 0), ("theirs", 1), ("none", 2)]
    for part in here["parts"][:2]:
        alone = told(capsys, "verify", part["asked"]["dump"], "base.gguf", status=part["status"])
        assert part["result"] == alone
    assert here["parts"][2]["error"].startswith("none: no such file")
    assert told(capsys, "verify", "mine", "theirs", "-m", "base.gguf", status=1)["parts"] == here["parts"][:2]
    assert told(capsys, "verify", "base.gguf", "mine", "theirs", status=1)["parts"] == here["parts"][:2], "swapped"


def test_the_table_of_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *VERIFY]) == 2
    head, mine, theirs, none = (told := capsys.readouterr()).out.splitlines()
    assert head.split() == ["dump", "judged", "unexplained", "what"]
    assert mine.split() == ["mine", "1", "0", *["float32,", "as", "far", "as", "this", "dump", "shows"]]
    assert theirs.split()[:3] == ["theirs", "1", "1"] and "The embedding already differs: this dump is of" in theirs
    assert none.startswith("none    none: no such file")
    assert told.err == "engine verify: 1 of 3 came to nothing; it says why\n"


def test_the_prompt_is_compared_with_every_dump(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "verify", "mine", "mine", "base.gguf", "-p", "slow", status=1)
    assert [p["status"] for p in found["parts"]] == [1, 1]
    assert all("Other ids than the prompt's" in p["result"]["prompt"]["difference"] for p in found["parts"])
    assert main(["verify", "mine", "mine", "base.gguf", "-p", "slow"]) == 1
    assert capsys.readouterr().out.count("Other ids than") == 2


# ---- workers


def counted(parts: Sequence[Any], workers: int) -> tuple[list[Any], list[tuple[int, int, int]]]:
    reached: list[tuple[int, int, int]] = []
    found = with_workers(parts, workers, lambda *how_far: reached.append(how_far))
    return [o.told for o in found], reached


def test_a_part_whose_worker_is_killed_is_tried_once_more(tmp_path: Path) -> None:
    """And then named; the others are computed, by two workers all the time."""
    (once := tmp_path / "once").mkdir()
    (ever := tmp_path / "ever").mkdir()
    parts = [Stalled({"n": "0"}, once, 1), Stalled({"n": "1"}, ever, 9), *(Share({"n": str(n)}) for n in range(2, 5))]
    with killing(once) as first, killing(ever) as others:
        found, reached = counted(parts, 2)
    assert (len(first), len(others)) == (1, 2), "tried once more, and no more"
    assert found[0] == {"result": 1}
    said = "the process that computed it was killed (SIGKILL), 2 times; fewer --workers leave each of them more memory"
    assert found[1] == {"error": said}
    assert [set(o) for o in found[2:]] == [{"result"}] * 3
    assert {number for number, done, of in reached if done == of} == set(range(5))


@pytest.mark.skipif(sys.platform != "linux", reason="no other system says which file a fault was in")
def test_a_file_that_is_cut_costs_its_part_alone(tmp_path: Path) -> None:
    found, _ = counted([Cut({"n": "0"}, tmp_path / "file"), Share({"n": "1"}), Share({"n": "2"})], 1)
    said = "was cut to 4,096 bytes while it was being read; nothing of the result is kept"
    assert found[0] == {"error": f"{tmp_path / 'file'}: {said}"}
    assert [set(o) for o in found[1:]] == [{"result"}] * 2


def test_workers_share_the_cores() -> None:
    """What they print is no reply."""
    share = max(1, cores() // 2)
    found, _ = counted([Share({"n": "0"}), Share({"n": "1"})], 2)
    assert found == [{"result": {"cores": share, "numba": str(share), "desk": None}}] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "mine", "theirs", "base.gguf", "--html", "x.html"], "--html is the page of one dump"),
        (["verify", "mine", "base.gguf", "theirs", "base.gguf"], "base.gguf is a model; engine verify DUMP MODEL"),
        (["verify", "mine", "base.gguf", "--workers", "0"], "--workers 0: give at least 1"),
        (["verify", "mine", "base.gguf", "-m", "base.gguf"], "--model: not allowed with argument MODEL"),
        (["eval", "base.gguf", "-f", "a", "-f", "b", "--save-logits", "x"], "--save-logits is of one text"),
        (["eval", "base.gguf", "-f", "a", "--workers", "2", "--save-logits", "x"], "--save-logits is of one process"),
        (["eval", "base.gguf", "-f", "a", "--workers", "2", "-t", "1"], "--threads: workers share the cores"),
        (["eval", "base.gguf", "-f", "c", *QUICK, "--workers", "2"], "text from c is not UTF-8"),
        (["eval", "base.gguf", "a"], "a: a text is given with -f"),
    ],
)
def test_what_does_not_go_together_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1) and said in captured.err


def test_a_cluster_without_its_package_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["eval", "base.gguf", "-f", "a", *QUICK, "--scheduler", "tcp://127.0.0.1:1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "pip install 'qwenref[cluster]'" in captured.err


def test_a_model_is_opened_once_for_all_its_texts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is let go before the next."""
    from qwenref.tools import measured as command

    opened: list[str] = []
    load = command.load
    monkeypatch.setattr(command, "load", lambda o, *rest: (opened.append(o.checkpoint.path.name), load(o, *rest))[1])
    shutil.copy(folder / "base.gguf", tmp_path / "again.gguf")
    words = ["base.gguf", str(tmp_path / "again.gguf"), "-f", "a", "-f", "b", *QUICK]
    found = told(capsys, "eval", *words, status=0)
    assert opened == ["base.gguf", "again.gguf"]
    figures = [p["result"]["summary"] for p in found["parts"]]
    assert figures[:2] == figures[2:]
