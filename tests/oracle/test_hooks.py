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
    dump = open_dump(path, sizes_of(tmp_path), layers=2)
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


def test_fused_modules_as_vllm_and_sglang_have_them(tmp_path: Path) -> None:
    """Their layers of one product for Q, K and V, norms that add the residual, rotary that turns both; packed rows,
    called with ids and positions. The same numbers as Transformers' model, under their names."""
    nn, functional = torch.nn, torch.nn.functional
    m = small("eager", "float32")
    c = m.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.hidden_size // c.num_attention_heads

    class Linear(nn.Module):
        def __init__(self, *parts: Any) -> None:
            super().__init__()
            self.weight = torch.cat([p.weight.detach() for p in parts])
            self.bias = None if parts[0].bias is None else torch.cat([p.bias.detach() for p in parts])

        def forward(self, x: Any) -> tuple[Any, None]:
            return functional.linear(x, self.weight, self.bias), None

    class Norm(nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.gain = own.weight.detach()

        def forward(self, x: Any, residual: Any = None) -> Any:
            x = x if residual is None else x + residual
            y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps) * self.gain
            return y if residual is None else (y, x)

    class Rotary(nn.Module):
        def forward(self, positions: Any, q: Any, k: Any) -> tuple[Any, Any]:
            angle = positions.float()[:, None] * m.model.rotary_emb.inv_freq
            cos, sin = (torch.cat([f, f], -1)[:, None] for f in (angle.cos(), angle.sin()))

            def turned(x: Any) -> Any:
                x = x.view(len(x), -1, H)
                a, b = x.chunk(2, -1)
                return (x * cos + torch.cat([-b, a], -1) * sin).flatten(1)

            return turned(q), turned(k)

    class Attend(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            q, k, v = (x.reshape(1, len(x), -1, H).transpose(1, 2) for x in (q, k, v))
            k, v = (x.repeat_interleave(N // K, 1) for x in (k, v))
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1).flatten(1)

    class SiluAndMul(nn.Module):
        def forward(self, x: Any) -> Any:
            a, b = x.chunk(2, -1)
            return functional.silu(a) * b

    rotary = Rotary()  # get_rope makes one for all layers

    class Attention(nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.qkv_proj, self.o_proj = Linear(own.q_proj, own.k_proj, own.v_proj), Linear(own.o_proj)
            self.rotary_emb, self.attn = rotary, Attend()

        def forward(self, positions: Any, x: Any) -> Any:
            q, k, v = self.qkv_proj(x)[0].split([N * H, K * H, K * H], -1)
            return self.o_proj(self.attn(*self.rotary_emb(positions, q, k), v))[0]

    class Mlp(nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = Linear(own.gate_proj, own.up_proj), Linear(own.down_proj)
            self.act_fn = SiluAndMul()

        def forward(self, x: Any) -> Any:
            return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]

    class Layer(nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.self_attn, self.mlp = Attention(own.self_attn), Mlp(own.mlp)
            self.input_layernorm = Norm(own.input_layernorm)
            self.post_attention_layernorm = Norm(own.post_attention_layernorm)

        def forward(self, positions: Any, x: Any, residual: Any) -> tuple[Any, Any]:
            x, residual = (self.input_layernorm(x), x) if residual is None else self.input_layernorm(x, residual)
            x, residual = self.post_attention_layernorm(self.self_attn(positions, x), residual)
            return self.mlp(x), residual

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.norm = m.model.embed_tokens, Norm(m.model.norm)
            self.layers = nn.ModuleList(map(Layer, m.model.layers))

        def forward(self, ids: Any, positions: Any) -> Any:
            x, residual = self.embed_tokens(ids), None
            for layer in self.layers:
                x, residual = layer(positions, x, residual)
            return self.norm(x, residual)[0]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lm_head = Inner(), m.lm_head

        def forward(self, ids: Any, positions: Any) -> Any:
            return self.lm_head(self.model(ids, positions)[-1:])

    m.save_pretrained(tmp_path / "model")
    engine, ids, path = Whole().eval(), torch.tensor(IDS), tmp_path / "dump.safetensors"
    with torch.no_grad():
        with qwenref.hooks(engine, path):
            logits = engine(ids, torch.arange(len(IDS)))
        assert torch.allclose(logits, m(ids[None]).logits[0, -1:], atol=1e-5)
    dump = open_dump(path, sizes_of(tmp_path), layers=2)
    assert {e.stage.name for e in dump.entries} >= {
        "attn_norm", "qkv_bias", "q_post_rope", "k_post_rope", "attention", "attn_out", "post_attn_residual",
        "ffn_norm", "ffn_gate", "ffn_up", "ffn_swigl", "ffn_out", "final_norm", "lm_head",
    }  # fmt: skip
    assert ("q_post_rope", 0) in dump and ("q_post_rope", 1) in dump and not any("left out" in n for n in dump.notes)
    assert dump.run["tokens"] == IDS and dump.ignored == ()
    report = qwenref.verify(path, tmp_path / "model")
    assert report.status == 0, report


def sizes_of(folder: Path) -> Any:
    return qwenref.load(folder / "model", backend="reference", precision="f64").config.sizes


def test_a_pass_that_never_ran_is_no_dump(tmp_path: Path) -> None:
    m, path = small("sdpa", "float32"), tmp_path / "d"
    with pytest.raises(ZeroDivisionError), qwenref.hooks(m, path):
        raise ZeroDivisionError
    with pytest.raises(qwenref.BadInput, match="no forward pass"), qwenref.hooks(m, path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_modules_that_torch_compiles(tmp_path: Path) -> None:
    """Hooks stay out of what is compiled: as many stages as of the plain model, and all explained."""
    m, path = small("sdpa", "bfloat16"), tmp_path / "dump.safetensors"
    m.save_pretrained(tmp_path / "model")
    for layer in m.model.layers:
        layer.mlp.compile(backend="eager")
    with qwenref.hooks(m, path), torch.no_grad():
        m(torch.tensor([IDS]))
    dump = open_dump(path, sizes_of(tmp_path), layers=2)
    assert {e.stage.name for e in dump.entries} >= {"ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out"}
    assert qwenref.verify(path, tmp_path / "model").status == 0
