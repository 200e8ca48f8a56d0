"""The falsifiers of two contracts of paiml/aprender, by their names, held against this engine.

contracts/apr-cli-trace-save-tensor-v1.yaml: FALSIFY-APR-TRACE-SAVE-001 to 011
contracts/trace-attn-sub-stages-v1.yaml: FALSIFY-ATTN-SUB-001 to 005
Where a contract speaks of its 7B teacher, a synthetic model of the same head counts (28:4:128) stands in for it.
"""
# ruff: noqa: N802 - the contracts' own spelling

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.models import ARCHITECTURES
from qwenref.errors import BadInput
from qwenref.tools.main import main
from qwenref.trace import aprt
from qwenref.trace.plan import parse_stages
from qwenref.trace.stages import ALIASES, NAMES, STAGES, by_name, of_pieces
from qwenref.trace.store import DumpWriter, files_of

from ...tiny import backends, collect, relative, tiny_weights, write_gguf

Trace = Callable[..., Path]
TEACHER = {"layers": 1, "hidden": 64, "heads": 28, "kv_heads": 4, "head_dim": 128}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "teacher.gguf", tiny_weights(**(TEACHER | {"layers": 4})))


@pytest.fixture
def trace(model: Path, tmp_path: Path) -> Trace:
    def run(name: str, stages: str, *words: str) -> Path:
        out = tmp_path / name
        command = ["trace", str(model), "--save-tensor", stages, "--save-tensor-dir", str(out), "--tokens", "3,1,4,1,5"]
        assert main([*command, "--backend", "reference", *words]) == 0
        return out

    return run


def test_FALSIFY_APR_TRACE_SAVE_001_flag_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["trace", "--help"])
    assert "--save-tensor STAGES" in capsys.readouterr().out


def test_FALSIFY_APR_TRACE_SAVE_002_two_runs_are_byte_identical(trace: Trace) -> None:
    a, b = (trace(name, "all") for name in "ab")
    stages = [f for f in files_of(a) if f.endswith(".bin")]
    assert len(stages) == 4 * 17 + 3
    assert all((a / f).read_bytes() == (b / f).read_bytes() for f in stages)


