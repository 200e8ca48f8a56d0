"""What each Format says of itself, held to what gguf-py decodes; and a format with a group size of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

import qwenref.quant
from qwenref.engine.kernels import backend
from qwenref.errors import BadInput
from qwenref.quant import aprq4
from qwenref.quant.tensor import dequantize, format_of, quantize
from qwenref.trace.verify.hypotheses.decoders import wrong_decoders
from qwenref.trace.verify.recipes.matrix import FileMatrix
from qwenref.trace.verify.recipes.products import operand, product
from qwenref.trace.verify.recipes.recipe import FLOAT32_RECIPE, RECIPES
from qwenref.trace.verify.span import Span

from ..tiny import tiny_weights
from .test_quant import FORMATS, STORED, reference

LEVELLED = [name for name in STORED if FORMATS[name].levels] + ["APRQ4"]


def decoded(name: str, copies: int, **fields: int) -> np.ndarray:
    """[copies, groups, group]: a block of random scales with codes at random, but for the fields named."""
    f, rng = format_of(name), np.random.default_rng(3)
    b = np.repeat(rng.integers(0, 256, (1, f.bytes), np.uint8), copies, axis=0).view(f.struct)[:, 0]
    for field in f.struct.names:
        if field.startswith("scales"):
            b[field] |= 0x11  # none is 0, however it is packed
    b[f.scale] = 0.25
    if f.minimum:
        b[f.minimum] = -0.75
    for field in f.codes:
        b[field] = rng.integers(0, 256, (copies, *b[field].shape[1:]), np.uint8).view(b[field].dtype)
    for field, value in fields.items():
        b[field] = value
    blocks = b.view(np.uint8).reshape(copies, -1)
    values = aprq4.decode(blocks) if name == "APRQ4" else reference(name, blocks)
    return values.reshape(copies, -1, f.group)


@pytest.mark.parametrize("name", LEVELLED)
def test_groups_codes_and_levels(name: str) -> None:
    """Each value of a group takes as many values as there are levels, the same for all of the group and no other."""
    f = format_of(name)
    values = decoded(name, 4000)
    seen = [[set(np.unique(values[:, g, i]).tolist()) for i in range(f.group)] for g in range(values.shape[1])]
    assert all(one == group[0] for group in seen for one in group)
    assert len(seen) == 1 or any(group[0] != seen[0][0] for group in seen[1:])
    for group in seen:
        assert len(group[0]) - f.levels == (name == "Q8_0")  # whose quantisers leave -128 out
        steps = np.diff(sorted(group[0]))
        assert steps.max() <= (2.5 if name.startswith("IQ4") else 1.001) * steps.min()


@pytest.mark.parametrize("name", LEVELLED)
def test_what_code_0_stands_for(name: str) -> None:
    f = format_of(name)
    if f.levels == 255 or name.startswith("IQ4"):
        assert not f.constants
        return
    assert f.constants
    values, zeros = decoded(name, 4000), decoded(name, 1, **dict.fromkeys(f.codes, 0))[0]
    for g, zero in enumerate(zeros):
        lowest = np.unique(values[:, g])
        step = lowest[1] - lowest[0]
        assert (zero == zero[0]).all()
        if f.minimum is None:  # a scale below 0 counts downwards
            assert abs(zero[0]) == pytest.approx(f.offset * step, rel=1e-6)
            assert zero[0] in (lowest[0], lowest[-1])
        else:
            assert zero[0] in lowest
            unlike = f.struct[f.minimum].type(-1.5)
            assert decoded(name, 1, **dict.fromkeys(f.codes, 0), **{f.minimum: unlike})[0, g, 0] == 2 * zero[0]


@pytest.mark.parametrize("name", [name for name in STORED if FORMATS[name].high])
def test_without_the_high_bits_there_are_fewer_levels(name: str) -> None:
    f = format_of(name)
    left = {"Q3_K": 4}.get(name, 16)
    assert {len(np.unique(group)) for group in decoded(name, 4000, **{f.high: 0}).swapaxes(0, 1)} == {left}


def test_every_fact_names_what_there_is() -> None:
    for name in [*FORMATS, "APRQ4", "APRQ8"]:
        f = format_of(name)
        assert f.name == name and f.block % f.group == 0
        told = [f.scale, f.minimum, f.six_bits, f.high, *f.codes, *(f.nibbles or ())[:1]]
        assert {field for field in told if field} <= set(f.struct.names or ())
        assert f.codes or not (f.constants or f.levels)
        for activations in (f.activations, f.activations_int16.replace("Q16", "Q8")):
            x = format_of(activations)
            assert x.encode is not None and f.block % x.block == 0


def test_a_format_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        format_of("Q4_K").block = 32  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("Q4_KM", "; did you mean Q4_K?"),
        ("iq4-nl", "; did you mean IQ4_NL?"),
        ("F32/4", "; did you mean F32?"),
        ("", ""),
    ],
)
def test_an_unknown_format_is_refused_with_the_one_like_it(name: str, like: str) -> None:
    with pytest.raises(BadInput) as error:
        format_of(name)
    assert str(error.value) == f"no decoder for weight format {name}{like}"


# ---- a format of groups whose size is a number, as of a file that a contributor adds

AFFINE = """
from qwenref.quant.format import Format

