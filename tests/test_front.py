"""The front door: load, Model, open_dump, verify, diff. It gives what the commands give, and what other tools gave."""

from __future__ import annotations

import ast
import csv
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwenref
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.files.strict_json import parse
from qwenref.engine.text.generation import Generation
from qwenref.engine.text.tokenizer import Tokens
from qwenref.tools.main import main
from qwenref.trace.dump import Dump, Entry
from qwenref.trace.plan import plan
from qwenref.trace.stages import of_pieces

from .models import model as small
from .models import vocabulary
from .tiny import tiny_weights, write_gguf

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "corpus" / "expected.json").read_text(encoding="utf-8"))
NAMES = ("t5-ends", "t5-f32-tied", "gguf-f32", "quant-q8_0")
IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(HERE / "corpus" / "models.tar.xz") as tar:
        inside = [m for m in tar if Path(m.name).parts[0].removesuffix(".gguf") in NAMES]
        tar.extractall(folder, inside, filter="data")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a tokenizer and a chat template."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(small("Q8_0"), path)
    return path


@pytest.fixture(scope="module")
def model(tiny: Path) -> qwenref.Model:
    return qwenref.load(tiny)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> qwenref.Model:
    """Without a tokenizer."""
    path = write_gguf(tmp_path_factory.mktemp("bare") / "bare.gguf", tiny_weights(vocab=272))
    return qwenref.load(path, backend="reference")


# ---- the package itself


