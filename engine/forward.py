"""THE PAGE: one forward pass of Qwen2 and its relatives, for every backend, prompt and decode, run and trace.

Shape letters, here and everywhere: T new positions, S positions so far, D hidden, N query heads, K key/value heads,
H head size (h half of it), F mlp width, V vocabulary, E = (N + 2K) H, G = 2F; x goes from layer to layer, q, k, v are
queries, keys, values. `ops` are a backend's functions (kernels/__init__.py); `tap` is an identity that may look at a
stage on its way (engine/tap.py, trace/stages.py). A piece whose weights a model does not have is left out.
"""

from __future__ import annotations

from typing import Any

from .kernels import Cache, Kernels
from .tap import Tap, biased
from .weights import Weights

LAST, EVERY = (slice(-1, None), 0), (slice(None), slice(None))  # rows of the last norm, and of their logits


def forward(tokens_T: Any, w: Weights, cache: Cache, ops: Kernels, tap: Tap, of: tuple[Any, Any] = LAST) -> Any:
    """Logits [V] of the last of the tokens [T] (int32), which follow what the cache holds; the cache grows by T. `of`
    EVERY: logits [T, V] of all of them. Without a head, rows of the final norm instead: [D], or [T, D]."""
    c, eps, T = w.config, w.config.rms_norm_eps, len(tokens_T)
    N, K, H, F = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.intermediate_size
    (pos_T, see_T), freq_h, size = ops.positions(cache, T, c.causal), w.frequencies(cache.capacity), w.magnitude

    x_TD = tap.layer(0)("embedding", ops.embed(tokens_T, w.embed))
    for i, layer in enumerate(w.layers):
        at = tap.layer(i)

        normed_TD = at("attn_norm", ops.rms_norm(x_TD, layer.attn_norm_D, eps))
        qkv_TE = at("qkv_matmul", ops.linear(normed_TD, layer.qkv))
        qkv_TE = biased(at, "qkv_bias", ops, qkv_TE, layer.qkv_bias_E)
        q_TNH, k_TKH = qkv_TE[:, : N * H].reshape(T, N, H), qkv_TE[:, N * H : (N + K) * H].reshape(T, K, H)
        if layer.q_norm_H is not None:
            q_TNH = at("q_norm", ops.rms_norm(q_TNH, layer.q_norm_H, eps))
            k_TKH = at("k_norm", ops.rms_norm(k_TKH, layer.k_norm_H, eps))
        q_TNH = at("q_post_rope", ops.rope(q_TNH, pos_T, freq_h, size))
        k_TKH = at("k_post_rope", ops.rope(k_TKH, pos_T, freq_h, size))
        k_SKH, v_SKH = ops.append(cache, i, k_TKH, qkv_TE[:, (N + K) * H :].reshape(T, K, H))
        scores_NTS = at("attn_scores", ops.attn_scores(q_TNH, k_SKH, see_T))
        probs_NTS = at("attn_softmax", ops.softmax(scores_NTS, see_T, c.window(i)))
        mix_TNH = at("attention", ops.attn_mix(probs_NTS, v_SKH, see_T))
        out_TD = at("attn_out", ops.linear(mix_TNH.reshape(T, N * H), layer.attn_out))
        x_TD = at("post_attn_residual", ops.add(x_TD, biased(at, "attn_out_bias", ops, out_TD, layer.attn_out_bias_D)))

        normed_TD = at("ffn_norm", ops.rms_norm(x_TD, layer.ffn_norm_D, eps))
        both_TG = ops.linear(normed_TD, layer.gate_up)
        gate_TF = biased(at, "ffn_gate_bias", ops, at("ffn_gate", both_TG[:, :F]), layer.gate_bias_F)
        up_TF = biased(at, "ffn_up_bias", ops, at("ffn_up", both_TG[:, F:]), layer.up_bias_F)
        gated_TF = at("ffn_swigl", ops.mul(at("ffn_silu", ops.silu(gate_TF)), up_TF))
        out_TD = at("ffn_out", ops.linear(gated_TF, layer.ffn_down))
        x_TD = at("post_ffn_residual", ops.add(x_TD, biased(at, "ffn_out_bias", ops, out_TD, layer.ffn_down_bias_D)))
        del scores_NTS, probs_NTS, both_TG, gate_TF, up_TF, gated_TF  # the largest: their memory is the next layer's

    ops.advance(cache, T)
    x_TD = tap.whole("final_norm", ops.rms_norm(x_TD, w.final_norm_D, eps))[of[0]]
    if w.lm_head is not None:
        return tap.whole("lm_head", ops.linear(x_TD, w.lm_head)[of[1]])
    return x_TD[of[1]]
