"""Logits by themselves: what float64 makes of the same tokens, and how far the dump's choice is from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwenref.tools.main import main

from ...engines import dump_of
from ...tiny import tiny_weights, write_gguf

IDS = [3, 200, 17, 9, 4]
W = tiny_weights()


def written(path: Path, logits: np.ndarray, **more: np.ndarray) -> str:
    save_file({"lm_head": logits[None], **more}, path)
    return str(path)


def test_the_truth_of_the_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf, tokens = str(write_gguf(tmp_path / "m.gguf", W)), np.array(IDS, np.int32)
    exact = np.asarray(dump_of(W, "reference f64", IDS)["lm_head"])
    order = np.argsort(-exact)
    right = written(
        tmp_path / "right.safetensors", np.asarray(dump_of(W, "HF bfloat16", IDS)["lm_head"]), tokens=tokens
    )
    assert main(["verify", right, gguf]) == 0
    said = capsys.readouterr().out
    gap = f"{exact[order[0]] - exact[order[1]]:.3g}"
    assert f"token {order[0]}, as float64 has it from the same tokens (gap to the second: {gap}, " in said
    flipped = exact.copy()
    flipped[order[[0, 2]]] = exact[order[[2, 0]]]
    wrong = written(tmp_path / "wrong.safetensors", flipped, tokens=tokens)
    assert main(["verify", wrong, gguf]) == 1
    said = capsys.readouterr().out
    assert f"token {order[2]} is float64's number 3 from the same tokens; float64 takes {order[0]}" in said
    p, q = (np.exp(x - np.log(np.exp(x).sum())) for x in (exact.astype(np.float64), flipped.astype(np.float64)))
    assert f"KL {np.sum(p * np.log(p / q)):.1e} nats" in said
    assert main(["verify", wrong, gguf, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["stages"][0]["verdict"] == "not judged"


def test_each_decode_step_by_its_own_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = dump_of(W, "HF float32", IDS, steps=[77, 12])
    found = {f"phase-{p}/lm_head": np.asarray(dump["lm_head", None, p])[None] for p in (1, 2)}
    ids = {f"phase-{p}/tokens": np.array([t]) for p, t in ((1, 77), (2, 12))}
    path = written(tmp_path / "x.safetensors", np.asarray(dump["lm_head"]), tokens=np.array(IDS), **found, **ids)
    assert main(["verify", path, str(write_gguf(tmp_path / "m.gguf", W))]) == 0
    assert capsys.readouterr().out.count("as float64 has it from the same tokens") == 4  # the sentence, and each


def test_without_tokens_it_is_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.asarray(dump_of(W, "HF float32", IDS)["lm_head"])
    path, gguf = written(tmp_path / "x.safetensors", logits), str(write_gguf(tmp_path / "m.gguf", W))
    assert main(["verify", path, gguf]) == 2
    assert "no token ids" in capsys.readouterr().out
    assert main(["verify", path, gguf, "--tokens", ",".join(map(str, IDS))]) == 0
    assert main(["verify", path, gguf, "--tokens", "3,259"]) == 2
    assert "outside the vocabulary" in capsys.readouterr().err
