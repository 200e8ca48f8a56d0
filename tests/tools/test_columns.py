"""Every command's tables hold in 80 columns, whatever is long in them, and nothing is cut without a sign.

Sentences may be longer: a terminal breaks them anywhere and nothing is lost, where a table's columns would be.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.files.convert import convert
from qwenref.tools import bench, bench_drafts, doctor
from qwenref.tools.columns import WIDTH, count, hanging, middle
from qwenref.tools.diff_text import brief
from qwenref.tools.main import COMMANDS, main

from ..models import model

LONG = "qwen2.5-coder-0.5b-instruct-128k-a-name-as-long-as-the-hub-has-them-q4_k_m"
TOKENS = ["--tokens", "3,200,17,9,5", "--backend", "reference"]
# (what it is, the words behind `engine`): each prints a table, or figures below each other.
TABLES = {
    "list": ["list"],
    "inspect": ["inspect", f"{LONG}.gguf", "--tensors"],
    "trace files": ["trace", f"{LONG}.gguf", *TOKENS, "--save-tensor", "all", "--save-tensor-dir", "again"],
    "trace figures": ["trace", f"{LONG}.gguf", *TOKENS, "--payload"],
    "diff": ["diff", "one", "other"],
    "diff of two stages": ["diff", "one/layer-0/attention.bin", "other/layer-0/attention.bin"],
    "verify": ["verify", "one", f"{LONG}.gguf"],
    "show": ["show", "one", "attn_softmax", "1", "-m", f"{LONG}.gguf"],
    "show of all layers": ["show", "one", "attn_scores"],
    "show of logits": ["show", "one", "lm_head", "--step", "1", "-m", f"{LONG}.gguf"],
    "lens": ["show", "one", "--lens", "--rows", ":", "-m", f"{LONG}.gguf"],
    "eval": ["eval", f"{LONG}.gguf", "--against", f"{LONG}.gguf", "-f", "text", "--context", "4", *TOKENS[2:]],
}  # fmt: skip
SAID = r"tokens: |next after |\d+ files?, |\d+ stages compared|(decode step \d+, )?lm_head: "
SENTENCE = re.compile(rf"{SAID}|[A-Z][^|]*\.$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a long name; two dumps of it that differ, with a step; a hub's cache with long names."""
    at = tmp_path_factory.mktemp("columns")
    convert(model("Q8_0"), at / f"{LONG}.gguf")
    (at / "text").write_text("low lower lowest newer wider " * 8)
    for name, seed in (("one", "3,200,17,9,5"), ("other", "3,200,17,9,5")):
        words = ["--tokens", seed, "--backend", "reference", "--decode-steps", "1", "--save-tensor", "all"]
        assert main(["trace", str(at / f"{LONG}.gguf"), *words, "--save-tensor-dir", str(at / name)]) == 0
    for path in sorted((at / "other").rglob("*.bin")):  # bare stage files have no manifest that seals them
        raw = bytearray(path.read_bytes())
        values = np.frombuffer(raw, np.float32, offset=12).copy()
        values[-1:] = -1.17549435e-38
        values[:1] = np.nan if "ffn_out" in path.name else -123456.789
        path.write_bytes(raw[:12] + values.tobytes())
    (at / "other" / "manifest.json").unlink()
    snapshot = at / "hub" / f"models--an-organisation--{LONG}" / "snapshots" / ("0123456789abcdef" * 2 + "01234567")
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "a").write_bytes(bytes(5))
    (snapshot / f"{LONG}.gguf").symlink_to(Path("../../blobs/a"))
    return at


def tables(text: str) -> list[str]:
    return [line for line in text.splitlines() if not SENTENCE.match(line)]


@pytest.mark.parametrize("what", TABLES)
def test_tables_hold_in_eighty_columns(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A word that is longer than the line, as a path, stands alone in it, whole."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("QWENREF_MODELS", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    assert main(TABLES[what]) in (0, 1)
    lines = tables(capsys.readouterr().out)
    wide = [line for line in lines if len(line) > WIDTH and len(line.split()) > 2]
    assert len(lines) > 2 and wide == []


def test_every_command_with_a_table_is_tried() -> None:
    """The others answer in sentences, or with what a model says."""
    said = {"run", "pull", "convert", "dump-hf", "dump-llamacpp", "import", "compile", "completion", "embed", "score"}
    apart = {"doctor", "bench"}  # below: they measure this machine
    assert {words[0] for words in TABLES.values()} == {*COMMANDS} - said - apart


def test_the_doctors_report_holds() -> None:
    card = "none: " + "no driver that answers " * 9
    lines = doctor.text(
        {"title": {"a name": "x " * 200, "card": card, "missing": None, "path": "p" * 120}}
    ).splitlines()
    assert [line for line in lines if len(line) > WIDTH] == [f"  {'path':20s} {'p' * 120}"]
    assert " ".join(" ".join(lines).split()).count("no driver that answers") == 9


def run_of(engine: str) -> dict[str, Any]:
    speeds: dict[str, Any] = {}
    for key in ("prompt_tokens_per_s", "generated_tokens_per_s", "plain_tokens_per_s", "drafted_tokens_per_s"):
        speeds |= {key: 1234.5, f"{key}_spread": [1200.0, 1299.0], f"{key}_ratio": 12.34}
    row = {"engine": engine, "path": "avx512", "precision": "bfloat16", "threads": 256, "peak_bytes": 512e9}
    row |= {"bandwidth_share": 0.99, "first_token_s": 999.99, "ratio": 12.34, "tokens_per_pass": 12.34}
    return row | speeds | {"prompt": "what\n" * 40, "prompt_tokens": 131072, "generated_tokens": 32768}


def test_the_tables_of_speeds_hold() -> None:
    rows = [run_of("qwenref"), run_of("llama.cpp")]
    for text in (bench.table(rows), bench_drafts.table(rows)):
        assert max(map(len, text.splitlines())) <= WIDTH
        assert text.count("1200-1299") == 4 and text.count("1234.5") == 4


def test_places_in_letters() -> None:
    assert brief("position 1023, Q head 13, index 127") == "p1023 Q13 i127"
    assert brief("position 2, kv head 1, index 9") == "p2 h1 i9"
    assert brief("head 3, position 7, key 0") == "h3 p7 k0" and brief("token 151935") == "t151935"


def test_what_is_too_long_has_a_sign_or_goes_on_below() -> None:
    assert middle("abcdefghij", 5) == "ab…ij" and middle("abc", 3) == "abc"
    assert count(9999, 4) == "9999" and count(12_345_678, 5) == "1e+07"
    assert list(hanging("  name  ", "word " * 20)) == [
        f"  name  {'word ' * 14}".rstrip(),
        f"        {'word ' * 6}".rstrip(),
    ]
    assert list(hanging("  name  ", "/a" * 60)) == [f"  name  {'/a' * 60}"]
