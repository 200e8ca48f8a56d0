"""engine inspect: what it says is what the file holds; one JSON object; --check finds what loading does not look at."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from qwenref.engine.files import open_checkpoint
from qwenref.errors import BadInput
from qwenref.tools.dev.golden_config import write_case
from qwenref.tools.inspect_model import check
from qwenref.tools.main import main

from ..gguf_builder import ARR, I32, STR, TENSORS, Gguf, Tensor, array
from ..tiny import tiny_weights, write_gguf

GOOD = Gguf()


def inspect(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> tuple[int, str, str]:
    status = main(["inspect", str(path), *flags])
    out, err = capsys.readouterr()
    return status, out, err


def written(path: Path, file: Gguf) -> Path:
    path.write_bytes(file.build())
    return path


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "m.gguf", GOOD)
    status, out, err = inspect(capsys, path, "--json")
    report = json.loads(out)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert report["container"] == "GGUF v3" and report["config"]["rope_theta"] == 1e6
    assert report["files"] == [{"path": str(path), "bytes": path.stat().st_size}]
    assert report["bytes"] == sum(len(t.data) for t in TENSORS) == 4 * report["parameters"]
    assert report["formats"] == [
        {"format": "F32", "tensors": len(TENSORS), "parameters": report["parameters"], "bytes": report["bytes"]}
    ]
    assert [(t["name"], t["shape"]) for t in report["tensors"]] == [(t.name, list(t.dims[::-1])) for t in TENSORS]
    assert report["tokenizer"]["special"] == {"<|endoftext|>": 5, "<|im_end|>": 6}
    assert report["tokenizer"]["eos_ids"] == [6, 5] and report["tokenizer"]["chat_template"] is True
    assert report["metadata"]["tokenizer.ggml.tokens"] == {"array": 8}


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "m.gguf", GOOD)
    status, short, err = inspect(capsys, path)
    assert (status, err) == (0, "") and "\x1b" not in short
    for line in ("  hidden_size              16", "  sizes           8 tokens, 1 merges", "  chat template   yes"):
        assert line in short.splitlines()
    _, long, _ = inspect(capsys, path, "--tensors")
    assert long.startswith(short) and "  blk.0.ffn_down.weight     16 x 24  F32  1,536" in long.splitlines()


def test_a_scaling_as_the_file_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing of it where there is none."""
    write_case(tmp_path, "yarn, factor 4")
    _, out, _ = inspect(capsys, tmp_path)
    (line,) = (line for line in out.splitlines() if line.startswith("  rope_scaling "))
    assert "'rope_type': 'yarn', 'factor': 4.0" in line and "low_freq_factor" not in line
    assert "windows" not in out and "dual_chunk" not in out
    write_case(tmp_path, "as it is")
    assert "rope_scaling" not in inspect(capsys, tmp_path)[1]


def test_no_tokenizer_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Gguf(keys=[k for k in GOOD.keys if not str(k[0]).startswith("tokenizer")], tail=bytes(100))
    status, out, err = inspect(capsys, written(tmp_path / "m.gguf", file), "--json")
    assert status == 0 and json.loads(out)["tokenizer"] is None
    assert err.startswith("note: ") and "bytes after the last tensor are not used" in err


def test_terminal_is_not_commanded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = array(STR, ["a", "b", "c", "ab", "Ġ", "\x1b]0;x\x07", "\x1b[31m\n", "d"])
    path = written(tmp_path / "m.gguf", GOOD.put("tokenizer.ggml.tokens", ARR, tokens))
    for flags in ((), ("--json",)):
        status, out, _ = inspect(capsys, path, *flags)
        assert status == 0 and "\x1b" not in out and "\x07" not in out


def wide(scale: float, least: float) -> Gguf:
    """A model of one head of 256, so that its matrices can be Q4_K; row 1 of ffn_down has these two scales."""
    D, block = 256, struct.pack("<ee", 0.5, 0.25) + bytes(range(140))
    vocabulary = {"token_embd.weight": (D, 8), "output.weight": (D, 8)}
    tensors = []
    for name, rank in ((str(t.name), len(t.dims)) for t in TENSORS):
        dims = vocabulary.get(name, (D,) * rank)
        data = block * dims[-1] if len(dims) == 2 else bytes(4 * D)
        if name == "blk.0.ffn_down.weight":
            data = data[:144] + struct.pack("<ee", scale, least) + data[148:]
        tensors.append(Tensor(name, dims, 12 if len(dims) == 2 else 0, data))
    file = Gguf(tensors=tensors)
    for name in ("embedding_length", "feed_forward_length"):
        file = file.put(f"qwen2.{name}", I32, D)
    return file.put("qwen2.attention.head_count", I32, 1).put("qwen2.attention.head_count_kv", I32, 1)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("scale", "least"), [(NAN, 1.0), (INF, 1.0), (1.0, NAN), (1.0, -INF)])
def test_g48_scales_that_are_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, least: float
) -> None:
    """Found by --check, which decodes everything; loading does not look."""
    path = written(tmp_path / "m.gguf", wide(scale, least))
    assert inspect(capsys, path)[0] == 0
    status, out, err = inspect(capsys, path, "--check")
    assert (status, out) == (2, "")
    assert err == f"engine inspect: {path}: tensor blk.0.ffn_down.weight: row 1 holds a NaN or an infinity\n"


def test_check_names_every_tensor_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = tiny_weights()
    for t in (w.layers[0].ffn_down, w.layers[1].attn_norm_D, w.final_norm_D):
        t.data.view("<f4")[3] = NAN
    path = write_gguf(tmp_path / "m.gguf", w)
    assert inspect(capsys, path, "--check")[0] == 2
    with pytest.raises(BadInput) as error:
        check(open_checkpoint(path))
    assert str(error.value) == (
        f"{path}: tensor output_norm.weight: row 3 holds a NaN or an infinity, and so do 2 tensors more: "
        "blk.0.ffn_down.weight, blk.1.attn_norm.weight"
    )


def test_check_passes_and_finds_misfits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = inspect(capsys, written(tmp_path / "m.gguf", wide(1.0, 1.0)), "--check")
    assert status == 0 and out.endswith("every weight is finite\n")
    path = written(tmp_path / "m.gguf", GOOD.drop("output_norm.weight"))
    status, out, err = inspect(capsys, path, "--check", "--json")
    assert (status, out) == (2, "") and f"{path}: tensor model.norm.weight or output_norm.weight is missing" in err


def test_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD.build()[:1000])
    status, out, err = inspect(capsys, path, "--json")
    assert (status, out, err.count("\n")) == (2, "", 1) and str(path) in err