def test_FALSIFY_APR_TRACE_SAVE_003_like_for_like_ffn_gate_agrees(
    trace: Trace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract expects a difference above 5 %, which was later found to be last position against all positions.

    So its premise is what must be impossible here: one run's stage, all positions against the last, is refused.
    """
    every, last = trace("all", "ffn_gate"), trace("last", "ffn_gate", "--positions", "last")
    capsys.readouterr()
    name = "layer-3/ffn_gate.bin"
    assert main(["diff", str(every / name), str(last / name)]) == 2
    assert "positions 0..5 against 4" in capsys.readouterr().err
    assert main(["diff", str(every / name), str(trace("again", "ffn_gate") / name), "--tolerance", "0"]) == 0


def test_FALSIFY_APR_TRACE_SAVE_004_header_is_self_describing(trace: Trace) -> None:
    head = (trace("a", "embedding") / "layer-0" / "embedding.bin").read_bytes()[:12]
    assert head == b"APRT" + struct.pack("<II", 0, 5 * 64)


def test_FALSIFY_APR_TRACE_SAVE_005_several_stages_in_one_run(trace: Trace) -> None:
    out = trace("a", "embedding,ffn_gate,ffn_swigl", "--save-tensor-layers", "0..1")
    assert files_of(out / "layer-0") == ["embedding.bin", "ffn_gate.bin", "ffn_swigl.bin"]


def test_FALSIFY_APR_TRACE_SAVE_006_nan_is_preserved(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan, 2.0, -0.0]], np.float32)
    values.view(np.uint32)[0, 1] = 0x7FC00000
    with DumpWriter(tmp_path / "d", {}, {"D": 4}) as w:
        w.put("attn_norm", 0, values, [0])
    body = (tmp_path / "d" / "layer-0" / "attn_norm.bin").read_bytes()[12:]
    assert struct.unpack("<4I", body) == (0x3F800000, 0x7FC00000, 0x40000000, 0x80000000)


def test_FALSIFY_APR_TRACE_SAVE_007_one_layer_gives_one_folder(trace: Trace) -> None:
    assert files_of(trace("a", "ffn_gate", "--save-tensor-layers", "3")) == ["layer-3/ffn_gate.bin", "manifest.json"]


def test_FALSIFY_APR_TRACE_SAVE_008_manifest_is_valid(trace: Trace) -> None:
    """The contract validates its own text with a tool of aprender's; here, what a dump says of itself is checked."""
    manifest = json.loads((trace("a", "all") / "manifest.json").read_text())
    assert manifest["sizes"]["E"] == (28 + 2 * 4) * 128 and manifest["run"]["tokens"] == [3, 1, 4, 1, 5]
    assert len(manifest["files"]) == 4 * 17 + 3


def test_FALSIFY_APR_TRACE_SAVE_009_diff_recognises_aprt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = {n: tmp_path / f"{n}.bin" for n in ("a", "same", "longer", "layer")}
    aprt.write(paths["a"], 3, np.array([1, 2, 3], np.float32))
    aprt.write(paths["same"], 3, np.array([1, 2, 3], np.float32))
    aprt.write(paths["longer"], 3, np.array([1, 2, 3, 4], np.float32))
    aprt.write(paths["layer"], 4, np.array([1, 2, 3], np.float32))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    assert main(["diff", str(paths["a"]), str(paths["same"]), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stages"]
    assert (row["max_abs"], row["rms_diff"], row["cosine"]) == (0, 0, 1)
    for other, says in (
        (paths["longer"], "3 values"),
        (paths["layer"], "layer 4"),
        (tmp_path / "model.gguf", "is a model; engine diff compares two dumps"),
    ):
        assert main(["diff", str(paths["a"]), str(other)]) == 2
        assert says in capsys.readouterr().err


def test_FALSIFY_APR_TRACE_SAVE_010_lm_head_is_of_the_whole_model(trace: Trace) -> None:
    out = trace("a", "lm_head", "--save-tensor-layers", "1")
    data = (out / "lm_head.bin").read_bytes()
    assert data[:12] == b"APRT" + struct.pack("<II", 0xFFFFFFFF, 259)
    (stages,) = collect(tiny_weights(**(TEACHER | {"layers": 4})), "reference", "f32", [3, 1, 4, 1, 5])
    assert data[12:] == stages["lm_head", None].tobytes()
    assert "lm_head.bin" not in files_of(trace("b", "ffn_norm"))


def test_FALSIFY_APR_TRACE_SAVE_011_end_to_end(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default directory is <model stem>-trace beside the model, made if missing, and every file is listed."""
    link = tmp_path / "other.gguf"
    link.write_bytes(model.read_bytes())
    monkeypatch.chdir(tmp_path)
    words = ["--tokens", "1,2", "--save-tensor", "embedding,lm_head", "--backend", "reference"]
    assert main(["trace", "other.gguf", *words]) == 0
    out = capsys.readouterr().out
    assert files_of(tmp_path / "other-trace") == ["layer-0/embedding.bin", "lm_head.bin", "manifest.json"]
    assert "layer-0/embedding.bin" in out and "2 files" in out


QWEN2 = tuple(of_pieces(tiny_weights().pieces))
# The 18 stages before the two were added (contract, proof_obligations): all must still be there, by name.
BEFORE = (
    *("embedding", "attn_norm", "qkv_matmul", "qkv_bias", "q_post_rope", "k_post_rope", "attention", "attn_out"),
    *("post_attn_residual", "ffn_norm", "ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out", "post_ffn_residual"),
    *("final_norm", "lm_head"),
)


def test_FALSIFY_ATTN_SUB_001_two_stages_more_none_renamed() -> None:
    assert set(QWEN2) == {*BEFORE, "attn_scores", "attn_softmax"} and len(QWEN2) == 20
    assert [n for n in NAMES if n in QWEN2] == list(QWEN2)
    assert [by_name(n.upper()).name for n in NAMES] == list(NAMES)
    assert [s.name for s in parse_stages("Attn_Scores, ATTN_SOFTMAX")] == ["attn_scores", "attn_softmax"]
    assert by_name("layer_output").name == "post_ffn_residual" and set(ALIASES) == {"layer_output"}


def test_FALSIFY_ATTN_SUB_001_capture_order() -> None:
    block = ["qkv_bias", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax", "attention", "attn_out"]
    at = QWEN2.index("qkv_bias")
    assert list(QWEN2[at : at + 7]) == block
    for model_type, asked in ((a.model_type, tuple(a.optional)[:n]) for a in ARCHITECTURES for n in range(3)):
        w = tiny_weights(layers=1, model_type=model_type, asked=asked)
        (stages,) = collect(w, "reference", "f32", [1, 2])
        told = list(of_pieces(w.pieces))
        assert [name for name, _ in stages] == told, "the page runs in another order than the table says"


def test_FALSIFY_ATTN_SUB_002_files_of_heads_by_positions_by_positions(trace: Trace) -> None:
    out = trace("a", "attn_scores,attn_softmax", "--save-tensor-layers", "0..1")
    for name in ("attn_scores", "attn_softmax"):
        values = aprt.read(out / "layer-0" / f"{name}.bin").values
        assert values.size == 28 * 5 * 5 and np.count_nonzero(values) == 28 * 15


def test_FALSIFY_ATTN_SUB_003_diff_needs_no_code_per_stage(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = trace("a", "attn_scores,attn_softmax"), trace("b", "attn_scores,attn_softmax", "--precision", "f64")
    (a / "layer-0" / "attn_scores.bin").rename(a.parent / "attn_scores.aprt")
    capsys.readouterr()
    pairs = [(a.parent / "attn_scores.aprt", b / "layer-0/attn_scores.bin")]
    pairs.append((b / "layer-0/attn_softmax.bin", b / "layer-0/attn_softmax.bin"))
    for x, y in pairs:
        assert main(["diff", str(x), str(y), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["stages"]
        assert -1 <= row["cosine"] <= 1


def test_FALSIFY_ATTN_SUB_004_one_fault_has_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Contract: of nine stages in order, exactly one neighbouring pair falls from a cosine of 0.999 or more to below.

    A fault is planted by hand (the heads of `attention` in reverse), and diff must name that stage first.
    """
    chain = ["attn_norm", *QWEN2[QWEN2.index("qkv_matmul") : QWEN2.index("attn_out") + 1]]
    w = tiny_weights(**TEACHER)
    (good,) = collect(w, "reference", "f32", [3, 1, 4, 1, 5])
    bad = dict(good)
    bad["attention", 0] = good["attention", 0][:, ::-1]
    bad["attn_out", 0] = -good["attn_out", 0]
    for name, stages in (("good", good), ("bad", bad)):
        with DumpWriter(tmp_path / name, {}, w.config.sizes) as dump:
            for s in chain:
                dump.put(s, 0, stages[s, 0], range(5))
    assert main(["diff", str(tmp_path / "good"), str(tmp_path / "bad"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["first_beyond"] == "layer-0/attention"
    assert [r["stage"] for r in report["stages"]] == chain
    right = [r["cosine"] >= 0.999 for r in report["stages"]]
    assert [i for i in range(8) if right[i] and not right[i + 1]] == [chain.index("attention") - 1]


@pytest.mark.parametrize(("name", "precision"), backends())
def test_FALSIFY_ATTN_SUB_005_capture_is_additive(name: str, precision: str) -> None:
    """Greedy tokens with and without every stage looked at: the same eight."""
    from qwenref.engine.generate import generate
    from qwenref.engine.kernels import backend

    w, k = tiny_weights(**TEACHER), backend(name)
    silent = list(generate([3, 1, 4], k.prepare(w, precision), k, precision, 8))
    passes = collect(w, name, precision, [3, 1, 4], *([t] for t in silent[:-1]))
    assert [int(np.argmax(p["lm_head", None])) for p in passes] == silent


def naive_attention(q_NH: np.ndarray, k_SKH: np.ndarray, v_SKH: np.ndarray) -> np.ndarray:
    """One query over all keys, head by head, in float64; query head n reads kv head n // (N / K)."""
    N, H = q_NH.shape
    out = np.empty((N, H))
    for n in range(N):
        g = n // (N // k_SKH.shape[1])
        scores = [float(np.dot(q_NH[n].astype(float), k[g].astype(float))) / np.sqrt(H) for k in k_SKH]
        weight = np.exp(np.array(scores) - max(scores))
        out[n] = sum(p * v[g].astype(float) for p, v in zip(weight / weight.sum(), v_SKH, strict=True))
    return out


@pytest.mark.parametrize(("name", "precision"), backends())
def test_gqa_28_4_128_first_token_without_cache_then_one_cached(name: str, precision: str) -> None:
    """aprender's parity test of grouped-query attention, 7:1, as it stands in the 7B."""
    w = tiny_weights(**TEACHER)
    N, K, H = 28, 4, 128
    first, second = collect(w, name, precision, [7], [11])
    k_SKH = np.concatenate([p["k_post_rope", 0] for p in (first, second)])
    v_SKH = np.concatenate([p["qkv_bias", 0][:, (N + K) * H :].reshape(1, K, H) for p in (first, second)])
    bound = {"f32": 1e-6, "int16": 1e-6, "int8": 1e-6, "f64": 1e-14}[precision]
    for S, stages in ((1, first), (2, second)):
        assert stages["attn_scores", 0].shape == (N, 1, S)
        expected = naive_attention(stages["q_post_rope", 0][0], k_SKH[:S], v_SKH[:S])
        assert relative(expected, stages["attention", 0][0]) < bound
    # With one key the soft-max is 1, and each head's output is its group's value itself, bit for bit.
    assert np.all(first["attn_softmax", 0] == 1)
    assert np.array_equal(first["attention", 0][0], np.repeat(v_SKH[0], N // K, axis=0))


@pytest.mark.parametrize(("heads", "kv_heads"), [(28, 4), (14, 2), (12, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize(("name", "precision"), backends())
def test_query_head_reads_the_kv_head_of_its_block(name: str, precision: str, heads: int, kv_heads: int) -> None:
    """Head n reads kv head n // (N / K), never n % K: told apart by one position, whose output is the value itself."""
    w = tiny_weights(layers=1, heads=heads, kv_heads=kv_heads, head_dim=16)
    (stages,) = collect(w, name, precision, [5])
    v_KH = stages["qkv_bias", 0][0, (heads + kv_heads) * 16 :].reshape(kv_heads, 16)
    assert len(np.unique(v_KH[:, 0])) == kv_heads
    group = heads // kv_heads
    for n in range(heads):
        assert np.array_equal(stages["attention", 0][0, n], v_KH[n // group]), f"head {n}"


def test_every_stage_of_the_contract_is_addressable() -> None:
    assert all(by_name(n) in STAGES for n in (*BEFORE, "layer_output"))
    with pytest.raises(BadInput, match=r"moe_router.*the stages are embedding, .*lm_head"):
        by_name("moe_router")