def run(program: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_loads_nothing() -> None:
    program = "import sys; before = set(sys.modules); import qwenref; print(sorted(set(sys.modules) - before))"
    assert run(program) == "['qwenref']"


def test_the_commands_do_not_wait_for_it() -> None:
    program = "import sys; from qwenref.tools import main; main.parser_for(None); print('numpy' in sys.modules)"
    assert run(program) == "False"


def test_what_type_checkers_see_is_what_is_there() -> None:
    tree = ast.parse(Path(qwenref.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert typed == qwenref._FROM
    assert {*typed, "__version__"} == {*dir(qwenref)}
    assert all(getattr(qwenref, name).__module__ == f"qwenref.{where}" for name, where in typed.items())
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = qwenref.no_such_name


# ---- generate


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_that_other_tools_gave(name: str, corpus: Path) -> None:
    want = next(m for m in EXPECTED["models"] if m["name"] == name)
    model = qwenref.load(corpus / want["path"])
    for expected in want["runs"]:
        room = len(expected["ids"]) + (5 if expected["ended"] else 0)
        for prompt in (expected["text"], expected["prompt_ids"], np.array(expected["prompt_ids"])):
            made = model.generate(prompt, max_tokens=room)
            pieces = list(made)
            assert made.prompt_ids == expected["prompt_ids"]
            assert made.ids == expected["ids"]
            assert made.finish_reason == ("stop" if expected["ended"] else "length")
            spelled = made.ids[:-1] if expected["ended"] else made.ids
            assert "".join(pieces) == made.text == str(made) == model.tokenizer.decode(spelled)
            assert len(pieces) >= len(made.ids)


def test_the_chats_that_transformers_renders(corpus: Path) -> None:
    model = qwenref.load(corpus / "t5-ends")
    want = EXPECTED["tokenizers"][4]["chat"]
    assert model.prompt_ids(EXPECTED["chat"]) == model.prompt_ids(qwenref.Chat(EXPECTED["chat"])) == want
    one = [{"role": "user", "content": "What is 2+2?"}]
    assert model.prompt_ids("What is 2+2?", chat=True) == model.prompt_ids(one)
    assert model.generate(EXPECTED["chat"], max_tokens=1).prompt_ids == want


def test_it_is_what_the_command_says(tiny: Path, model: qwenref.Model, capsys: pytest.CaptureFixture[str]) -> None:
    for words, settings in (
        (["-p", "low the", "-n", "9"], {"max_tokens": 9}),
        (["-p", "low", "-n", "9", "--temp", "0.9", "--top-k", "40", "--top-p", "0.9", "--seed", "3"],
         {"max_tokens": 9, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 3}),
        (["-p", "low", "-n", "9", "--chat"], {"max_tokens": 9, "chat": True}),
    ):  # fmt: skip
        assert main(["run", str(tiny), "--json", *words]) == 0
        told = json.loads(capsys.readouterr().out)
        made = model.generate(words[1], **settings)  # type: ignore[arg-type]
        assert (made.text, made.prompt_ids, made.ids) == (told["text"], told["prompt_ids"], told["ids"])
    assert len(model.generate("low").prompt_ids) == 1  # without a number the command's default holds
    assert len(list(zip(model.generate("low the"), range(3), strict=False))) == 3


def test_a_model_without_a_tokenizer_answers_in_ids(bare: qwenref.Model) -> None:
    made = bare.generate(IDS, max_tokens=3)
    assert made.text == "".join(f"{i} " for i in made.ids) and len(made.ids) == 3
    with pytest.raises(qwenref.BadInput, match="has no tokenizer") as error:
        bare.generate("text")
    assert bare.notes == (str(error.value),)
    with pytest.raises(qwenref.BadInput, match="no stop string can be found"):
        bare.generate(IDS, stop="x")
    stopped = bare.generate(IDS, stop=made.ids[1], max_tokens=3)
    assert [*stopped] and stopped.ids == made.ids[: made.ids.index(made.ids[1]) + 1]
    assert stopped.finish_reason == "stop"


def test_ids_are_spelled_where_text_cannot_be_read(tmp_path: Path) -> None:
    """By a vocabulary whose pre-tokenizer is not known here, as `engine run --tokens` does."""
    of_another = replace(small("Q8_0"), vocabulary=lambda: vocabulary(272, pre="another"))
    convert(of_another, tmp_path / "other.gguf")
    m = qwenref.load(tmp_path / "other.gguf", backend="reference")
    made = m.generate(IDS, max_tokens=5)
    assert made.text == Tokens(vocabulary(272).tokens, vocabulary(272).types, 272, ()).decode(made.ids)
    with pytest.raises(qwenref.BadInput, match="pre-tokenizer 'another' is not supported"):
        m.generate("text")


PIECES = st.lists(st.text("ab\n", max_size=3), max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(pieces=PIECES, stops=STOPS)
def test_the_text_ends_before_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    """Once a stop string is whole, the text ends where the first of them begins; nothing of it was said before."""
    whole, ids = "", len(pieces)
    for n, piece in enumerate(pieces):
        whole += piece
        if found := [whole.index(s) for s in stops if s in whole]:
            whole, ids = whole[: min(found)], n + 1
            break
    made = Generation([], iter(range(len(pieces))), Tokens(pieces, [6] * len(pieces), len(pieces), ()), stops)
    said = "".join(made)
    assert said == whole == made.text
    assert len(made.ids) == ids
    assert made.finish_reason == ("stop" if ids < len(pieces) or any(s in "".join(pieces) for s in stops) else "length")


# ---- several models, threads, silence


def test_two_models_take_turns(tiny: Path, tmp_path: Path) -> None:
    """And two generations of one: each has the bits that it has alone."""
    write_gguf(tmp_path / "other.gguf", tiny_weights(vocab=272, seed=7, hidden=128, head_dim=32, layers=3))
    settings: list[dict[str, Any]] = [{"precision": "f32", "threads": 1}, {"precision": "int8"}, {"precision": "int16"}]
    paths = [tiny, tmp_path / "other.gguf", tiny]
    prompts = [IDS, [*IDS, 9, 2, 6], IDS[::-1]]
    wanted, models = [], []
    for path, how, prompt in zip(paths, settings, prompts, strict=True):
        alone = qwenref.load(path, **how)
        made, traced = alone.generate(prompt, max_tokens=12, temperature=0.8), alone.trace(prompt, decode_steps=2)
        wanted.append((made.text, made.ids, {key: traced[key].tobytes() for key in traced}))
        models.append(qwenref.load(path, **how))
    made = [m.generate(prompt, max_tokens=12, temperature=0.8) for m, prompt in zip(models, prompts, strict=True)]
    twice = models[0].generate(prompts[0], max_tokens=12, temperature=0.8)
    traces = []
    for _ in range(13):
        for answer in (*made, twice):
            next(answer, None)
        if len(traces) < 3:
            m, prompt = models[len(traces)], prompts[len(traces)]
            traces.append(m.trace(prompt, decode_steps=2))
    got = [(m.text, m.ids, {k: t[k].tobytes() for k in t}) for m, t in zip(made, traces, strict=True)]
    assert got == wanted
    assert (twice.text, twice.ids) == wanted[0][:2]


def test_two_models_run_at_once(tiny: Path, tmp_path: Path) -> None:
    """From two threads, over and over."""
    write_gguf(tmp_path / "other.gguf", tiny_weights(vocab=272, seed=7, hidden=128, head_dim=32, layers=3))
    paths = [tiny, tmp_path / "other.gguf"]

    def answers(m: qwenref.Model) -> list[Any]:
        return [(m.generate(IDS * n, max_tokens=12).ids, m.logits(IDS * n).tobytes()) for n in (1, 20, 3, 40)]

    wanted = [answers(qwenref.load(path)) for path in paths]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answers, [qwenref.load(path) for path in paths])) == wanted


def test_threads_are_the_models_own(tiny: Path) -> None:
    import numba

    before = numba.get_num_threads()
    seen: list[int] = []
    for count in (1, before):
        m = qwenref.load(tiny, threads=count)
        for _ in m.generate(IDS, max_tokens=3, progress=lambda done: seen.append(numba.get_num_threads())):
            assert numba.get_num_threads() == before
        m.trace(IDS)
        m.logits(IDS)
        assert numba.get_num_threads() == before
    assert seen == [1, before]


def test_it_says_nothing_and_takes_no_signal(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.gguf").write_bytes(tiny.read_bytes() + b"more")
    signals = [s for s in signal.Signals if s not in (signal.SIGKILL, signal.SIGSTOP)]
    before = [signal.getsignal(s) for s in signals]
    m = qwenref.load(tmp_path / "odd.gguf")
    assert len(m.notes) == 1 and "after the last tensor" in m.notes[0]
    m.generate("low", max_tokens=2).text  # noqa: B018
    m.trace("low", to=tmp_path / "dump")
    qwenref.verify(tmp_path / "dump", m)
    qwenref.diff(tmp_path / "dump", tmp_path / "dump")
    assert [signal.getsignal(s) for s in signals] == before
    assert capfd.readouterr() == ("", "")


# ---- trace, diff


def test_a_trace_is_the_commands(tiny: Path, model: qwenref.Model, tmp_path: Path) -> None:
    """In memory, on disk, and from the command: the same stages with the same bits and the same facts."""
    tokens = ",".join(map(str, IDS))
    words = ["--save-tensor", "all", "--decode-steps", "2", "--tokens", tokens, "--save-tensor-dir"]
    assert main(["trace", str(tiny), *words, str(tmp_path / "command")]) == 0
    command = qwenref.open_dump(tmp_path / "command")
    held = model.trace(IDS, decode_steps=2)
    disk = model.trace(IDS, decode_steps=2, to=tmp_path / "python")
    for dump in (held, disk):
        assert list(dump) == list(command) and len(dump) == len(command) == 3 * (17 * 2 + 3)
        for key in command:
            assert key in dump
            assert dump[key].dtype == np.float32 and type(dump[key]) is np.ndarray
            assert dump[key].tobytes() == command[key].tobytes() and dump[key].shape == command[key].shape, key
            with pytest.raises(ValueError, match="read-only"):
                dump[key][...] = 0
        for ours, theirs in zip(dump.entries, command.entries, strict=True):
            assert (ours.positions, ours.capture) == (theirs.positions, dict(theirs.capture or {}))
        for fact in ("tokens", "generated", "backend", "precision", "formats"):
            assert dump.run[fact] == command.run[fact]
    disk.check_digests()
    assert disk.run["model"] == command.run["model"]
    assert held["lm_head"].tobytes() == model.logits(IDS).tobytes()
    assert held["embedding"].tobytes() == held["embedding", 0].tobytes() == held["embedding", 0, 0].tobytes()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"stages": ["lm_head", "attn_norm"], "layers": [1]}, ("attn_norm,lm_head", "1", "all")),
        ({"stages": "ffn_out", "layers": range(2), "positions": [4, 0]}, ("ffn_out", "0,1", "0,4")),
        ({"stages": "all", "layers": 1, "positions": "last"}, ("all", "1", "last")),
        ({"layers": "0..2", "positions": 3}, ("all", "0..2", "3")),
    ],
)
def test_what_to_trace(model: qwenref.Model, asked: dict[str, Any], words: tuple[str, str, str]) -> None:
    wanted = plan(*words).within(of_pieces(model.opened.weights.pieces))
    dump = model.trace(IDS, **asked)
    assert sorted((s.name, at) for s, at in wanted.expected(2)) == sorted((e.stage.name, e.layer) for e in dump.entries)
    kept = tuple(wanted.kept(len(IDS)))
    assert all(e.positions == (kept if "T" in e.stage.letters else (4,)) for e in dump.entries)


