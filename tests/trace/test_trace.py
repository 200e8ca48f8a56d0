"""engine trace: writes what was asked for, the bits that ran, whole or not at all; refuses the rest in one line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref import tracing
from qwenref.engine.files import open_checkpoint
from qwenref.engine.generate import generate
from qwenref.engine.kernels import reference
from qwenref.errors import BadInput
from qwenref.facts import model_facts
from qwenref.tools.main import main
from qwenref.trace import aprt
from qwenref.trace.recorder import Recorder
from qwenref.trace.sources import open_dump
from qwenref.trace.stages import shape_for
from qwenref.trace.store import MANIFEST, check_target, files_of

from ..tiny import collect, tiny_weights, write_gguf

TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_weights())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trace(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str, tokens: str = "3,1,4,1,5") -> tuple[int, str, str]:
        at = ["--save-tensor-dir", str(tmp_path / "dump")] if "--save-tensor" in words else []
        status = main(["trace", str(model), "--backend", "reference", "--tokens", tokens, *at, *words])
        return status, *capsys.readouterr()

    return run


def test_all_stages_of_all_layers_in_their_order_shapes_and_bits(trace: Run, tmp_path: Path) -> None:
    status, out, _ = trace("--save-tensor", "all")
    assert status == 0
    dump = open_dump(tmp_path / "dump")
    (stages,) = collect(tiny_weights(), "reference", "f32", TOKENS)
    assert [(e.stage.name, e.layer) for e in dump.entries] == list(stages)
    for e in dump.entries:
        value = stages[e.stage.name, e.layer]
        assert e.shape == value.shape and e.values().tobytes() == value.tobytes()
        assert e.positions == ((4,) if e.stage.name == "lm_head" else (0, 1, 2, 3, 4))
        assert e.capture == dict(e.stage.capture) and e.path.stat().st_size == 12 + 4 * value.size
        line = next(x for x in out.splitlines() if x.endswith(f" {e.label}.bin"))
        assert f"{e.path.stat().st_size:,}" in line and " x ".join(map(str, e.shape)) in line
    assert "37 files" in out and "tokens: 3 1 4 1 5" in out
    best = np.argsort(-stages["lm_head", None])[:5]
    assert f"next after prompt: {best[0]} {stages['lm_head', None][best[0]]:.4f}" in out


def test_manifest_says_what_ran(trace: Run, tmp_path: Path, model: Path) -> None:
    assert trace("--save-tensor", "qkv_bias,lm_head", "--decode-steps", "1")[0] == 0
    manifest = json.loads((tmp_path / "dump" / MANIFEST).read_text())
    run, files = manifest["run"], {f["path"]: f for f in manifest["files"]}
    assert run["model"] == {
        "name": "tiny.gguf",
        "bytes": model.stat().st_size,
        "sha256": sha256(model.read_bytes()).hexdigest(),
    }
    assert (run["backend"], run["precision"], run["tokens"]) == ("reference", "f32", TOKENS)
    assert run["container"].startswith("GGUF") and run["formats"] == {"F32": 27} and len(run["generated"]) == 1
    assert {"qwenref", "numpy", "numba", "python"} <= set(run["versions"])
    for path, f in files.items():
        assert f["sha256"] == sha256((tmp_path / "dump" / path).read_bytes()).hexdigest()
    f = files["decode-0001/layer-1/qkv_bias.bin"]
    assert (f["stage"], f["layer"], f["phase"], f["shape"]) == ("qkv_bias", 1, "decode-0001", [1, 128])
    assert (f["positions"], f["capture"]["bias"]) == ("5", "after")


def test_decode_steps_are_the_positions_of_one_longer_prompt(trace: Run, tmp_path: Path) -> None:
    """Step n of a trace is position n of a prompt; to rounding here, to the bit on the CPU (test_trace_forward)."""
    assert trace("--save-tensor", "all", "--decode-steps", "3")[0] == 0
    dump = open_dump(tmp_path / "dump")
    fed = dump.run["generated"]
    assert len(set(fed)) > 1  # or each step could be fed the first's token, unseen
    assert fed == list(generate(TOKENS, reference.prepare(tiny_weights(), "f32"), reference, "f32", 3))
    (whole,) = collect(tiny_weights(), "reference", "f32", TOKENS + fed)
    for step in (1, 2, 3):
        at = len(TOKENS) - 1 + step
        for name in ("embedding", "attention", "post_ffn_residual"):
            e = dump.get(name, 0, step)
            assert e is not None and e.positions == (at,)
            np.testing.assert_allclose(e.values()[0], whole[name, 0][at], rtol=1e-4, atol=1e-5)
        e = dump.get("attn_softmax", 1, step)
        assert e is not None and e.shape == (4, 1, at + 1)
        np.testing.assert_allclose(e.values()[:, 0], whole["attn_softmax", 1][:, at, : at + 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "kept"), [("last", [4]), ("0,2..4", [0, 2, 3]), ("3,2..4,0", [0, 2, 3]), ("all", [0, 1, 2, 3, 4])]
)
def test_positions(positions: str, kept: list[int], trace: Run, tmp_path: Path) -> None:
    assert trace("--save-tensor", "attn_norm,attn_scores,lm_head", "--positions", positions)[0] == 0
    dump = open_dump(tmp_path / "dump")
    (stages,) = collect(tiny_weights(), "reference", "f32", TOKENS)
    for e in dump.entries:
        value = stages[e.stage.name, e.layer]
        if e.stage.name == "attn_norm":
            value = value[kept]
        elif e.stage.name == "attn_scores":
            value = value[:, kept]
        assert e.values().tobytes() == value.tobytes()
        assert e.positions == ((4,) if e.stage.name == "lm_head" else tuple(kept))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--save-tensor STAGES"),
        (("--save-tensor", "attn_nrom"), "unknown stage 'attn_nrom'"),
        (("--save-tensor", ""), "no stage is named"),
        (("--save-tensor", "embedding", "--save-tensor-layers", "1..2"), "belongs to layer 0"),
        (("--save-tensor", "attn_norm", "--save-tensor-layers", "2"), "layer 2 is past the last: the model has 0 to 1"),
        (("--save-tensor", "attn_norm", "--save-tensor-layers", "0..3"), "layer 2 is past the last"),
        (("--save-tensor", "attn_norm", "--positions", "5"), "position 5 is past the last"),
        (("--save-tensor", "attn_norm", "--positions", "3..1"), "is empty"),
        (("--save-tensor", "attn_norm", "--decode-steps", "-1"), "cannot be negative"),
        (("--save-tensor", "attn_norm", "--chat"), "--chat wraps text"),
        (("--payload", "--positions", "last"), "give --save-tensor"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    words: tuple[str, ...], says: str, trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "prepare", lambda *_: pytest.fail("the weights were loaded for nothing"))
    status, out, err = trace(*words)
    assert status == 2 and says in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "dump").exists()


@pytest.mark.parametrize("tokens", ["", "1,,2", "a", "-1", "259", "1.0", "99999999999"])
def test_tokens_that_are_none(tokens: str, trace: Run) -> None:
    assert trace("--save-tensor", "lm_head", tokens=tokens)[0] == 2


def test_a_stage_that_the_model_does_not_yield_is_no_success(
    trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a model without biases in aprender, where qkv_bias wrote nothing and exited 0."""
    whole = Recorder.look
    monkeypatch.setattr(
        Recorder, "look", lambda self, s, *rest: whole(self, s, *rest) if s.name != "qkv_bias" else None
    )
    status, _, err = trace("--save-tensor", "attn_norm,qkv_bias")
    assert status == 2 and "did not yield stage qkv_bias of layer 0" in err and files_of(tmp_path) == []


