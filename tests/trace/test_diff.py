"""engine diff: every complaint about aprender's (D-1 to D-8) is a test that this one passes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwenref.tools.main import main
from qwenref.trace import aprt, compare
from qwenref.trace.dump import Entry
from qwenref.trace.sources import open_dump
from qwenref.trace.stages import by_name
from qwenref.trace.store import DumpWriter

from ..tiny import Stages, collect, tiny_config, tiny_weights

SIZES = tiny_config().sizes
TOKENS = [3, 1, 4, 1, 5]
Diff = Callable[..., tuple[int, str, str]]


@pytest.fixture
def diff(capsys: pytest.CaptureFixture[str]) -> Diff:
    def run(*words: Any) -> tuple[int, str, str]:
        status = main(["diff", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def stages() -> Stages:
    return collect(tiny_weights(), "reference", "f32", TOKENS)[0]


def write(
    path: Path,
    stages: Stages,
    positions: Any = range(5),
    run: Mapping[str, Any] | None = None,
    manifest: bool = True,
    **put: Any,
) -> Path:
    with DumpWriter(path, run or {}, SIZES) as w:
        for (name, layer), values in stages.items():
            w.put(name, layer, values, positions[-1:] if name == "lm_head" else positions, **put)
    if not manifest:
        (path / "manifest.json").unlink()
    return path


def strict(text: str) -> Any:
    """JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def with_change(stages: Stages, key: tuple[str, int | None], change: Callable[[np.ndarray], Any]) -> Stages:
    copy = {k: np.array(v) for k, v in stages.items()}
    change(copy[key])
    return copy


