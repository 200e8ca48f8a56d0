"""A prompt that is traced in several passes leaves the files, the statistics and the page that one pass leaves.

On the CPU backend these are equalities of bits; the reference and CUDA promise rounding, and are held to it.
"""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref import load
from qwenref.engine import chunks
from qwenref.engine.kernels import backend, reference
from qwenref.engine.kernels.cpu import Cpu
from qwenref.errors import BadInput
from qwenref.tools.main import main
from qwenref.trace import aprt
from qwenref.trace.dump import Dump
from qwenref.trace.memory import DumpInMemory
from qwenref.trace.stats import Counter, statistics
from qwenref.trace.store import MANIFEST, DumpWriter, Whole, files_of

from ..tiny import backends, tiny_config, tiny_weights, write_gguf
from .test_trace_forward import QUANTISED, assert_same

TOKENS = [38, 174, 220, 17, 10, 17, 30, 258, 0, 91, 5]
SIZES = tiny_config().sizes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_weights(formats=QUANTISED, seed=1))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gain of NaN in layer 1, so that its scores are NaN, and what soft-max divides by."""
    w = tiny_weights()
    w.layers[1].attn_norm_D.data.view("<f4")[3] = np.nan
    return write_gguf(tmp_path_factory.mktemp("broken") / "tiny.gguf", w)


def cut(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    for one in (reference, Cpu):
        monkeypatch.setattr(one, "CHUNK", positions)


def same(a: Dump, b: Dump, name: str, precision: str) -> None:
    facts = [[(e.key, e.shape, e.positions, e.capture) for e in d.entries] for d in (a, b)]
    assert facts[0] == facts[1] and facts[0]
    for x, y in zip(a.entries, b.entries, strict=True):
        assert_same(x.values(), y.values(), name, precision, x.label)


@pytest.mark.parametrize("positions", ["all", "last", "0,3..6,9"])
@pytest.mark.parametrize(("name", "precision"), backends())
def test_every_file_is_that_of_one_pass(
    name: str, precision: str, positions: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(to: str | None) -> Dump:
        m = load(model, backend=name, precision=precision, threads=1)
        return m.trace(TOKENS, positions=positions, decode_steps=2, to=to and tmp_path / to)

    whole, held_whole = traced("whole"), traced(None)
    cut(monkeypatch, 4)
    parts, held = traced("parts"), traced(None)
    same(whole, parts, name, precision)
    same(held_whole, held, name, precision)
    for e, in_memory in zip(parts.entries, held.entries, strict=True):
        assert e.sha256 == sha256(e.path.read_bytes()).hexdigest()
        assert e.values().tobytes() == in_memory.values().tobytes()
    if name == "cpu":
        manifests = [json.loads((d.path / MANIFEST).read_text())["files"] for d in (whole, parts)]
        assert manifests[0] == manifests[1]
        names = [n for n in files_of(whole.path) if n != MANIFEST]
        assert all((whole.path / n).read_bytes() == (parts.path / n).read_bytes() for n in names)


@pytest.mark.parametrize("which", ["model", "broken"])
def test_statistics_and_page_are_those_of_one_pass(
    which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """To the last bit, on the CPU; where something is NaN, too: what stands after a query is 0 in any case."""
    said = []
    for count in (512, 3):
        cut(monkeypatch, count)
        page, to = tmp_path / f"{count}.html", tmp_path / str(count)
        words = ["--payload", "--json", "--decode-steps", "1", "--tokens", ",".join(map(str, TOKENS))]
        words += ["--html", str(page), "--save-tensor", "attn_scores,attn_softmax,lm_head"]
        assert main(["trace", str(request.getfixturevalue(which)), *words, "--save-tensor-dir", str(to)]) == 0
        report = json.loads(capsys.readouterr().out)
        del report["directory"]
        said.append((report, page.read_text()))
    assert said[0] == said[1]
    assert (said[0][0]["not_finite"] is not None) == (which == "broken")


@pytest.mark.parametrize(("name", "precision"), backends())
def test_after_a_query_there_is_0_also_where_its_scores_are_nan(name: str, precision: str, broken: Path) -> None:
    m = load(broken, backend=name, precision=precision, threads=1)
    probs_NTS = m.trace(TOKENS, stages="attn_softmax")["attn_softmax", 1]
    after = np.arange(len(TOKENS)) > np.arange(len(TOKENS))[:, None]
    assert np.isnan(probs_NTS[:, ~after]).all() and not probs_NTS[:, after].any()


def test_memory_does_not_grow_with_the_square_of_a_prompt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 tokens: scores of a layer are 36 MB. A stage of 64 numbers a token is 0.4 MB, the probabilities that are
    asked for 24 KB; what is held is a few arrays of a pass, of 1 MB each, which the
    first, of 256 tokens, fills."""
    monkeypatch.setattr(chunks, "SCORES", 1 << 18)
    ids = [i * 7 % 259 for i in range(1500)]
    m = load(model, threads=1)
    m.trace(ids[:40], stages="attn_scores")  # compiles
    peaks = []
    for stages, positions, to in (
        ("attn_norm,attn_softmax", "last", None),
        ("attn_norm,attn_softmax", "last", tmp_path / "last"),
        ("attn_softmax", "all", tmp_path / "all"),
    ):
        tracemalloc.start()
        try:
            dump = m.trace(ids, stages=stages, layers=1, positions=positions, to=to)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert dump["attn_softmax", 1].shape == (4, 1 if positions == "last" else 1500, 1500)
    assert max(peaks) < 8e6, peaks