def test_diff_takes_dumps_and_folders(model: qwenref.Model, tiny: Path, tmp_path: Path) -> None:
    held, disk = model.trace(IDS, layers=[0]), model.trace(IDS, layers=[0], to=tmp_path / "a")
    for a, b in ((held, disk), (disk, held), (held, tmp_path / "a"), (str(tmp_path / "a"), held)):
        found = qwenref.diff(a, b, tolerance=0)
        assert found.within and all(r["equal"] for r in found.rows) and len(found.rows) == 20
    other = qwenref.load(tiny, precision="int8").trace(IDS, to=tmp_path / "b")
    found = qwenref.diff(held, other, tolerance=1e-6)
    assert not found.within and found.tolerance_needed > 1e-3
    first = found.first_beyond
    assert first is not None and first.a.stage.name == "qkv_matmul"  # where int8 first rounds
    x, y = (d["qkv_matmul", 0].astype(np.float64) for d in (held, other))
    row = next(r for r in found.rows if r["stage"] == "qkv_matmul")
    assert row["relative"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2) / np.mean(x**2)), rel=1e-12)
    assert str(found) in repr(found) and "20 stages compared" in str(found)
    assert len(found.pairs.only_b) == 17  # layer 1's
    all_scalars(found.rows)


def test_diff_says_what_the_command_says(
    model: qwenref.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, positions in (("a", "all"), ("b", "last")):
        model.trace(IDS, positions=positions, to=tmp_path / name)
    model.trace([*IDS, 1], to=tmp_path / "c")
    for b in ("b", "c", "none"):
        assert main(["diff", str(tmp_path / "a"), str(tmp_path / b)]) == 2
        line = capsys.readouterr().err.removeprefix("engine diff: ").strip()
        with pytest.raises(qwenref.BadInput) as error:
            qwenref.diff(tmp_path / "a", tmp_path / b)
        assert str(error.value) == line
    assert main(["diff", "--csv", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    written = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    rows = qwenref.diff(tmp_path / "a", tmp_path / "a").rows
    assert written == [{k: "" if v is None else str(v) for k, v in r.items()} | dict.fromkeys(
        written[0].keys() - r.keys(), "") for r in rows]  # fmt: skip


# ---- verify


def all_scalars(rows: list[dict[str, Any]]) -> None:
    """What a table takes as it is: every row with the same columns, or fewer, and no value that holds others."""
    assert rows
    assert all(type(v) in (int, float, str, bool, type(None)) for r in rows for v in r.values())


def changed(dump: Dump, stage: str, layer: int | None, change: Callable[[np.ndarray], np.ndarray]) -> Dump:
    def entry(e: Entry) -> Entry:
        if (e.stage.name, e.layer) != (stage, layer):
            return e
        return replace(e, array=change(np.array(e.values())).astype(np.float32))

    return replace(dump, entries=tuple(map(entry, dump.entries)))


def test_verify_is_the_commands(
    tiny: Path, model: qwenref.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk, held = model.trace(IDS, to=tmp_path / "dump"), model.trace(IDS)
    words = ["verify", str(tmp_path / "dump"), str(tiny), "--html", str(tmp_path / "page.html")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for dump, judge in ((disk, model), (tmp_path / "dump", tiny), (str(tmp_path / "dump"), str(tiny)), (held, model)):
        done: list[int] = []
        report = qwenref.verify(dump, judge, progress=done.append)
        assert report.as_json() == told
        assert done == list(range(1, 38))
        assert (report.sentence, report.status) == (told["sentence"], 0)
    page = (tmp_path / "page.html").read_text("utf-8")
    report = qwenref.verify(disk, model)
    assert report.html() == page
    assert main(words[:3]) == 0
    assert str(report) + "\n" == capsys.readouterr().out
    all_scalars(report.rows)
    for row, stage in zip(report.rows, told["stages"], strict=True):
        same = row.keys() & stage.keys() - {"budget", "notes"}
        assert len(same) >= 12 and {k: row[k] for k in same} == {k: stage[k] for k in same}


def test_a_mistake_is_named_in_memory(model: qwenref.Model) -> None:
    wrong = changed(model.trace(IDS), "ffn_silu", 1, lambda x: -x)
    report = qwenref.verify(wrong, model)
    assert report.status == 1 and "layer 1 ffn_silu" in report.sentence and "layer 1 ffn_silu" in str(report)
    row = next(r for r in report.rows if (r["stage"], r["layer"]) == ("ffn_silu", 1))
    assert row["verdict"] == "unexplained" and row["outside"] > 0


def test_a_notebook_shows_the_page_in_a_frame(model: qwenref.Model) -> None:
    """Escaped whole, so that nothing of it, its style least of all, reaches the notebook."""
    from html.parser import HTMLParser

    report = qwenref.verify(model.trace(IDS), model)
    seen: list[tuple[str, dict[str, str | None]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, dict(attrs)))

    Parser().feed(report._repr_html_())
    assert [tag for tag, _ in seen] == ["iframe"]
    assert seen[0][1]["srcdoc"] == report.html() and "sandbox" in seen[0][1]


def test_a_dump_without_a_manifest_gets_the_models_sizes(model: qwenref.Model, tmp_path: Path) -> None:
    model.trace(IDS, to=tmp_path / "dump")
    whole = qwenref.verify(tmp_path / "dump", model)
    (tmp_path / "dump" / "manifest.json").unlink()
    bare = qwenref.open_dump(tmp_path / "dump")
    assert bare.sizes is None
    assert qwenref.verify(bare, model).rows == qwenref.verify(tmp_path / "dump", model).rows
    assert [r["verdict"] for r in qwenref.verify(bare, model).rows] == [r["verdict"] for r in whole.rows]


# ---- what is wrong


def same_line(call: Callable[[], object], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1].partition(": ")[2]
    with pytest.raises(qwenref.BadInput) as error:
        call()
    assert isinstance(error.value, ValueError)
    assert str(error.value) == line


def test_the_lines_are_the_commands(
    tiny: Path, model: qwenref.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    m, ids, to = str(tiny), "3,1,4,1,5", str(tmp_path / "out")
    for call, words in (
        (lambda: qwenref.load("no/such.gguf"), ["run", "no/such.gguf", "-p", "x"]),
        (lambda: qwenref.load("no-such-alias"), ["run", "no-such-alias", "--tokens", ids]),
        (lambda: qwenref.load(tmp_path / "empty.gguf"), ["inspect", str(tmp_path / "empty.gguf")]),
        (lambda: qwenref.load(tiny, precision="f64"), ["run", m, "--precision", "f64", "--tokens", ids]),
        (lambda: qwenref.load(tiny, threads=10**6), ["run", m, "-t", "1000000", "--tokens", ids]),
        (lambda: model.generate([300]), ["run", m, "--tokens", "300"]),
        (lambda: model.generate(IDS, top_p=0.0), ["run", m, "--tokens", ids, "--top-p", "0"]),
        (lambda: model.generate(IDS, temperature=-1.0), ["run", m, "--tokens", ids, "--temp", "-1"]),
        (lambda: model.generate(IDS, draft=64), ["run", m, "--tokens", ids, "--draft", "64"]),
        (lambda: model.generate([1] * 32768, max_tokens=2), ["trace", m, "--payload", "--decode-steps", "2", "--tokens",
                                                             ",".join(["1"] * 32768)]),
        (lambda: model.trace(IDS, stages="nonsense"), ["trace", m, "--save-tensor", "nonsense"]),
        (lambda: model.trace(IDS, layers=[2]), ["trace", m, "--save-tensor", "all", "--save-tensor-layers", "2"]),
        (lambda: model.trace(IDS, layers=[]), ["trace", m, "--save-tensor", "all", "--save-tensor-layers", ""]),
        (lambda: model.trace(IDS, layers=-1), ["trace", m, "--save-tensor", "all", "--save-tensor-layers=-1"]),
        (lambda: model.trace(IDS, stages="embedding", layers=1), ["trace", m, "--save-tensor", "embedding",
                                                                  "--save-tensor-layers", "1"]),
        (lambda: model.trace(IDS, positions=9), ["trace", m, "--save-tensor", "all", "--positions", "9",
                                                 "--tokens", ids, "--save-tensor-dir", to]),
        (lambda: model.trace(IDS, decode_steps=-1), ["trace", m, "--save-tensor", "all", "--decode-steps", "-1"]),
        (lambda: model.trace(IDS, to=tmp_path / "full"), ["trace", m, "--save-tensor", "all", "--save-tensor-dir",
                                                          str(tmp_path / "full"), "--tokens", ids]),
        (lambda: qwenref.open_dump(tmp_path / "full"), ["verify", str(tmp_path / "full"), m]),
        (lambda: qwenref.verify(tmp_path / "none", model), ["verify", str(tmp_path / "none"), m]),
    ):  # fmt: skip
        same_line(call, words, capsys)
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_our_own_line_is_no_other_value_error(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a ValueError of Python's is caught, ours passes as it is."""
    (tmp_path / "ids").write_bytes(b"1,\xff")
    assert main(["run", str(tiny), "--tokens", f"@{tmp_path / 'ids'}"]) == 2
    wanted = f"engine run: text from {tmp_path / 'ids'} is not UTF-8: byte 2 is 0xff; save it as UTF-8\n"
    assert capsys.readouterr().err == wanted
    for raw, says in (
        (b'{"a":1,"a":2}', "here: key 'a' stands twice"),
        (b"[NaN]", "here: NaN is no JSON number"),
        (b"[1e999]", "here: 1e999 is larger than any float64"),
    ):
        with pytest.raises(qwenref.BadInput) as error:
            parse(raw, "here")
        assert str(error.value) == says


@pytest.mark.parametrize(
    "prompt",
    [[], "", 5, None, b"bytes", [1.5], ["text"], [[1, 2]], np.array([1.0]), np.array([[1, 2]]), {"role": "user"}, [{}],
     [{"role": "user", "content": "x"}, 3], "\ud800"],
)  # fmt: skip
def test_a_prompt_that_is_none(model: qwenref.Model, prompt: Any) -> None:
    for call in (model.prompt_ids, model.generate, model.logits, model.trace):
        if call == model.prompt_ids and isinstance(prompt, list) and not prompt:
            continue  # no ids are ids
        with pytest.raises(qwenref.BadInput) as error:
            call(prompt)
        assert "\n" not in str(error.value)


def test_other_bad_words(model: qwenref.Model) -> None:
    dump = model.trace(IDS, layers=[0])
    for call, says in (
        (lambda: model.generate(IDS, max_tokens=0), "max_tokens 0: ask for at least 1"),
        (lambda: model.generate(IDS, stop=[""]), "at least one character"),
        (lambda: model.generate(IDS, stop=[1.5]), "stop 1.5"),
        (lambda: model.prompt_ids(IDS, chat=True), "chat=True wraps text"),
        (lambda: dump["nonsense"], "unknown stage 'nonsense'"),
        (lambda: dump["attn_norm", 1], "has no attn_norm of layer 1 (prompt); it has that of layer 0"),
        (lambda: dump["attn_norm", 0, 3], "has no attn_norm of layer 0 (decode-0003)"),
        (lambda: dump["attn_norm", "0"], "as in dump['attn_norm', 3, 0]"),
        (lambda: dump[0], "as in dump['attn_norm', 3, 0]"),
        (lambda: dump["attn_norm", 0, 0, 0], "as in dump['attn_norm', 3, 0]"),
        (lambda: qwenref.diff(dump, dump, tolerance=float("nan")), "tolerance nan"),
        (lambda: qwenref.diff(dump, dump, top=0), "top 0"),
        (lambda: qwenref.diff(dump, __file__), "two folders or two files"),
    ):
        with pytest.raises(qwenref.BadInput) as error:
            call()
        assert says in str(error.value)
    assert ("attn_norm", 1) not in dump and ("attn_norm", 0) in dump and "lm_head" in dump


def test_a_file_that_was_changed_ends_the_call(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(tiny.read_bytes())
    m = qwenref.load(path)
    answer = m.generate(IDS, max_tokens=2)
    next(answer)
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    traced = (lambda: m.trace(IDS), lambda: m.trace(IDS, to=tmp_path / "dump"))
    for call in (lambda: list(answer), lambda: m.logits(IDS), *traced):
        with pytest.raises(qwenref.BadInput, match="changed while it was being read"):
            call()
    assert [*tmp_path.iterdir()] == [path]


def test_logits_that_are_not_finite_name_their_weight(tiny: Path, tmp_path: Path) -> None:
    whole = open_checkpoint(tiny)
    broken = replace(whole, tensors={n: t for n, t in whole.tensors.items()})
    w = broken.tensors["output_norm.weight"]
    data = w.data.copy()
    data.view("<f4")[5] = np.nan
    broken.tensors["output_norm.weight"] = replace(w, data=data)
    convert(broken, tmp_path / "nan.gguf")
    m = qwenref.load(tmp_path / "nan.gguf", backend="reference")
    with pytest.raises(qwenref.BadInput, match=r"tensor output_norm.weight has a NaN at element 5"):
        m.generate(IDS, max_tokens=2).text  # noqa: B018
    assert np.isnan(m.logits(IDS)).any() and np.isnan(m.trace(IDS)["final_norm"]).any()  # are there to look at
