"""Whatever names and shapes: a dump whose values are those that were there, or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenref.errors import BadInput
from qwenref.trace.sources.array import KINDS, Array, Arrays
from qwenref.trace.sources.assemble import Asked, assembled

from ...tiny import tiny_weights

C = tiny_weights().config
NAMES = [
    "tokens", "positions", "attention_mask", "seq_lens", "cu_seqlens", "embedding", "final_norm", "lm_head",
    *(f"layer-{i}/{s}" for i in (0, 1) for s in ("attn_norm", "qkv_bias", "q_proj", "k_proj", "v_proj", "attn_scores",
                                                 "attention", "attn_out", "ffn_gate")),
    "model.layers.1.input_layernorm/1", "model.layers.0.mlp.gate_up_proj", "model.layers.0.self_attn.qkv_proj",
    "rank0/layer-0/ffn_out", "rank1/layer-0/ffn_out", "rank1/layer-0/ffn_up", "phase-1/tokens", "phase-1/final_norm",
    "Pass00001/logits_processor", "Qcur-0", "kq-1", "x",
]  # fmt: skip
SIDES = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 16, 64, 64, 64, 96, 128, 192, 259])


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    name = draw(st.sampled_from(NAMES))
    shape = tuple(draw(st.lists(SIDES, max_size=3)))
    if name.split("/")[-1] in ("tokens", "positions", "attention_mask", "seq_lens", "cu_seqlens"):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
        dtype, top = draw(st.sampled_from(["<i8", "<i4", "?", "<f4"])), draw(st.sampled_from([2, 5, 300, 1 << 40]))
    else:
        dtype, top = draw(st.sampled_from(["<f4", "<f4", "<f2", "<f8", "<i4"])), 100
    raw = (np.arange(np.prod(shape, dtype=int)).reshape(shape) * 7 % top).astype(dtype)
    return Array(name, f"file: {name}", KINDS[np.dtype(dtype)], raw)


@settings(max_examples=1000)
@given(
    st.lists(arrays(), min_size=1, max_size=7, unique_by=lambda a: a.name),
    st.sampled_from([None, None, 0, 1, 9]),
    st.sampled_from([None, None, (3, 4), (3, 4, 5, 6, 7)]),
    st.sampled_from([None, None, (range(0, 1),), (range(1, 3),)]),
)
def test_a_dump_or_one_line(
    held: list[Array], row: int | None, tokens: tuple[int, ...] | None, passes: tuple[range, ...] | None
) -> None:
    asked = Asked(row=row, tokens=tokens, passes=passes)
    try:
        dump, how = assembled(Arrays(Path("file"), tuple(held)), C.sizes, C.num_hidden_layers, asked)
    except BadInput as error:
        assert "\n" not in str(error)
        return
    used = {id(h.array) for ranks in how.places.held.values() for h in ranks.values()}
    for e in dump.entries:
        values = e.values()
        assert values.shape == e.shape and values.dtype == np.float32 and used and e.positions
        rows = e.shape[e.stage.letters.index("T")] if "T" in e.stage.letters else 1
        assert len(e.positions) == rows and list(e.positions) == sorted(set(e.positions))