def test_a_pass_is_as_long_as_its_scores_allow() -> None:
    def lengths(count: int, heads: int) -> list[int]:
        return [len(tokens_T) for _, tokens_T in chunks.chunks([0] * count, 512, heads)]

    assert lengths(1100, 0) == [512, 512, 76]
    assert lengths(1000, 14)[0] == 512 and sum(lengths(1000, 14)) == 1000
    for heads, count in ((14, 5000), (64, 40_000)):
        start = 0
        for n in lengths(count, heads):
            assert n * heads * (start + n) <= chunks.SCORES or n <= chunks.BLOCK
            assert n % chunks.BLOCK == 0 or start + n == count
            start += n
        assert start == count


@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_a_file_in_parts_is_the_file(data: st.DataObject, dtype: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rows first, or rows of heads whose keys grow; any cuts, and a slab of a few values."""
    folder, axis = tmp_path_factory.mktemp("aprt"), data.draw(st.integers(0, 1))
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=3)))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    with np.errstate(all="ignore"):  # of a NaN that signals
        x = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32).astype(dtype)
    rows = shape[axis]
    cuts = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=3))})
    keys = sorted(data.draw(st.lists(st.integers(1, shape[2]), min_size=len(cuts) - 1, max_size=len(cuts) - 1)))
    parts = []
    for start, end, seen in zip(cuts, cuts[1:], keys, strict=False):
        rows_here = (slice(None),) * axis + (slice(start, end),)
        if axis:
            x[(*rows_here, slice(seen, None))] = 0
        parts.append(x[rows_here][..., :seen] if axis else x[rows_here])
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(aprt, "_SLAB", data.draw(st.sampled_from([1, 7, 1 << 20])))
        digest = aprt.write(folder / "whole.bin", 3, x)
        file = aprt.Growing(folder / "parts.bin", 3, shape, axis)
        for part in parts:
            assert not file.complete
            file.add(part)
    assert file.complete and file.digest() == digest
    assert (folder / "parts.bin").read_bytes() == (folder / "whole.bin").read_bytes()


@given(st.lists(st.lists(st.floats(width=32), max_size=6), max_size=6), st.integers(0, 6))
def test_statistics_called_in_twice_are_those_of_once(parts: list[list[float]], at: int) -> None:
    arrays = [np.array(p, np.float32) for p in parts]
    with np.errstate(all="ignore"):
        assert Counter().add(arrays[:at]).add(arrays[at:]).result() == statistics(arrays)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_what_ends_midway_leaves_nothing(
    error: BaseException, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added, add = [], aprt.Growing.add

    def fail(self: aprt.Growing, values: Any) -> None:
        added.append(add(self, values))
        if len(added) == 50:  # of 37 a pass
            raise error

    monkeypatch.setattr(aprt.Growing, "add", fail)
    cut(monkeypatch, 4)
    m = load(model, threads=1)
    with pytest.raises(BadInput if isinstance(error, OSError) else KeyboardInterrupt):
        m.trace(TOKENS, to=tmp_path / "dump")
    assert len(added) == 50 and list(tmp_path.iterdir()) == []


def test_parts_that_do_not_fit_together(tmp_path: Path) -> None:
    rows, whole = np.ones((2, 64), np.float32), Whole(range(4), 4)
    for sink in (DumpWriter(tmp_path / "a", {}, SIZES), DumpInMemory("b", SIZES)):
        sink.put("attn_norm", 0, rows, [0, 1], phase=0, whole=whole)
        for positions in ([0, 1], [1, 2], [3, 4]):
            with pytest.raises(ValueError, match="is not the next one"):
                sink.put("attn_norm", 0, rows, positions, phase=0, whole=whole)
        assert not sink.kept
        sink.put("attn_norm", 0, rows, [2, 3], phase=0, whole=whole)
        assert sink.kept == {(0, 0, "attn_norm")}
    with pytest.raises(ValueError, match="its last rows did not come"), DumpWriter(tmp_path / "c", {}, SIZES) as w:
        w.put("ffn_norm", 0, rows, [0, 1])
        w.put("attn_norm", 0, rows, [0, 1], whole=whole)
    assert not (tmp_path / "c").exists()
    with pytest.raises(BadInput, match="do not fit an APRT file"):
        aprt.Growing(tmp_path / "big.bin", 0, (14, 20_000, 20_000), 1)
    assert not (tmp_path / "big.bin").exists()


def test_the_reference_is_cut_where_an_untraced_prompt_is() -> None:
    """Its bits depend on the cut, so that a trace is of the pass that `engine run` takes."""
    assert backend("cpu").ALIKE and not backend("reference").ALIKE
