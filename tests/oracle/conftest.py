"""Fixtures that more than one of the oracle's files needs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model, saved by Transformers: three layers, 6 query heads on 2, a square output projection, an
    untied head, biases that are not zero.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def repack(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether this build may lay out weights for the machine. One that was compiled for AMX dies of an illegal
    instruction where a virtual machine names AMX and does not let it be used."""
    at = tmp_path_factory.mktemp("repack") / "dump"
    words = ["dump-llamacpp", str(model_path), str(at), "--tokens", "1,2", "--stages", "ffn_out"]
    ended = subprocess.run([sys.executable, "-P", "-m", "qwenref.tools.main", *words], check=False, capture_output=True)
    assert ended.returncode in (0, -signal.SIGILL), ended.stderr
    return ended.returncode == 0