def test_a_dump_against_itself_is_within_tolerance_0(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    a, b = (write(tmp_path / n, stages) for n in "ab")
    status, out, err = diff(a, b, "--tolerance", "0")
    assert (status, err) == (0, "") and "37 stages compared, 0 beyond" in out
    told = [line.split()[0] for line in out.splitlines()[6:] if line and not line.startswith(" ")][:-1]
    assert told == [e.label for e in open_dump(a).entries]


def test_d1_a_difference_beyond_the_tolerance_is_exit_1_and_the_first_is_marked(
    stages: Stages, tmp_path: Path, diff: Diff
) -> None:
    """Two places are wrong; the first in order of execution is marked, not the largest."""
    bad = with_change(stages, ("ffn_up", 0), lambda x: x.__imul__(np.float32(1.01)))
    bad = with_change(bad, ("attention", 1), lambda x: x.fill(0))
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", bad)
    status, out, _ = diff(a, b)
    assert status == 1 and "2 beyond the tolerance 0.001; 1.000e+00 would have passed" in out
    lines = out.splitlines()
    (at,) = [i for i, line in enumerate(lines) if "<-- first beyond" in line]
    marked = lines[at - 1]
    assert marked.startswith("layer-0/ffn_up ")
    assert diff(a, b, "--tolerance", "1")[0] == 0
    report = strict(diff(a, b, "--json")[1])
    assert report["first_beyond"] == "layer-0/ffn_up" and report["tolerance_needed"] == 1 and not report["within"]


def test_the_tolerance_that_would_have_passed_passes(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    bad = with_change(stages, ("ffn_up", 0), lambda x: x.__imul__(np.float32(1.37)))
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", bad)
    needed = strict(diff(a, b, "--json")[1])["tolerance_needed"]
    assert diff(a, b, "--tolerance", repr(needed))[0] == 0
    assert diff(a, b, "--tolerance", repr(float(np.nextafter(needed, 0))))[0] == 1


def test_d2_the_same_values_in_another_shape_are_not_mistaken(tmp_path: Path, diff: Diff) -> None:
    """One dump's shape [64, 5] of the same bytes cannot be written as T D at all; counts decide for bare files."""
    x = np.arange(320, dtype=np.float32).reshape(5, 64)
    aprt.write(tmp_path / "a.bin", 0, x)
    aprt.write(tmp_path / "b.bin", 0, x.reshape(64, 5))
    assert diff(tmp_path / "a.bin", tmp_path / "b.bin", "--tolerance", "0")[0] == 0


def test_d3_zeros_against_zeros_are_equal(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    zeros = {k: np.zeros_like(v) for k, v in stages.items()}
    a, b = write(tmp_path / "a", zeros), write(tmp_path / "b", zeros)
    status, out, _ = diff(a, b, "--json", "--tolerance", "0")
    assert status == 0
    assert all((r["cosine"], r["relative"]) == (1, 0) for r in strict(out)["stages"])


def test_zeros_against_values_have_no_cosine_and_never_pass(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    zeros = with_change(stages, ("attn_out", 1), lambda x: x.fill(0))
    a, b = write(tmp_path / "a", zeros), write(tmp_path / "b", stages)
    status, out, _ = diff(a, b, "--json", "--tolerance", "1e9")
    report = strict(out)
    (row,) = [r for r in report["stages"] if not r["within"]]
    assert status == 1 and row["stage"] == "attn_out" and row["cosine"] is None and row["relative"] is None
    assert report["tolerance_needed"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_d4_not_a_number_on_one_side_never_passes(
    value: float, side: str, stages: Stages, tmp_path: Path, diff: Diff
) -> None:
    bad = with_change(stages, ("ffn_out", 1), lambda x: x.__setitem__((3, 17), value))
    sides = (bad, stages) if side == "a" else (stages, bad)
    a, b = (write(tmp_path / n, s) for n, s in zip("ab", sides, strict=True))
    status, out, _ = diff(a, b, "--tolerance", "1e30")
    assert status == 1 and "no tolerance would have passed" in out
    assert "1 elements are NaN or Inf on one side only, the first at position 3, index 17" in " ".join(out.split())
    row = next(r for r in strict(diff(a, b, "--json")[1])["stages"] if r["mismatched"])
    assert (row["stage"], row["layer"], row["mismatched"], row["relative"]) == ("ffn_out", 1, 1, None)


def test_not_a_number_on_both_sides_is_equal_and_said(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    bad = with_change(stages, ("ffn_out", 1), lambda x: x[0, :3].__setitem__(slice(None), [np.nan, np.inf, -np.inf]))
    a, b = (write(tmp_path / n, bad) for n in "ab")
    status, out, _ = diff(a, b, "--tolerance", "0")
    assert status == 0 and "1 elements are NaN on both sides" in out
    other = with_change(bad, ("ffn_out", 1), lambda x: x.__setitem__((0, 1), -np.inf))
    assert diff(a, write(tmp_path / "c", other))[0] == 1


@pytest.mark.parametrize("tolerance", ["nan", "-1", "-0.001", "inf"])
def test_d5_tolerances_that_would_disarm_it_are_refused(tolerance: str, tmp_path: Path, diff: Diff) -> None:
    assert diff(tmp_path, tmp_path, f"--tolerance={tolerance}")[0] == 2


def test_d6_json_and_csv_stay_valid_with_nan(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    bad = {k: np.full_like(v, np.nan) for k, v in stages.items()}
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", bad)
    status, out, _ = diff(a, b, "--json")
    report = strict(out)
    assert status == 1 and len(report["stages"]) == 37
    assert report["stages"][-1]["kl"] is None and report["stages"][-1]["argmax_b"] is None
    table = list(csv.DictReader(io.StringIO(diff(a, b, "--csv")[1])))
    assert [r["stage"] for r in table] == [r["stage"] for r in report["stages"]] and table[0]["relative"] == ""


def test_d7_nothing_in_common_is_not_a_match(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    a = write(tmp_path / "a", {k: v for k, v in stages.items() if k[1] == 0})
    b = write(tmp_path / "b", {k: v for k, v in stages.items() if k[1] == 1})
    status, out, err = diff(a, b)
    assert status == 2 and not out and "no stage of a layer in common" in err
    (tmp_path / "empty").mkdir()
    assert diff(a, tmp_path / "empty")[0] == 2


def test_what_is_missing_on_one_side_is_said(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", {k: v for k, v in stages.items() if k[1] == 0})
    status, out, _ = diff(a, b)
    assert status == 0 and "not compared, only in A: 19 (layer-1/attn_norm," in out and "18 stages compared" in out


def test_d8_every_stage_is_compared_whatever_top_says(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    bad = with_change(stages, ("lm_head", None), lambda x: x.__imul__(np.float32(-1)))
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", bad)
    status, out, _ = diff(a, b, "--json", "--top", "1")
    report = strict(out)
    assert status == 1 and len(report["stages"]) == 37 and report["first_beyond"] == "lm_head"
    assert all(len(r["top"]) <= 1 for r in report["stages"])
    assert diff(a, b, "--top", "0")[0] == 2


@pytest.mark.parametrize("bare", ["a", "b", "both"])
def test_dumps_without_a_manifest(bare: str, stages: Stages, tmp_path: Path, diff: Diff) -> None:
    """One side's manifest gives the other its shapes; without any, places are flat indices."""
    bad = with_change(stages, ("k_post_rope", 1), lambda x: x.__setitem__((2, 1, 9), 50))
    a = write(tmp_path / "a", stages, manifest=bare == "b")
    b = write(tmp_path / "b", bad, manifest=bare == "a")
    status, out, _ = diff(a, b)
    lines = out.splitlines()
    marked = next(before for before, line in pairwise(lines) if "<-- first" in line)
    brief, where = ("i89", "index 89") if bare == "both" else ("p2 h1 i9", "position 2, kv head 1, index 9")
    assert status == 1 and marked.startswith("layer-1/k_post_rope") and marked.endswith(f"  {brief}")
    assert f"\n  {where} " in out


def test_places_are_spelled_by_head(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    """4 query heads and 2 kv heads of 16: column 64 + 16 + 5 of a stacked row is K head 1, index 5."""
    bad = with_change(stages, ("qkv_bias", 0), lambda x: x.__setitem__((3, 85), 99))
    bad = with_change(bad, ("attn_softmax", 1), lambda x: x.__setitem__((2, 4, 1), 99))
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", bad)
    rows = {(r["stage"], r["layer"]): r["max_at"] for r in strict(diff(a, b, "--json")[1])["stages"]}
    assert rows["qkv_bias", 0] == "position 3, K head 1, index 5"
    assert rows["attn_softmax", 1] == "head 2, position 4, key 1"


def test_scores_are_compared_up_to_the_query_only(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    """Another engine's scores after the query may be products, -inf or zero: none of it is a result."""
    future = np.triu(np.ones((5, 5), bool), 1)
    bad = with_change(stages, ("attn_scores", 0), lambda x: x.__setitem__((slice(None), future), -np.inf))
    bad = with_change(bad, ("attn_scores", 1), lambda x: x.__setitem__((slice(None), future), 7))
    a = write(tmp_path / "a", stages)
    for b in (write(tmp_path / "b", bad), write(tmp_path / "c", bad, manifest=False)):
        status, out, _ = diff(a, b, "--json", "--tolerance", "0")
        assert status == 0
        assert [r["elements"] for r in strict(out)["stages"] if r["stage"] == "attn_scores"] == [4 * 15] * 2
    for i, wrong in enumerate(
        (
            with_change(stages, ("attn_scores", 0), lambda x: x.__setitem__((0, 2, 2), 50)),
            with_change(stages, ("attn_softmax", 0), lambda x: x.__setitem__((0, 0, 4), 0.5)),
        )
    ):
        assert diff(a, write(tmp_path / f"wrong-{i}", wrong))[0] == 1


def test_lm_head_says_what_would_be_chosen(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    x = stages["lm_head", None].astype(np.float64)
    other = with_change(stages, ("lm_head", None), lambda v: v.__setitem__(int(np.argmin(x)), x.max() + 1))
    a, b = write(tmp_path / "a", stages), write(tmp_path / "b", other)
    row = strict(diff(a, b, "--json")[1])["stages"][-1]
    y = other["lm_head", None].astype(np.float64)
    p, q = (np.exp(v) / np.exp(v).sum() for v in (x, y))
    assert (row["argmax_a"], row["argmax_b"], row["top5_overlap"]) == (int(np.argmax(x)), int(np.argmin(x)), 4)
    assert row["kl"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"capture": {"bias": "after"}}, "captured at different points: bias before against bias after"),
        ({"positions": range(1, 6)}, "positions 0..5 against 1..6"),
    ],
)
def test_capture_points_that_differ_are_an_error_with_the_reason(
    change: dict[str, Any], says: str, stages: Stages, tmp_path: Path, diff: Diff
) -> None:
    one = {("qkv_matmul", 0): stages["qkv_matmul", 0]}
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", one, **change)
    for pair in ((a, b), (a / "layer-0/qkv_matmul.bin", b / "layer-0/qkv_matmul.bin")):
        status, out, err = diff(*pair)
        assert status == 2 and not out and says in err and err.count("\n") == 1


def test_what_fills_the_places_after_the_query_is_no_difference(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    """Dumpers that leave -inf there say so, and are compared all the same."""
    one, key = {("attn_scores", 0): stages["attn_scores", 0]}, by_name("attn_scores").capture
    a, b = write(tmp_path / "a", one), write(tmp_path / "b", one, capture={**key, "above_diagonal": "-inf"})
    assert diff(a, b, "--tolerance", "0")[0] == 0


def test_all_positions_against_the_last_are_an_error_even_without_manifests(
    stages: Stages, tmp_path: Path, diff: Diff
) -> None:
    a = write(tmp_path / "a", {("ffn_swigl", 1): stages["ffn_swigl", 1]}, manifest=False)
    b = write(tmp_path / "b", {("ffn_swigl", 1): stages["ffn_swigl", 1][-1:]}, positions=[4], manifest=False)
    status, _, err = diff(a, b)
    assert status == 2 and "5 times the other's positions: all of them against the last?" in err


def test_other_tokens_other_models_other_kinds(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    one = {("attn_norm", 0): stages["attn_norm", 0]}
    a, b = (
        write(tmp_path / "a", one, run={"tokens": TOKENS}),
        write(tmp_path / "b", one, run={"tokens": [1, 2, 3, 4, 5]}),
    )
    assert "traces tokens [3, 1, 4, 1, 5]" in diff(a, b)[2]
    with DumpWriter(tmp_path / "c", {}, {**SIZES, "F": 128}) as w:
        w.put("attn_norm", 0, one["attn_norm", 0], range(5))
    assert "F is 96 against 128" in diff(a, tmp_path / "c")[2]
    assert "two folders or two files" in diff(a, a / "layer-0" / "attn_norm.bin")[2]
    assert "no such file or folder" in diff(a, tmp_path / "nowhere")[2]
    aprt.write(tmp_path / "ffn_norm.bin", 0, one["attn_norm", 0])
    assert "holds attn_norm" in diff(a / "layer-0" / "attn_norm.bin", tmp_path / "ffn_norm.bin")[2]


def test_decode_steps_are_compared_until_the_tokens_part(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    def dump(name: str, fed: list[int]) -> Path:
        with DumpWriter(tmp_path / name, {"tokens": TOKENS, "generated": fed}, SIZES) as w:
            w.put("attn_norm", 0, stages["attn_norm", 0], range(5))
            for step in range(1, 4):
                w.put("attn_norm", 0, stages["attn_norm", 0][:1], [4 + step], phase=step)
        return tmp_path / name

    a, b = dump("a", [7, 8, 9]), dump("b", [7, 6, 9])
    status, out, _ = diff(a, b)
    assert (
        status == 1 and "fed another token: 2, from decode-0002/layer-0/attn_norm" in out and "2 stages compared" in out
    )
    assert diff(a, dump("c", [7, 8, 9]))[0] == 0


def test_nothing_but_steps_fed_other_tokens_is_nothing_compared(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    for name, fed in (("a", [7]), ("b", [6])):
        with DumpWriter(tmp_path / name, {"tokens": TOKENS, "generated": fed}, SIZES) as w:
            w.put("attn_norm", 0, stages["attn_norm", 0][:1], [5], phase=1)
    status, _, err = diff(tmp_path / "a", tmp_path / "b")
    assert status == 2 and "fed other tokens" in err


def test_a_file_changed_after_its_manifest_is_refused(stages: Stages, tmp_path: Path, diff: Diff) -> None:
    a, b = (write(tmp_path / n, {("attn_norm", 0): stages["attn_norm", 0]}) for n in "ab")
    path = b / "layer-0" / "attn_norm.bin"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    status, _, err = diff(a, b)
    assert status == 2 and "SHA-256" in err


def entry(path: Path, values: np.ndarray, name: str = "attn_norm", **facts: Any) -> Entry:
    path.unlink(missing_ok=True)
    aprt.write(path, 0, values)
    return Entry(path, by_name(name), 0, 0, values.shape, **facts)


@given(
    data=st.integers(1, 40).flatmap(
        lambda n: st.tuples(*(arrays(np.float32, (n, 3), elements=st.floats(width=32)) for _ in range(2)))
    ),
    slab=st.integers(1, 50),
)
def test_figures_are_the_plain_formulas_whatever_the_slab(
    data: tuple[np.ndarray, np.ndarray], slab: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    a, b = data
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "_SLAB", slab)
        c = compare.compare(entry(folder / "a", a), entry(folder / "b", b), top=5)
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    both = np.isfinite(x) & np.isfinite(y)
    assert c.elements == x.size and c.equal == bool(same.all())
    assert c.mismatched == np.count_nonzero(~both & ~same)
    p, q = np.where(both, x, 0), np.where(both, y, 0)
    d = np.abs(p - q)
    order = sorted((i for i in range(x.size) if d[i]), key=lambda i: (-d[i], i))[:5]
    assert [t.index for t in c.top] == order and c.max_abs == d.max()
    assert c.rms_diff == pytest.approx(np.sqrt(np.mean(d * d)), rel=1e-12)
    if p.any() and q.any():
        assert c.cosine == pytest.approx(p @ q / np.sqrt((p @ p) * (q @ q)), rel=1e-9, abs=1e-12)
        assert abs(c.cosine) <= 1 + 1e-12
    if same.all():
        assert c.relative == 0 and c.cosine == 1


def test_files_without_values_are_nothing_compared(diff: Diff, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        aprt.write(tmp_path / name / "final_norm.bin", None, np.empty((0, 64), np.float32))
    for words in (("a", "b"), ("a/final_norm.bin", "b/final_norm.bin")):
        status, out, err = diff(*(tmp_path / word for word in words))
        assert (status, out) == (2, "") and "no values" in err
