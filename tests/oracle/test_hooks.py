"""qwenref.hooks on Transformers as it is: every module's output, of every pass of a generate, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qwenref
from qwenref.trace.sources import open_dump

torch = pytest.importorskip("torch", reason="torch is not installed (make oracle)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (make oracle)")
pytestmark = pytest.mark.oracle

IDS = [5, 9, 200, 17, 33, 2, 8]


def small(attention: str, dtype: str) -> Any:
    torch.manual_seed(3)
    c = transformers.Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=272, max_position_embeddings=128, rope_theta=10000.0,
    )  # fmt: skip
    m = transformers.Qwen2ForCausalLM._from_config(c, attn_implementation=attention, dtype=getattr(torch, dtype))
    for name, p in m.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(0, 0.3)
    return m.eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_passes_of_a_generate(attention: str, dtype: str, tmp_path: Path) -> None:
    m, path = small(attention, dtype), tmp_path / "dump.safetensors"
    m.save_pretrained(tmp_path / "model")
    with qwenref.hooks(m, path, note="as it is"):
        made = m.generate(torch.tensor([IDS]), max_new_tokens=3, do_sample=False)[0].tolist()
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())
    with torch.no_grad():
        states = m(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    sizes = qwenref.load(tmp_path / "model", backend="reference", precision="f64").config.sizes
    dump = open_dump(path, sizes, layers=2)
    assert dump.run["tokens"] == IDS and dump.run["generated"] == made[len(IDS) : -1]
    assert dump.run["facts"]["note"] == "as it is" and dump.ignored == ()
    for layer in (0, 1):
        got = dump["post_ffn_residual" if layer == 0 else "final_norm", None if layer else 0]
        assert np.array_equal(got, states[layer + 1][0].float().numpy())
    stages = {e.stage.name for e in dump.entries}
    assert stages >= {"embedding", "qkv_bias", "attention", "ffn_silu", "ffn_swigl", "post_attn_residual", "lm_head"}
    assert not stages & {"attn_scores", "attn_softmax", "qkv_matmul"}  # fused, and absent
    report = qwenref.verify(path, tmp_path / "model")
    assert report.status == 0, report


def test_a_pass_that_never_ran_is_no_dump(tmp_path: Path) -> None:
    with (
        pytest.raises(qwenref.BadInput, match="no forward pass"),
        qwenref.hooks(small("sdpa", "float32"), tmp_path / "d"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