import numpy as np


def FORMAT(bits, group):
    struct = np.dtype([("codes", "u1", group), ("scale", "<f2"), ("bias", "<f2")])

    def decode(blocks):
        b = blocks.view(struct)[:, 0]
        return b["codes"] * b["scale"].astype("f4")[:, None] + b["bias"].astype("f4")[:, None]

    def encode(values):
        b = np.empty(len(values), struct)
        b["bias"] = values.min(1)
        b["scale"] = np.ptp(values, axis=1) / (2**bits - 1) * 1.001 + 1e-3
        q = (values - b["bias"].astype("f4")[:, None]) / b["scale"].astype("f4")[:, None]
        b["codes"] = np.clip(np.rint(q), 0, 2**bits - 1)
        return b.view(np.uint8).reshape(-1, struct.itemsize)

    return Format(f"AFFINE/{bits}/{group}", group, struct, decode, encode, scale="scale", minimum="bias",
                  codes=("codes",), levels=2**bits)
"""


@pytest.fixture
def affine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "affine.py").write_text(AFFINE)
    monkeypatch.setattr(qwenref.quant, "__path__", [*qwenref.quant.__path__, str(tmp_path)])
    yield
    monkeypatch.delitem(sys.modules, "qwenref.quant.affine", raising=False)
    format_of.cache_clear()


@pytest.mark.parametrize("group", [16, 64])
def test_a_format_with_a_group_size_of_its_own(group: int, affine: None) -> None:
    name, rng = f"AFFINE/4/{group}", np.random.default_rng(0)
    values = rng.standard_normal((6, 128)).astype(np.float32)
    w = quantize(values, name, "w")
    assert w.data.size == 6 * 128 // group * (group + 4)
    blocks = w.data.reshape(6, -1, group + 4)
    scale, bias = (blocks[..., at : at + 2].copy().view("<f2").astype(np.float32) for at in (group, group + 2))
    want = (blocks[..., :group] * scale + bias).reshape(6, 128)
    np.testing.assert_array_equal(dequantize(w), want)
    np.testing.assert_array_equal(dequantize(w, 2, 4), want[2:4])
    assert np.abs(want - values).max() < 0.3

    m = FileMatrix(w)
    assert (m.facts.group, m.facts.levels) == (group, 16)
    np.testing.assert_array_equal(m.constants(1, 5), np.repeat(bias[1:5, :, 0], group, axis=1))
    np.testing.assert_array_equal(m.minima(1, 5), bias[1:5, :, 0])
    x = rng.standard_normal((3, 128))
    np.testing.assert_allclose(product(FLOAT32_RECIPE, Span.point(x), m).mid, x @ want.T.astype(np.float64), rtol=1e-12)
    assert all(operand(r, x, name)[0] is x for r in RECIPES)
    wrong = {what: made().rows(0, 6) for what, made, _ in wrong_decoders(m)}
    np.testing.assert_allclose(
        wrong["each group's constant (offset or minimum) is left out"], (blocks[..., :group] * scale).reshape(6, 128),
        atol=1e-6,
    )  # fmt: skip
    assert not any("nibbles" in what or "6-bit" in what for what in wrong)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_a_backend_runs_it(name: str, affine: None) -> None:
    plain, k = tiny_weights(layers=1, hidden=64), backend(name)
    w = quantize(dequantize(plain.layers[0].attn_out), "AFFINE/4/32", "w")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    for precision in k.PRECISIONS:
        made = k.prepare(replace(plain, layers=(replace(plain.layers[0], attn_out=w),)), precision)
        got = k.to_host(k.linear(x, made.layers[0].attn_out))
        np.testing.assert_allclose(got, x @ dequantize(w).T, rtol=1e-4, atol=1e-4)


def test_its_numbers_are_checked(affine: None) -> None:
    for name in ("AFFINE", "AFFINE/4", "AFFINE/4/x", "AFFINE/4/64/1", "AFFINE/4/-8", "AFFINE/4/²"):
        with pytest.raises(BadInput, match=r"is written AFFINE/bits/group, in whole numbers$"):
            format_of(name)
