"""Every format of quant/, found in its folder: decoding held to gguf-py bit by bit and to blocks worked out by hand."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwenref.errors import BadInput
from qwenref.quant import ggml, tensor
from qwenref.quant.format import Format
from qwenref.quant.tensor import QTensor, dequantize, row_bytes

MODULES = [import_module(f"qwenref.quant.{p.stem}") for p in sorted(Path(tensor.__file__).parent.glob("*.py"))]
FORMATS: dict[str, Format] = {
    m.FORMAT.name: m.FORMAT for m in MODULES if isinstance(getattr(m, "FORMAT", None), Format)
}
FORMATS = {name: m for name, m in FORMATS.items() if not name.startswith("APR")}  # aprender's own: test_apr.py
ACTIVATIONS = ("Q8_1", "Q8_K")  # no file holds them, so gguf-py does not decode them
STORED = [name for name in FORMATS if name not in ACTIVATIONS]
NUMBERS = {t.name: t.value for t in gguf.GGMLQuantizationType}


def reference(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return gguf_dequantize(blocks, gguf.GGMLQuantizationType[name])


def decode(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return FORMATS[name].decode(blocks)


def assert_same_bits(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def record(name: str, **fields: Any) -> NDArray[np.uint8]:
    b = np.zeros(1, FORMATS[name].struct)
    for field, value in fields.items():
        b[field] = value
    return b.view(np.uint8).reshape(1, -1)


def test_every_type_that_gguf_py_decodes_has_its_file() -> None:
    def decodes(t: gguf.GGMLQuantizationType) -> bool:
        try:
            gguf_dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[t][1]), np.uint8), t)
        except NotImplementedError:
            return False
        return True

    assert {t.name for t in gguf.GGMLQuantizationType if decodes(t)} == set(STORED)


def test_the_table_of_types_is_ggmls() -> None:
    want = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    want[9] = ("Q8_1", 32, 36)  # gguf-py counts two floats; block_q8_1 has two halves
    assert {number: (name, *ggml.size_of(name)) for number, name in ggml.NAMES.items()} == want
    assert set(FORMATS) == set(ggml.NAMES.values()) - set(ggml.UNDECODED)


# One block each, worked out from the C structs: its bytes, {index: value} and, before it, the value of all others.
NIBBLES = [0xF0, 0x2A] + [0] * 14  # value 0 has 0, value 16 has 15; value 1 has 10, value 17 has 2
HAND: dict[str, tuple[NDArray[np.uint8], float, dict[int, float]]] = {
    "F32": (np.array([[0, 0, 0xC0, 0xBF]], np.uint8), -1.5, {}),
    "F16": (np.array([[0, 0xBE]], np.uint8), -1.5, {}),
    "BF16": (np.array([[0xC0, 0xBF]], np.uint8), -1.5, {}),
    "Q4_0": (record("Q4_0", d=0.5, qs=NIBBLES), -4, {16: 3.5, 1: 1, 17: -3}),
    "Q4_1": (record("Q4_1", d=0.5, m=-1, qs=NIBBLES), -1, {16: 6.5, 1: 4, 17: 0}),
    "Q5_0": (record("Q5_0", d=0.5, qh=[2, 0, 1, 0], qs=NIBBLES), -8, {16: 7.5, 1: 5, 17: -7}),
    "Q5_1": (record("Q5_1", d=0.5, m=-1, qh=[2, 0, 1, 0], qs=NIBBLES), -1, {16: 14.5, 1: 12, 17: 0}),
    "Q8_0": (record("Q8_0", d=0.5, qs=[-128, 127] + [0] * 30), 0, {0: -64, 1: 63.5}),
    "Q8_1": (record("Q8_1", d=0.5, s=-0.5, qs=[-128, 127] + [0] * 30), 0, {0: -64, 1: 63.5}),
    "Q8_K": (record("Q8_K", d=0.1, qs=[-127, 1] + [0] * 254), 0, {0: np.float32(0.1) * -127, 1: np.float32(0.1)}),
    # scales: group 1 (values 16 to 31) has scale 3 and minimum 2; bits 2 and 3 of byte 16 are value 48 of group 3
    "Q2_K": (
        record("Q2_K", d=0.5, dmin=0.25, scales=[0, 0x23, 0, 1] + [0] * 12, qs=[0] * 16 + [0b1101] + [0] * 47),
        0,
        {i: -0.5 for i in range(17, 32)} | {16: 1.0, 48: 1.5},
    ),
    # all scales 32 but number 9: low nibble 5 (high half of byte 1), upper bits 3 (bits 4, 5 of byte 9): 53 - 32
    "Q3_K": (
        record("Q3_K", d=0.5, hmask=[0] * 16 + [16] + [0] * 15, qs=[0] * 48 + [3] + [0] * 15,
               scales=[0, 0x50, 0, 0, 0, 0, 0, 0, 0xAA, 0xBA, 0xAA, 0xAA]),
        0,
        {i: -42.0 for i in range(145, 160)} | {144: 31.5},
    ),
    # scale 0 is 63; byte 0's upper bits make scale 4 16 + 5; minimum 4 is 2 + 32; qs[64] is values 128 and 160
    "Q4_K": (
        record("Q4_K", d=0.5, dmin=0.25, scales=[0x7F, 0, 0, 0, 0x80, 0, 0, 0, 0x25, 0, 0, 0],
               qs=[1] + [0] * 63 + [3] + [0] * 63),
        0,
        {i: -8.5 for i in range(129, 160)} | {0: 31.5, 128: 23.0},
    ),
    "Q5_K": (
        record("Q5_K", d=0.5, dmin=0.25, scales=[0x7F, 0, 0, 0, 0x80, 0, 0, 0, 0x25, 0, 0, 0], qh=[17] + [0] * 31,
               qs=[1] + [0] * 63 + [3] + [0] * 63),
        0,
        {i: -8.5 for i in range(129, 160)} | {0: 535.5, 128: 191.0},
    ),
    # value 64 is the high nibble of ql[0] (7) and bits 4, 5 of qh[0] (2): 39 - 32; its group 4 has scale -3
    "Q6_K": (
        record("Q6_K", d=0.5, scales=[0] * 4 + [-3] + [0] * 11, ql=[0x70] + [0] * 127, qh=[0x20] + [0] * 63),
        0,
        {i: 48.0 for i in range(65, 80)} | {64: -10.5},
    ),
    "IQ4_NL": (record("IQ4_NL", d=0.5, qs=NIBBLES), -63.5, {16: 56.5, 1: 12.5, 17: -41.5}),
    # scale 3: high nibble of scales_l[1] (1), bits 6, 7 of scales_h (3): 49 - 32; the other scales are 32 - 32
    "IQ4_XS": (
        record("IQ4_XS", d=0.5, scales_h=0xAAEA, scales_l=[0, 0x10, 0, 0], qs=[0] * 48 + [0x8F] + [0] * 79),
        0,
        {i: -1079.5 for i in range(97, 128)} | {96: 960.5, 112: 8.5},
    ),
    "MXFP4": (record("MXFP4", e=129, qs=NIBBLES), 0, {16: -24, 1: -4, 17: 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n, m in FORMATS.items() if m.struct.names or m.block == 1])
def test_block_worked_out_by_hand(name: str) -> None:
    block, rest, others = HAND[name]
    want = np.full((1, FORMATS[name].block), rest, np.float32)
    want[0, list(others)] = list(others.values())
    np.testing.assert_array_equal(FORMATS[name].decode(block), want)


@pytest.mark.parametrize("name", STORED)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
def test_random_bytes_decode_as_gguf_py_decodes_them(name: str, seed: int, n: int) -> None:
    blocks = np.random.default_rng(seed).integers(0, 256, (n, FORMATS[name].bytes), np.uint8)
    assert_same_bits(decode(name, blocks), reference(name, blocks))


@cache
def halves(form: Format) -> list[str]:
    return [f for f in form.struct.names if form.struct[f] == np.float16]


@pytest.mark.parametrize(
    ("name", "field"),
    [(n, f) for n, m in FORMATS.items() if n in STORED and m.struct.names for f in halves(m)],
)
def test_every_half_as_a_scale(name: str, field: str) -> None:
    """All 65,536: zeros of both signs, subnormals, infinities, every NaN."""
    m = FORMATS[name]
    one = np.random.default_rng(7).integers(0, 256, (1, m.bytes), np.uint8)
    b = np.repeat(one, 65536, axis=0).view(m.struct)
    for f in halves(m):
        b[f] = 0.75
    b[field] = np.arange(65536, dtype=np.uint16).view(np.float16)[:, None]
    blocks = b.view(np.uint8).reshape(-1, m.bytes)
    assert_same_bits(decode(name, blocks), reference(name, blocks))


def test_every_half_and_every_bfloat16_and_every_power_of_two() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    for name in ("F16", "BF16"):
        assert_same_bits(decode(name, every), reference(name, every))
    powers = np.random.default_rng(7).integers(0, 256, (256, 17), np.uint8)
    powers[:, 0] = np.arange(256)
    assert_same_bits(decode("MXFP4", powers), reference("MXFP4", powers))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_that_lie_anywhere(name: str) -> None:
    """Empty, at an odd address, read-only, with a gap between blocks: as a memory map gives them."""
    size = FORMATS[name].bytes
    assert decode(name, np.zeros((0, size), np.uint8)).shape == (0, FORMATS[name].block)
    raw = np.random.default_rng(5).integers(0, 256, 6 * size + 1, np.uint8)
    raw.setflags(write=False)
    odd = raw[1:].reshape(6, size)
    want = decode(name, odd.copy())
    assert_same_bits(decode(name, odd), want)
    assert_same_bits(decode(name, odd[::2]), want[::2])


@pytest.mark.parametrize("shape", [(512,), (6, 512), (2, 3, 256)])
@pytest.mark.parametrize("name", STORED)
def test_dequantize_slices_the_outermost_dimension(name: str, shape: tuple[int, ...]) -> None:
    f, size = FORMATS[name], int(np.prod(shape))
    data = np.random.default_rng(2).integers(0, 256, size // f.block * f.bytes, np.uint8)
    w = QTensor(name, shape, data, "w")
    whole = dequantize(w)
    assert_same_bits(whole, reference(name, data.reshape(-1, f.bytes)).reshape(shape))
    for start, stop in ((0, 1), (1, 2), (1, None), (2, 2), (0, 99)):
        assert_same_bits(dequantize(w, start, stop), whole[start:stop])


def test_what_is_no_tensor_is_refused() -> None:
    data = np.zeros(144 * 3, np.uint8)
    with pytest.raises(BadInput, match=r"^tensor blk.0.x: 432 bytes, but Q4_K of shape \(2, 256\) takes 288$"):
        dequantize(QTensor("Q4_K", (2, 256), data, "blk.0.x"))
    with pytest.raises(BadInput, match="tensor w: a single value has no rows"):
        dequantize(QTensor("F32", (), data[:4], "w"))
    with pytest.raises(BadInput, match="a row of 896 values is not a whole number of Q4_K blocks of 256"):
        row_bytes("Q4_K", 896)
    for name in ("Q1_0", "I32", "tensor", "Fit", "../f32", "q4_k.x", ""):
        with pytest.raises(BadInput, match="no decoder for weight format"):
            row_bytes(name, 256)


@pytest.mark.model
def test_tensors_of_the_real_model(model_path: Path) -> None:
    """The first 300 rows of one tensor in every format and of every tensor of the first and the last layer."""
    reader = gguf.GGUFReader(model_path)
    by_format = {t.tensor_type: t for t in reader.tensors}
    checked = [t for t in reader.tensors if t.name.startswith(("blk.0.", "blk.23."))] + list(by_format.values())
    assert {t.tensor_type.name for t in checked} >= {"F32", "Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    for t in checked:
        shape = tuple(int(n) for n in reversed(t.shape))
        w = QTensor(t.tensor_type.name, shape, t.data.reshape(-1).view(np.uint8), t.name)
        assert_same_bits(dequantize(w, 0, 300), gguf_dequantize(t.data[:300], t.tensor_type))
