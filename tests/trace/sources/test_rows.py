"""One prompt of many: padded left or right, packed, in chunks, behind a prefix, drafted; judged as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.errors import BadInput
from qwenref.trace.dump import Dump
from qwenref.trace.sources import Asked, open_dump
from qwenref.trace.verify.verify import verify

from ...engines import dump_of
from ...foreign_dumps import Arrays
from ...tiny import tiny_weights

W = tiny_weights()
C = W.config
PROMPTS = [[3, 200, 17, 9, 4], [50, 51], [8, 7, 6]]
STEPS = [[77], [78], [79]]
PAD = 258
IN_USE = np.array([PROMPTS[0], [17, 17, 17, 50, 51], [17, 17, 8, 7, 6]])  # padded by an id that the first prompt has


def plain(i: int) -> Dump:
    return dump_of(W, "HF float32", PROMPTS[i], steps=STEPS[i])


def pads(x: np.ndarray, axis: int, width: int, left: bool, value: float) -> np.ndarray:
    room = width - x.shape[axis]
    side = (room, 0) if left else (0, room)
    return np.pad(x, [side if i == axis else (0, 0) for i in range(x.ndim)], constant_values=value)


def padded(left: bool) -> Arrays:
    """Three prompts and a step of each, a batch axis before all others; what pads compute is noise."""
    dumps, width = [plain(i) for i in range(3)], max(map(len, PROMPTS))
    found: Arrays = {
        "tokens": np.stack([pads(np.array(p), 0, width, left, PAD) for p in PROMPTS]),
        "attention_mask": np.stack([pads(np.ones(len(p), np.int64), 0, width, left, 0) for p in PROMPTS]),
        "phase-1/tokens": np.array(STEPS),
    }
    mask = found["attention_mask"]
    found["phase-1/attention_mask"] = np.concatenate([mask, np.ones((3, 1), np.int64)], 1)
    for e in dumps[0].entries:
        name = e.stage.name if e.stage.scope == "whole" else f"layer-{e.layer}/{e.stage.name}"
        rows = []
        for d in dumps:
            x = np.asarray(d[e.stage.name, e.layer, e.phase])
            if "T" in e.stage.letters and e.phase == 0:
                x = pads(x, e.stage.letters.index("T"), width, left, 7.5)
            if "S" in e.stage.letters:  # the step's own key comes behind the prompt's
                keys = pads(x[..., : x.shape[-1] - e.phase], x.ndim - 1, width, left, 7.5)
                x = np.concatenate([keys, x[..., x.shape[-1] - e.phase :]], -1)
            rows.append(x[None] if e.stage.name == "lm_head" else x)
        found[f"phase-{e.phase}/{name}" if e.phase else name] = np.stack(rows)
    return found


def written(tmp_path: Path, arrays: Arrays) -> Path:
    save_file(
        {k: np.ascontiguousarray(v) for k, v in arrays.items()},
        tmp_path / "d.safetensors",
        {"format": "qwenref-dump-1"},
    )
    return tmp_path / "d.safetensors"


def opened(path: Path, **asked: Any) -> Dump:
    return open_dump(path, C.sizes, layers=C.num_hidden_layers, asked=Asked(**asked))


def same(dump: Dump, right: Dump, stages: int | None = None) -> None:
    assert len(dump.entries) == (len(right.entries) if stages is None else stages)
    for e in dump.entries:
        x = right.get(e.stage.name, e.layer, e.phase)
        assert x is not None and e.positions == x.positions, e.label
        np.testing.assert_array_equal(e.values(), x.values(), e.label)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_row_of_a_padded_batch(left: bool, row: int, tmp_path: Path) -> None:
    dump = opened(written(tmp_path, padded(left)), row=row)
    same(dump, plain(row))
    assert [*dump.run["tokens"], *dump.run["generated"]] == [*PROMPTS[row], *STEPS[row]]
    assert verify(dump, W).status == 0


def without_steps(arrays: Arrays, *names: str) -> Arrays:
    return {k: v for k, v in arrays.items() if not k.startswith("phase-1") and k not in names}


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("told", ["positions", "pads"])
def test_pads_are_told_without_a_mask(told: str, left: bool, tmp_path: Path) -> None:
    """By positions as Transformers makes them of a mask (1 for a pad), or by the id that fills up."""
    arrays = without_steps(padded(left))
    mask = arrays.pop("attention_mask")
    if told == "positions":
        arrays["positions"] = np.where(mask == 0, 1, np.cumsum(mask, 1) - 1)
        arrays["tokens"][mask == 0] = 3  # an id of the first prompt: no pad by itself
    dump = opened(written(tmp_path, arrays), row=1)
    assert {e.positions for e in dump.entries} == {(0, 1), (1,)} and dump.run["tokens"] == PROMPTS[1]
    assert verify(dump, W).status == 0


@pytest.mark.parametrize(
    ("change", "asked", "says"),
    [
        ({}, {}, "a batch of 3 prompts; say which is meant with --row 0, up to 2"),
        ({}, {"row": 3}, "--row 3, where the batch has 3 prompts, from 0 to 2"),
        ({"attention_mask": np.zeros((3, 5), np.int64)}, {"row": 0}, "row 0 holds pads only"),
        ({"tokens": np.ones((3, 5), np.int64), "attention_mask": None}, {"row": 0}, "which of the 5 positions"),
        ({"tokens": IN_USE, "attention_mask": None}, {"row": 1}, "which of the 5 positions"),
        ({"layer-1/ffn_norm": np.ones((2, 5, 64), np.float32)}, {"row": 0}, r"none of 3 prompts of 5 positions"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked_for(change: Arrays, asked: Any, says: str, tmp_path: Path) -> None:
    arrays = {k: v for k, v in {**without_steps(padded(True)), **change}.items() if v is not None}
    with pytest.raises(BadInput, match=says):
        opened(written(tmp_path, arrays), **asked)


def test_positions_that_one_row_lends_to_all_are_said(tmp_path: Path) -> None:
    """One arange for every row of a left-padded batch (unsloth#3699): the row is judged at its own positions."""
    arrays = without_steps(padded(True)) | {"positions": np.tile(np.arange(5), (3, 1))}
    dump = opened(written(tmp_path, arrays), row=1)
    assert dump.entries[0].positions == (0, 1)
    assert any("positions of row 1 are 3 to 4, and 0 to 1 of it alone" in n for n in dump.notes)


def packed(order: Sequence[int], **told: np.ndarray) -> Arrays:
    """Prompts one behind the other, without scores, a row of logits for each."""
    dumps = [plain(i) for i in order]
    found: Arrays = {"tokens": np.concatenate([PROMPTS[i] for i in order]), **told}
    for e in dumps[0].entries:
        if e.phase == 0 and "S" not in e.stage.letters:
            name = e.stage.name if e.stage.scope == "whole" else f"layer-{e.layer}/{e.stage.name}"
            values = [np.asarray(d[e.stage.name, e.layer]) for d in dumps]
            found[name] = np.stack(values) if e.stage.name == "lm_head" else np.concatenate(values)
    return found


@pytest.mark.parametrize(
    "told",
    [
        {"cu_seqlens": np.array([0, 5, 7, 10])},
        {"seq_lens": np.array([5, 2, 3])},
        {"positions": np.array([0, 1, 2, 3, 4, 0, 1, 0, 1, 2])},
        {"seq_lens": np.array([5, 2, 3]), "positions": np.array([0, 1, 2, 3, 4, 0, 1, 0, 1, 2])},
    ],
    ids=["cu_seqlens", "seq_lens", "positions", "both"],
)
@pytest.mark.parametrize("row", range(3))
def test_a_row_of_a_packed_batch(row: int, told: Arrays, tmp_path: Path) -> None:
    dump = opened(written(tmp_path, packed([0, 1, 2], **told)), row=row)
    same(dump, plain(row), 15 * 2 + 3)
    assert dump.run["tokens"] == PROMPTS[row] and verify(dump, W).status == 0


def test_packed_lengths_that_do_not_fit(tmp_path: Path) -> None:
    for told, says in (
        ({"cu_seqlens": np.array([0, 5, 4, 10])}, "do not rise from 0 to the 10 rows"),
        ({"seq_lens": np.array([5, 4])}, "2 seq_lens for 10 rows: whose are they"),
        ({"positions": np.array([0, 1, 2])}, "3 positions for 10 tokens"),
    ):
        with pytest.raises(BadInput, match=says):
            opened(written(tmp_path, packed([0, 1, 2], **told)), row=0)


LONG = [3, 200, 17, 9, 4, 77, 12, 33]


def chunks(*ends: int) -> tuple[Arrays, Dump]:
    """A prompt in chunks, written down with positions: each a phase of the right dump of the same chunks."""
    whole = dump_of(W, "HF float32", LONG)
    found: Arrays = {}
    for phase, (a, b) in enumerate(zip((0, *ends[:-1]), ends, strict=True)):
        head = f"phase-{phase}/"
        found |= {f"{head}tokens": np.array(LONG[a:b]), f"{head}positions": np.arange(a, b)}
        for e in whole.entries:
            x, letters = np.asarray(e.values()), e.stage.letters
            if "T" not in letters:
                continue
            x = np.take(x, range(a, b), letters.index("T"))
            name = e.stage.name if e.stage.scope == "whole" else f"layer-{e.layer}/{e.stage.name}"
            found[head + name] = x[..., :b] if "S" in letters else x
    return found, whole


def test_a_prompt_in_chunks(tmp_path: Path) -> None:
    arrays, _ = chunks(3, 7, 8)
    dump = opened(written(tmp_path, arrays))
    assert [e.positions for e in dump.entries if e.stage.name == "final_norm"] == [(0, 1, 2), (3, 4, 5, 6), (7,)]
    assert dump.run["tokens"] == LONG and dump.run["generated"] == []
    found = verify(dump, W)
    assert found.status == 0 and all(f.explained for f in found.findings)


def test_behind_a_prefix_that_is_cached(tmp_path: Path) -> None:
    """The pass begins at position 3: what needs no keys of the prefix is judged, the rest is said to be missing."""
    arrays, _ = chunks(3, 8)
    found = verify(opened(written(tmp_path, {k: v for k, v in arrays.items() if k.startswith("phase-1")})), W)
    judged = {f.stage for f in found.findings if f.explained}
    assert judged >= {"attn_norm", "qkv_bias", "q_post_rope", "k_post_rope", "attn_softmax", "attn_out", "ffn_out"}
    assert {f.stage for f in found.findings if not f.explained} == {"embedding", "attn_scores", "attention"}
    assert found.status == 0


def test_rejected_drafts_are_left_out(tmp_path: Path) -> None:
    """Three tokens are drafted, one is kept: the next pass begins in the middle of the last."""
    arrays, _ = chunks(3, 6)
    again, _ = chunks(4, 8)
    arrays |= {k.replace("phase-1", "phase-2"): v for k, v in again.items() if k.startswith("phase-1")}
    dump = opened(written(tmp_path, arrays))
    assert [e.positions for e in dump.entries if e.stage.name == "final_norm"] == [(0, 1, 2), (3,), (4, 5, 6, 7)]
    assert any("2 rows are computed again" in n for n in dump.notes) and verify(dump, W).status == 0


def test_two_prompts_one_after_the_other(tmp_path: Path) -> None:
    first, _ = chunks(5)
    second, _ = chunks(4, 8)
    arrays = {**first, **{k.replace("phase-1", "phase-2").replace("phase-0", "phase-1"): v for k, v in second.items()}}
    path = written(tmp_path, arrays)
    with pytest.raises(BadInput, match="both begin at position 0: two prompts; say which with --passes"):
        opened(path)
    dump = opened(path, passes=(range(1, 3),))
    assert dump.run["tokens"] == LONG and verify(dump, W).status == 0
