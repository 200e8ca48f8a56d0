"""Dumps on disk: written by anyone, read with or without a manifest, never trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.errors import BadInput
from qwenref.trace import aprt
from qwenref.trace.sources import open_dump
from qwenref.trace.sources.aprt_folder import open_stage
from qwenref.trace.stages import by_name
from qwenref.trace.store import MANIFEST, DumpWriter

from ..tiny import tiny_config

SIZES = tiny_config().sizes


def dump_of(path: Path, **shapes: tuple[int, ...]) -> Path:
    """A dump of random values without a manifest, as aprender writes it."""
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        s = by_name(name)
        folder = path if s.scope == "whole" else path / "layer-0"
        folder.mkdir(parents=True, exist_ok=True)
        values = rng.standard_normal(shape).astype(np.float32)
        aprt.write(folder / f"{name}.bin", None if s.scope == "whole" else 0, values)
    return path


def test_a_dump_without_a_manifest_has_shapes_from_the_sizes(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "d", lm_head=(259,), attn_scores=(4, 7, 7), attn_norm=(7, 64), k_post_rope=(7, 2, 16))
    (path / "_PROVENANCE.txt").write_text("model: x")
    dump = open_dump(path, SIZES)
    assert [e.stage.name for e in dump.entries] == ["attn_norm", "k_post_rope", "attn_scores", "lm_head"]
    assert [e.shape for e in dump.entries] == [(7, 64), (7, 2, 16), (4, 7, 7), (259,)]
    assert all(e.positions is None and e.capture is None for e in dump.entries) and dump.run == {}
    assert [e.shape for e in open_dump(path).entries] == [(448,), (224,), (196,), (259,)]


def test_names_that_are_no_stages_are_told_and_the_alias_is_known(tmp_path: Path) -> None:
    path = dump_of(tmp_path / "d", attn_norm=(7, 64))
    aprt.write(path / "layer-0" / "layer_output.bin", 0, np.zeros(64, np.float32))
    aprt.write(path / "layer-0" / "moe_router.bin", 0, np.zeros(4, np.float32))
    dump = open_dump(path)
    assert [e.stage.name for e in dump.entries] == ["attn_norm", "post_ffn_residual"]
    assert dump.ignored == ("layer-0/moe_router.bin",)


def test_wrong_dumps_are_refused(tmp_path: Path) -> None:
    zeros = np.zeros(64, np.float32)
    cases: dict[str, tuple[Callable[[Path], Any], str]] = {
        "empty": (lambda d: None, "holds no stage files"),
        "layer unlike the folder": (
            lambda d: aprt.write(d / "layer-0" / "attn_norm.bin", 1, zeros),
            "header says layer 1",
        ),
        "sentinel in a layer": (
            lambda d: aprt.write(d / "layer-0" / "attn_norm.bin", None, zeros),
            "says the whole model",
        ),
        "layer stage at the root": (lambda d: aprt.write(d / "attn_norm.bin", None, zeros), "belongs into a layer-N"),
        "head in a layer": (
            lambda d: aprt.write(d / "layer-0" / "lm_head.bin", 0, zeros),
            "belongs into the dump's own",
        ),
        "no whole position": (
            lambda d: aprt.write(d / "layer-0" / "attn_norm.bin", 0, zeros[:63]),
            "63 values are no T D",
        ),
        "stage twice": (
            lambda d: [aprt.write(d / "layer-0" / f"{n}.bin", 0, zeros) for n in ("layer_output", "post_ffn_residual")],
            "are the same stage",
        ),
    }
    for i, (name, (make, says)) in enumerate(cases.items()):
        path = tmp_path / str(i)
        (path / "layer-0").mkdir(parents=True)
        make(path)
        with pytest.raises(BadInput, match=says):
            open_dump(path, SIZES)
            pytest.fail(name)
    for path in (tmp_path / "nowhere", tmp_path / "0" / "x.bin"):
        with pytest.raises(BadInput, match="no such file or folder"):
            open_dump(path)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with DumpWriter(tmp_path / "dump", {"tokens": [1, 2]}, SIZES) as w:
        w.put("attn_norm", 0, np.ones((2, 64), np.float32), [0, 1])
    return tmp_path / "dump"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["files"][0].update(path="../../etc/passwd"), "no path of a stage file"),
        (lambda m: m["files"][0].update(path="/layer-0/attn_norm.bin"), "no path of a stage file"),
        (lambda m: m["files"][0].update(path="layer-0/\0.bin"), "no path of a stage file"),
        (lambda m: m["files"][0].update(path="layer-0/" + "a" * 5000 + ".bin"), "no path of a stage file"),
        (lambda m: m["files"][0].update(path="layer-0/x.bin"), "not the file of a stage"),
        (lambda m: m["files"][0].update(path="layer-0/ffn_norm.bin"), "no such file"),
        (lambda m: m["files"][0].update(path=7), "objects with a path"),
        (lambda m: m["files"][0].update(shape=[3, 64]), "holds 128 values"),
        (lambda m: m["files"][0].update(shape=[128]), "not T D"),
        (lambda m: m["files"][0].update(shape=[-2, -64]), "not T D"),
        (lambda m: m["files"][0].update(shape="2x64"), "not T D"),
        (lambda m: m["files"][0].update(positions="0..4000000000"), "has 2 positions"),
        (lambda m: m["files"][0].update(positions=[0, 1]), "needs positions"),
        (lambda m: m["files"][0].update(positions="1,0"), "positions in order"),
        (lambda m: m["files"][0].update(positions="1,1"), "positions in order"),
        (lambda m: m["files"][0].update(positions="4294967293..4294967295"), "below 2\\^31"),
        (lambda m: m["files"][0].update(capture=["x"]), "needs positions, capture"),
        (lambda m: m["files"][0].update(capture={"bias": ["before"]}), "short text"),
        (lambda m: m["files"][0].update(capture={"bias": "\x1b[2J"}), "short text"),
        (lambda m: m["files"][0].update(capture={"\ud800": "before"}), "short text"),
        (lambda m: m["files"][0].update(shape=[10**4000, 64]), "holds 128 values"),
        (lambda m: m["files"][0].update(stage="ffn_norm"), "is listed as"),
        (lambda m: m["files"][0].update(layer=1), "is listed as"),
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m.update(sizes=[]), "`sizes`"),
        (lambda m: m.update(sizes={"D": 64}), "`sizes`"),
        (lambda m: m["sizes"].update(D=0), "`sizes`"),
        (lambda m: m["sizes"].update(D=32), "`sizes` says D is 32"),
        (lambda m: m["sizes"].update(D=1 << 40), "`sizes`"),
        (lambda m: m["sizes"].update(Z=[[]]), "`sizes`"),
        (lambda m: m.update(run=None), "`run`"),
        *(
            (lambda m, t=t: m["run"].update(tokens=t), "list of token ids")
            for t in (7, "1,2", {"1": 2}, [[1]], [1.0], [True], [-1], [1 << 31], None)
        ),
        (lambda m: m["run"].update(generated=3), "list of token ids"),
        (lambda m: m.update(files={}), "`files`"),
        (lambda m: m.update(files=[]), "does not list"),
    ],
)
def test_manifests_that_lie(change: Callable[[Any], None], says: str, written: Path) -> None:
    manifest = json.loads((written / MANIFEST).read_text())
    change(manifest)
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=says):
        open_dump(written)


def test_scores_of_fewer_keys_than_positions(tmp_path: Path) -> None:
    N = SIZES["N"]
    with DumpWriter(tmp_path / "dump", {}, SIZES) as w:
        w.put("attn_scores", 0, np.ones((N, 1, 3), np.float32), [2])
    file = tmp_path / "dump" / MANIFEST
    file.write_text(file.read_text().replace('"positions": "2"', '"positions": "3"'))
    with pytest.raises(BadInput, match="has 3 keys, and names position 3"):
        open_dump(tmp_path / "dump")


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '{"format": "qwenref-trace"', "\udcff"])
def test_manifests_that_are_no_json(text: str, written: Path) -> None:
    (written / MANIFEST).write_text(text, errors="surrogateescape")
    with pytest.raises(BadInput, match="not JSON"):
        open_dump(written)


def test_a_changed_file_is_seen_and_a_stale_one_refused(written: Path) -> None:
    open_dump(written).check_digests()
    file = written / "layer-0" / "attn_norm.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"\x40")
    with pytest.raises(BadInput, match="SHA-256"):
        open_dump(written).check_digests()
    aprt.write(written / "layer-0" / "ffn_norm.bin", 0, np.zeros((2, 64), np.float32))
    with pytest.raises(BadInput, match="does not list"):
        open_dump(written)


def test_one_file_finds_its_manifest(written: Path) -> None:
    e, sizes = open_stage(written / "layer-0" / "attn_norm.bin")
    assert e.shape == (2, 64) and e.positions == (0, 1) and sizes == SIZES


def test_the_writer_refuses_what_is_not_the_stage(tmp_path: Path) -> None:
    x = np.zeros((2, 64), np.float32)
    wrong: list[tuple[str, int | None, np.ndarray, list[int]]] = [
        ("attn_norm", 0, x[:, :63], [0, 1]),
        ("attn_norm", 0, x, [0]),
        ("attn_norm", 0, x.reshape(-1), [0, 1]),
        ("attn_norm", None, x, [0, 1]),
        ("final_norm", 0, x, [0, 1]),
        ("embedding", 1, x, [0, 1]),
    ]
    with DumpWriter(tmp_path / "d", {}, SIZES) as w:
        for case in wrong:
            with pytest.raises(ValueError, match=r"must be|cannot be"):
                w.put(*case)
        w.put("attn_norm", 0, x, [0, 1])
    assert [e.label for e in open_dump(tmp_path / "d").entries] == ["layer-0/attn_norm"]


def test_nothing_written_is_no_dump(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing was written"), DumpWriter(tmp_path / "d", {}, SIZES):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_dump_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), DumpWriter(tmp_path / "d", {}, SIZES) as w:
        w.put("attn_norm", 0, np.zeros((1, 64), np.float32), [0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_stages_are_on_disk_when_put_returns(tmp_path: Path) -> None:
    """Streams: the writer keeps no array, so a change after put is not seen."""
    x = np.zeros((1, 64), np.float32)
    with DumpWriter(tmp_path / "d", {}, SIZES) as w:
        w.put("attn_norm", 0, x, [0])
        x[:] = 7
    assert not open_dump(tmp_path / "d").entries[0].values().any()