def test_disk_full_midway_leaves_nothing(trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = [], aprt.write

    def fill(path: Path, *rest: Any) -> str:
        if len(written) == 20:
            path.write_bytes(b"APRT, half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write(path, *rest)

    monkeypatch.setattr(aprt, "write", fill)
    status, _, err = trace("--save-tensor", "all")
    assert status == 2 and "No space left on device" in err and err.count("\n") == 1
    assert len(written) == 20 and list(tmp_path.iterdir()) == []


def test_disk_full_at_the_manifest_keeps_the_older_dump(
    trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trace("--save-tensor", "attn_norm")[0] == 0
    before = {f: (tmp_path / "dump" / f).read_bytes() for f in files_of(tmp_path / "dump")}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    assert trace("--save-tensor", "all")[0] == 2
    assert {f: (tmp_path / "dump" / f).read_bytes() for f in files_of(tmp_path / "dump")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["dump"]


def test_a_move_that_fails_puts_the_older_dump_back(
    trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trace("--save-tensor", "attn_norm")[0] == 0
    before = files_of(tmp_path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", fail)
    assert trace("--save-tensor", "all")[0] == 2
    assert files_of(tmp_path) == before


def test_too_little_room_is_known_before_the_model_runs(trace: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "disk_usage", lambda _: type("Usage", (), {"free": 10_000}))
    monkeypatch.setattr(reference, "prepare", lambda *_: pytest.fail("the weights were loaded for nothing"))
    status, _, err = trace("--save-tensor", "all")
    assert status == 2 and "trace fewer" in err


def test_a_second_trace_replaces_the_first_as_a_whole(trace: Run, tmp_path: Path) -> None:
    """No file of an earlier run survives to be counted as written."""
    assert trace("--save-tensor", "all")[0] == 0
    status, out, _ = trace("--save-tensor", "ffn_out", "--save-tensor-layers", "1")
    assert status == 0 and "1 file," in out
    assert files_of(tmp_path) == ["dump/layer-1/ffn_out.bin", "dump/manifest.json"]


@pytest.mark.parametrize("kind", ["file", "foreign", "apr", "extra", "link", "not ours", "parent is a file"])
def test_nothing_of_the_users_is_replaced(kind: str, trace: Run, tmp_path: Path) -> None:
    target = tmp_path / "dump"
    if kind == "file":
        target.write_text("mine")
    elif kind == "link":
        (tmp_path / "mine").mkdir()
        target.symlink_to(tmp_path / "mine")
    elif kind == "parent is a file":
        target = tmp_path / "plain"
        target.write_text("mine")
    elif kind == "extra":
        assert trace("--save-tensor", "attn_norm")[0] == 0
        (target / "notes.txt").write_text("mine")
    else:
        target.mkdir()
        if kind == "foreign":
            (target / "thesis.tex").write_text("mine")
        elif kind == "not ours":
            (target / MANIFEST).write_text('{"name": "a web app"}')
        else:
            aprt.write(target / "lm_head.bin", None, np.zeros(3, np.float32))
    before = files_of(tmp_path)
    if kind == "parent is a file":
        with pytest.raises(BadInput, match="plain is a file; a dump is a folder"):
            check_target(target / "dump")
    else:
        status, _, err = trace("--save-tensor", "lm_head")
        assert status == 2 and err.count("\n") == 1
    assert files_of(tmp_path) == before


def test_a_folder_without_write_permission(trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By os.access, for root writes anywhere."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    status, _, err = trace("--save-tensor", "lm_head")
    assert status == 2 and "not writable" in err and files_of(tmp_path) == []


@pytest.mark.model
def test_the_real_model_writes_411_files(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token ids, choice and file sizes of Qwen2.5-Coder-0.5B-Instruct, prompt "What is 2+2?"."""
    words = ["--save-tensor", "all", "--save-tensor-dir", str(tmp_path / "d")]
    assert main(["trace", str(model_path), *words]) == 0
    out = capsys.readouterr().out
    dump = open_dump(tmp_path / "d")
    assert len(dump.entries) == 24 * 17 + 1 + 2 == 411 and "411 files" in out
    assert "tokens: 3838 374 220 17 10 17 30\nnext after prompt: 576 ' The'" in out
    sizes = {"D": 896, "N": 14, "K": 2, "H": 64, "E": 1152, "F": 4864, "V": 151936}
    assert dump.sizes == sizes
    for e in dump.entries:
        assert e.path.stat().st_size == 12 + 4 * int(np.prod(shape_for(e.stage, sizes, 7, 7)))


def test_the_digest_of_a_split_model_is_of_all_its_parts(model: Path, tmp_path: Path) -> None:
    """As `sha256sum m-*.gguf | sha256sum` has it; of one file, the file's own."""
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode())
    whole = open_checkpoint(model)
    lines = "".join(f"{sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in parts)
    facts = model_facts(replace(whole, path=parts[0], files=tuple(parts)))
    assert facts == {"name": parts[0].name, "bytes": 42, "sha256": sha256(lines.encode()).hexdigest()}
    assert model_facts(whole)["sha256"] == sha256(model.read_bytes()).hexdigest()
