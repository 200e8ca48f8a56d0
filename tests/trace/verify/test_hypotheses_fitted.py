"""Hypotheses that are fitted to the dump, planted in bfloat16, in the first, the middle and the last layer by
turns; and a sample of the public cases (tests/cases.py). tests/oracle plants them in float32 too, and runs all cases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from qwenref.trace.verify.finding import UNEXPLAINED
from qwenref.trace.verify.hypotheses.masks import described
from qwenref.trace.verify.span import E4M3
from qwenref.trace.verify.verify import verify

from ...cases import CASES, NAMED, outcome, rows_of, turned_from, unset_head, weights, windowed
from ...engines import Run, dump_of, f32
from ...plants import keys, layer, tail

A = np.ndarray
Wrong = Callable[[Run, A], A]
TOKENS = np.random.default_rng(1).integers(0, 259, 9).tolist()


def part_of(run: Run, y: A) -> A:
    return tail(run, y * f32(0.75 - 0.05 * np.arange(len(y)))[:, None, None])


def rank_of_bias(run: Run, y: A) -> A:
    own = layer(run).qkv_bias_E.copy()
    c = run.config
    for start, heads in ((0, c.num_attention_heads), (c.num_attention_heads, 2), (c.num_attention_heads + 2, 2)):
        own[(start + heads // 2) * c.head_dim : (start + heads) * c.head_dim] = 0
    return run.kernels.add(run.get("qkv_matmul"), own)


def half_sum(run: Run, y: A) -> A:
    x = run.get("ffn_swigl").copy()
    x[:, x.shape[1] // 2 :] = 0
    return run.kernels.linear(x, layer(run).ffn_down)


def columns_lost(run: Run, y: A) -> A:
    y = y.copy()
    y[:, -7:] = 0
    return y


def one_stale(run: Run, y: A) -> A:
    y = y.copy()
    y[5] = y[4]
    return y


def head_quieter(run: Run, y: A) -> A:
    y = y.copy()
    y[:, 3] = tail(run, y[:, 3] * f32(0.5))
    return y


def one_row_turned(run: Run, y: A) -> A:
    pos = run.pos_T.copy()
    pos[-1] = 40
    return turned_from(run, y, pos)


def capped(run: Run, y: A) -> A:
    return tail(run, f32(5) * np.tanh(y / f32(5)))


def clamped(run: Run, y: A) -> A:
    return np.clip(y, f32(-1.5), f32(1.5))


def by_log(run: Run, y: A) -> A:
    return tail(run, y * (np.log(run.pos_T + f32(1)) / np.log(f32(512)))[:, None].astype(f32))


def unscaled_keys(run: Run, y: A) -> A:
    scale = np.abs(run.all_so_far("k_post_rope")).max().astype(f32) / f32(448)
    return tail(run, y / scale)


def log_softmax(run: Run, y: A) -> A:
    return y - y.max() - np.log(np.exp(y - y.max()).sum())


def normed(run: Run, x: A, of: A) -> A:
    scale = f32(1) / np.sqrt(np.square(of).sum(-1, keepdims=True) / f32(x.shape[1]) + f32(run.config.rms_norm_eps))
    return x * scale * layer(run).ffn_norm_D


def squares_lost(run: Run, y: A) -> A:
    x = run.get("post_attn_residual")
    return normed(run, x, x[:, :200])


def old_residual(run: Run, y: A) -> A:
    return normed(run, run.before(), run.get("post_attn_residual"))


def half_heads(run: Run, y: A) -> A:
    q, k = run.get("q_post_rope").copy(), keys(run)
    q[..., q.shape[-1] // 2 :] = 0
    return run.kernels.attn_scores(q, k, run.pos_T)


def in_fp8(run: Run, y: A) -> A:
    q, k = (E4M3.round(x.astype(np.float64)).astype(f32) for x in (run.get("q_post_rope"), keys(run)))
    return run.kernels.attn_scores(q, k, run.pos_T)


def hadamard(run: Run, y: A) -> A:
    H = np.ones((1, 1), f32)
    while len(H) < y.shape[-1]:
        H = np.block([[H, H], [H, -H]])
    return (y.astype(np.float64) @ (H / np.sqrt(len(H)))).astype(f32)


def eight_bits(x: A, cut: bool, first: bool) -> A:
    """Blocks of 32 as Q8_0 has them."""
    b = x.reshape(len(x), -1, 32)
    scale = np.abs(b).max(-1, keepdims=True) / f32(127)
    scale = scale[:1] + 0 * scale if first else scale
    codes = b * (f32(1) / scale)
    codes = np.trunc(codes) if cut else np.rint(codes)
    return (np.clip(codes, -127, 127) * scale.astype(np.float16).astype(f32)).reshape(x.shape)


def cut_to_eight(run: Run, y: A) -> A:
    return run.kernels.linear(eight_bits(run.get("attn_norm"), True, False), layer(run).qkv)


def first_scale(run: Run, y: A) -> A:
    return run.kernels.linear(eight_bits(run.get("ffn_swigl"), False, True), layer(run).ffn_down)


def wrong_row(run: Run, y: A) -> A:
    y = y.copy()
    y[-1] = run.kernels.add(run.before()[:1], run.get("attn_out")[-1:])[0]
    return y


def unwritten(run: Run, y: A) -> A:
    y = y.copy()
    y[..., y.shape[-1] // 2 :] = run.get("q_post_rope", run.at - 1)[..., y.shape[-1] // 2 :]
    return y


def unsigned_codes(run: Run, y: A) -> A:
    """Q8_0 by a language whose bytes have no sign."""
    (w,) = run.weights.embed.parts  # type: ignore[attr-defined]
    raw = w.data.reshape(w.shape[0], -1, 34)[TOKENS]
    scale = raw[..., :2].copy().view("<f2").astype(f32)
    return tail(run, (raw[..., 2:].astype(f32) * scale).reshape(y.shape))


# What needs another engine than the others': of float32, so that one rounding more is none of 16 bits.
ENGINES = dict.fromkeys(
    ("norm-squares", "norm-scale-of", "activations-cut", "activations-first-scale", "values-turned"), "HF float32"
)
LATER = ("part-elsewhere",)  # what the first layer cannot have


def tile_unscaled(run: Run, y: A) -> A:
    x = run.get("ffn_swigl").copy()
    x[:, -64:] *= f32(4)
    return run.kernels.linear(x, layer(run).ffn_down)


def by_two_ranks(run: Run, y: A) -> A:
    x = run.get("ffn_swigl")
    halves = [np.where((np.arange(x.shape[1]) < x.shape[1] // 2) == first, x, f32(0)) for first in (True, False)]
    return run.kernels.add(*(run.kernels.linear(half, layer(run).ffn_down) for half in halves))


# name -> stage, mistake, what the sentence holds. One that is only described is not named after a cause.
FITTED: dict[str, tuple[str, Wrong, str]] = {
    "mask-other": ("attn_softmax", partial(windowed, size=4), "a window of 4 positions, where this layer has none"),
    "softmax-part": ("attn_softmax", part_of, "0.4 to 0.75"),
    "cache-rows": ("attn_scores", rows_of(np.r_[0, 2, 1, 3:9])["attn_scores"], "those of 2 stand at 1"),
    "values-heads": ("attention", lambda run, y: np.roll(y, 1, 1), "rolled by 1"),
    "bias-rank": ("qkv_bias", rank_of_bias, "only rank 0 of 2"),
    "rank-missing": ("ffn_out", half_sum, "of 2 ranks, only rank 0 is summed"),
    "ranks-rounded": ("ffn_out", by_two_ranks, "the shares of 2 ranks are rounded each"),
    "part-zero": ("ffn_up", columns_lost, "columns 505 to 511 are 0"),
    "part-stale": ("attn_out", one_stale, "position 5 holds 4's row"),
    "part-factor": ("attention", head_quieter, "a factor of 0.5 in head 3"),
    "rope-rows": ("k_post_rope", one_row_turned, "position 8 by 40"),
    "head-unset": ("lm_head", unset_head, "unset"),
    "head-softmax": ("lm_head", log_softmax, "log-probabilities"),
    "head-order": ("lm_head", lambda run, y: y[np.random.default_rng(4).permutation(len(y))], "another order"),
    "soft-cap": ("attn_scores", capped, "5 tanh(x / 5)"),
    "clamp": ("ffn_gate", clamped, "-1.5 to 1.5"),
    "log-n": ("attn_scores", by_log, "log(512)"),
    "cache-scale": ("attn_scores", unscaled_keys, "1.0 stands for it"),
    "norm-squares": ("ffn_norm", squares_lost, "the last 56 of 256"),
    "norm-scale-of": ("ffn_norm", old_residual, "what is scaled is the layer's input"),
    "scores-part": ("attn_scores", half_heads, "the first 16 of 32 channels"),
    "scores-fp8": ("attn_scores", in_fp8, "queries and keys are rounded to e4m3"),
    "values-turned": ("attention", hadamard, "Hadamard, 32 channels"),
    "activations-cut": ("qkv_matmul", cut_to_eight, "towards zero"),
    "activations-first-scale": ("ffn_out", first_scale, "the scale of the first position"),
    "residual-row": ("post_attn_residual", wrong_row, "position 8 gets that of position 0"),
    "part-elsewhere": ("q_post_rope", unwritten, "channels 16 to 31 hold what layer"),
    "decoder-look-up": ("embedding", unsigned_codes, "signed codes are read as unsigned"),
}


@pytest.mark.parametrize("name", FITTED)
def test_planted(name: str, engine: str = "HF bfloat16") -> None:
    stage, wrong, words = FITTED[name]
    engine = ENGINES.get(name, engine)
    at = None if stage == "lm_head" else 0 if stage == "embedding" else list(FITTED).index(name) % 3
    at = 1 if name in LATER else at
    found = [
        f
        for f in verify(dump_of(weights(), engine, TOKENS, mistakes={(stage, at): wrong}), weights()).findings
        if f.verdict == UNEXPLAINED
    ]
    assert [(f.layer, f.stage) for f in found] == [(at, stage)]
    told = {h.name: h.sentence for h in found[0].hypotheses}
    assert name in told, told
    assert words in told[name]
    assert ("factor" in told) == (name == "cache-scale"), "a factor of all values is not what is wrong"


def test_a_tile_that_counts_more_is_named() -> None:
    dump = dump_of(weights(), "HF float32", TOKENS, mistakes={("ffn_out", 1): tile_unscaled})
    (f,) = [f for f in verify(dump, weights()).findings if f.verdict == UNEXPLAINED]
    assert (f.layer, f.stage) == (1, "ffn_out")
    assert "inputs 448 to 511 count 4 times" in [h.sentence for h in f.hypotheses if h.name == "product-tile"]


@pytest.mark.parametrize("engine", ["HF bfloat16", "HF float32", "ggml, 16-bit KV"])
@pytest.mark.parametrize("name", ["head-softmax", "head-order"])
def test_logits_in_another_form_are_named_first(name: str, engine: str) -> None:
    made = {"head-order": FITTED[name][1], "head-softmax": lambda run, y: np.exp(log_softmax(run, y))}[name]
    v = verify(dump_of(weights(), engine, TOKENS, mistakes={("lm_head", None): made}), weights())
    assert [f.hypotheses[0].name for f in v.findings if f.verdict == UNEXPLAINED] == [name]


def test_masks_in_words() -> None:
    key_S, pos_T1 = np.arange(8), np.arange(8)[:, None]
    own_TS = key_S <= pos_T1

    def words(seen_TS: A) -> str:
        return described(seen_TS, own_TS, key_S, pos_T1)

    assert words(own_TS) == ""
    assert words(own_TS & (key_S >= 2) | (key_S == pos_T1)) != ""
    assert words(own_TS & (key_S // 3 == pos_T1 // 3)) == (
        "documents or chunks that do not see each other begin at positions 0, 3, 6"
    )
    assert words(key_S <= pos_T1 + 2) == "each position sees 2 keys too many: a wrong corner"
    assert words(key_S <= pos_T1 - 3) == "each position sees 3 keys too few: a wrong corner"
    corner = described(key_S <= pos_T1[5:] - 5, own_TS[5:], key_S, pos_T1[5:], held=5)
    assert corner.startswith("this pass is masked as if the cache were empty") and "5 keys too few" in corner
    assert described(key_S[None] < 6, own_TS[7:], key_S, pos_T1[7:], held=7) == "only the first 6 keys are seen"
    assert words(own_TS & ((key_S != 1) | (pos_T1 < 5))) == "position 5 sees keys 0, 2 to 5"


@pytest.mark.parametrize("number", [3, 35, 45, 48])
def test_a_public_case_is_named(number: int) -> None:
    (c,) = (c for c in CASES if c.number == number)
    how, said = outcome(c)
    assert how == NAMED, said


def test_every_case_has_its_row() -> None:
    assert sorted(c.number for c in CASES) == list(range(1, 65))
