"""Encoding: ggml's bytes where its rule is plain arithmetic, no further from the values where it is a search."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qwenref.errors import BadInput
from qwenref.quant import ggml, tensor
from qwenref.quant.tensor import dequantize, format_of, quantize

WRITTEN = [n for n in ggml.NAMES.values() if n not in ggml.UNDECODED and format_of(n).encode is not None]
PLAIN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SEARCHED = ["Q4_K", "Q5_K", "Q6_K"]

weights = hnp.arrays(
    np.float32, (2, 256), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True), fill=st.floats(-1, 1, width=32)
)


def test_what_can_be_written() -> None:
    assert {*PLAIN, *SEARCHED, "Q8_1", "Q8_K"} == set(WRITTEN)
    assert format_of("IQ2_S").encode is None
    with pytest.raises(BadInput, match="IQ2_S can be read but not written"):
        quantize(np.zeros((1, 256), np.float32), "IQ2_S")
    with pytest.raises(BadInput, match="no decoder for weight format Q9_Z"):
        quantize(np.zeros((1, 256), np.float32), "Q9_Z")


@pytest.mark.parametrize("name", PLAIN)
@given(x=weights)
def test_plain_formats_are_gguf_pys_bytes(name: str, x: NDArray[np.float32]) -> None:
    f = format_of(name)
    blocks = x.reshape(-1, f.block)
    size = np.ptp(blocks, axis=1) if name.endswith("_1") else np.abs(blocks).max(axis=1)
    defined = (size == 0) | (size > 1e-35) | (f.block == 1)  # between, ggml casts an infinite 1 / step to a byte
    with np.errstate(all="ignore"):
        want = gguf_quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8).reshape(-1, f.bytes)
    np.testing.assert_array_equal(quantize(x, name).data.reshape(-1, f.bytes)[defined], want[defined])


def test_bf16_rounds_to_even_and_keeps_nans_quiet() -> None:
    bits = np.arange(0, 1 << 32, 12347, np.uint32)
    bits = np.concatenate(
        (bits, np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x3F808000, 0x3F818000], "u4"))
    )
    x = bits.view(np.float32)[:, None]
    want = gguf_quantize(x, gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(format_of("BF16").encode(x), want)


@pytest.mark.parametrize("name", PLAIN)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoded_values_are_written_without_loss_of_more_than_a_step(name: str, seed: int) -> None:
    """|x - decode(encode(x))| is at most half a step, and a whole one where signed codes end one step earlier above."""
    x = np.random.default_rng(seed).standard_normal((8, 256)).astype(np.float32)
    b = x.reshape(-1, 32)
    extreme, span = np.abs(b).max(axis=1, keepdims=True), np.ptp(b, axis=1, keepdims=True)
    half = np.float32(2**-11)  # rounding of a half, relative
    bound = {
        "F32": 0 * b, "F16": np.abs(b) * half + 2**-25, "BF16": np.abs(b) * 2**-8,
        "Q8_0": extreme * (0.5 / 127 + half), "Q4_0": extreme * (1 / 8 + half), "Q5_0": extreme * (1 / 16 + half),
        "Q4_1": span * (0.5 / 15 + half) + extreme * half, "Q5_1": span * (0.5 / 31 + half) + extreme * half,
    }[name]  # fmt: skip
    assert (np.abs(dequantize(quantize(x, name)).reshape(-1, 32) - b) <= bound * 1.0001).all()


@pytest.mark.parametrize("name", SEARCHED)
@given(x=weights)
def test_searched_formats_stay_within_their_step(name: str, x: NDArray[np.float32]) -> None:
    """The search may not do worse than rounding to the coarsest group of the block would."""
    top, groups = {"Q4_K": (15, 8), "Q5_K": (31, 8), "Q6_K": (31, 16)}[name]
    b = x.reshape(2, groups, -1).astype(np.float64)
    got = dequantize(quantize(x, name)).reshape(b.shape)
    reach = (np.maximum(b.max(axis=2), 0) - np.minimum(b.min(axis=2), 0)).max(axis=1)  # of the block's widest group
    step = reach / top + 2**-19  # and what the grid of subnormal halves, 2^-24, leaves of a scale times a code
    error = np.sqrt(np.mean(np.square(got - b), axis=(1, 2)))
    assert (error <= step).all()


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-10])
def test_constant_and_vanishing_blocks(name: str, value: float) -> None:
    x = np.full((3, 256), value, np.float32)
    got = dequantize(quantize(x, name))
    assert np.isfinite(got).all()
    assert (np.abs(got - x) <= np.abs(x)).all()


@pytest.mark.parametrize("name", SEARCHED)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_a_second_writing_loses_little(name: str, seed: int) -> None:
    """Values that already lie on the format's grid come back nearly as they are."""
    x = np.random.default_rng(seed).standard_normal((64, 256)).astype(np.float32)
    once = dequantize(quantize(x, name))
    twice = dequantize(quantize(once, name))
    assert np.square(twice - once).mean() < 0.07 * np.square(once - x).mean()


def test_slabs_leave_no_seam() -> None:
    x = np.random.default_rng(1).standard_normal((1100, 256)).astype(np.float32)
    assert x.size > 2 * tensor.SLAB
    for name in WRITTEN:
        f = format_of(name)
        np.testing.assert_array_equal(quantize(x, name).data, f.encode(x.reshape(-1, f.block)).reshape(-1))
        assert quantize(x[:0], name).data.size == 0


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_place(name: str, bad: float) -> None:
    x = np.zeros((600, 2, 256), np.float32)
    x[530, 1, 37] = bad
    with pytest.raises(BadInput, match=rf"^tensor blk.0.x: {bad} at \(530, 1, 37\) is not a finite float32$"):
        quantize(x, name, "blk.0.x")
    with pytest.raises(BadInput, match=r"1e\+300 at \(0, 1\) is not a finite float32"):
        quantize(np.array([[0, 1e300] + [0] * 254]), name)


@pytest.mark.parametrize("name", [n for n in WRITTEN if n not in ("F32", "BF16", "Q8_K")])
def test_what_a_half_cannot_hold_is_refused(name: str) -> None:
    x = np.zeros((2, 256), np.float32)
    x[1, 32] = 3e38
    place = r"\(1, 32\)" if format_of(name).block <= 32 else r"\(1, 0\)"
    with pytest.raises(BadInput, match=rf"^tensor w: the block of .* at {place} is too large for {name}$"):
        quantize(x, name, "w")


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(BadInput, match="a row of 896 values is not a whole number of Q4_K blocks of 256"):
        quantize(np.zeros((2, 896), np.float32), "Q4_K")
