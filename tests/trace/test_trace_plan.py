"""What the user asks to trace is understood, or refused by name, before a model is loaded; the table of stages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.errors import BadInput
from qwenref.trace.plan import parse_ranges, plan, spell_ranges
from qwenref.trace.stages import NAMES, STAGES, by_name, execution_order, shape_for, shape_of_count

from ..tiny import collect, tiny_weights


def test_stages_are_understood_as_aprender_does() -> None:
    assert plan("all").stages == plan(" ALL ").stages == STAGES
    assert [s.name for s in plan(" Lm_Head ,ATTENTION, attn_norm,attention").stages] == [
        "attn_norm",
        "attention",
        "lm_head",
    ]
    assert [s.name for s in plan("layer_output").stages] == ["post_ffn_residual"]


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ("", "no stage is named"),
        ("  ", "no stage is named"),
        ("attn_norm,,ffn_out", "empty stage name"),
        (",", "empty stage name"),
        ("attn_norm,all", "`all` stands alone"),
        ("attn-norm", "unknown stage 'attn-norm'"),
        ("moe_router", "unknown stage 'moe_router'"),
        ("../../x", "unknown stage"),
    ],
)
def test_stages_that_are_none_are_refused(stages: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        plan(stages)
    assert "," in stages.strip(",") or all(name in str(error.value) for name in NAMES) or "empty" in says


@pytest.mark.parametrize(
    ("spelled", "layers"),
    [
        ("0..1", [0]),
        ("3", [3]),
        ("0,5,27", [0, 5, 27]),
        (" 1 .. 3 , 7 ", [1, 2, 7]),
        ("all", list(range(28))),
        ("ALL", list(range(28))),
    ],
)
def test_layers_are_understood(spelled: str, layers: list[int]) -> None:
    p = plan("attn_norm", spelled)
    assert [i for i in range(28) if p.wants(by_name("attn_norm"), i)] == layers
    assert not p.wants(by_name("ffn_norm"), layers[0])


@pytest.mark.parametrize(
    "spelled",
    [
        "",
        " ",
        "..",
        "0..",
        "..3",
        "0..=3",
        "5..5",
        "10..3",
        "-1",
        "-1..3",
        "0..3,",
        "x",
        "1.5",
        "0...3",
        "٣",
        "0..9999999999",
        "1e3",
    ],
)
def test_layers_that_are_none_are_refused(spelled: str) -> None:
    with pytest.raises(BadInput, match="layers"):
        plan("attn_norm", spelled)


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_spelled_as_they_are_read(numbers: set[int]) -> None:
    if numbers:
        assert [n for r in parse_ranges(spell_ranges(sorted(numbers)), "layers") for n in r] == sorted(numbers)


def test_whole_model_stages_ignore_the_layers_and_embedding_is_layer_0() -> None:
    p = plan("all", "1..2")
    assert p.wants(by_name("lm_head"), None) and p.wants(by_name("attn_norm"), 1)
    assert not p.wants(by_name("attn_norm"), 0) and not p.wants(by_name("embedding"), 0)
    with pytest.raises(BadInput, match="embedding belongs to layer 0"):
        plan("attn_norm,embedding", "1..2")


def test_shapes_follow_from_counts_alone() -> None:
    sizes = {"D": 3584, "N": 28, "K": 4, "H": 128, "E": 4608, "F": 18944, "V": 152064}  # Qwen2.5-Coder-7B, 7 positions
    bytes_of = {"attn_norm": 100364, "qkv_bias": 129036, "q_post_rope": 100364, "k_post_rope": 14348}
    bytes_of |= {"ffn_up": 530444, "attn_scores": 5500, "lm_head": 608268}  # aprender's own files
    for name, size in bytes_of.items():
        s = by_name(name)
        assert 12 + 4 * int(np.prod(shape_for(s, sizes, 7, 7))) == size
        assert shape_of_count(s, sizes, (size - 12) // 4, None) == shape_for(s, sizes, 7, 7)
    assert shape_of_count(by_name("attn_norm"), sizes, 3583, None) is None
    assert shape_of_count(by_name("attn_scores"), sizes, 28 * 9, 1) == (28, 1, 9)


def test_execution_order_is_the_pages() -> None:
    keys = [execution_order(by_name(n), i) for n, i in collect(tiny_weights(), "reference", "f32", [1])[0]]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
