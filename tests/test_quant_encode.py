"""Encoding: byte for byte ggml's where ggml's rule is plain arithmetic, no further from the values where it is a search."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize as gguf_quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qwenref.quant import ggml, q8_0, q8_1, q8_k, tensor
from qwenref.quant.errors import BadInput
from qwenref.quant.fit import round_half_away
from qwenref.quant.tensor import QTensor, can_encode, dequantize, format_module, quantize

WRITTEN = [t.name for t in ggml.TYPES.values()
           if (Path(tensor.__file__).parent / f"{t.name.lower()}.py").exists() and can_encode(t.name)]  # fmt: skip
PLAIN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SEARCHED = ["Q4_K", "Q5_K", "Q6_K"]

# ggml 0.25.3's RMS error on `sample`, as `pytest tests/test_quant_encode.py -k oracle_rms -s` prints it.
GGML_RMS: dict[tuple[str, str], float] = {}

weights = hnp.arrays(
    np.float32, (2, 256), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True), fill=st.floats(-1, 1, width=32)
)


def sample(kind: str) -> NDArray[np.float32]:
    """[256, 1024] of weights' usual size. RandomState's streams never change."""
    rng = np.random.RandomState(2)  # noqa: NPY002
    draw = {
        "gauss": lambda: rng.standard_normal((256, 1024)),
        "laplace": lambda: rng.laplace(size=(256, 1024)),
        "student-t, 3": lambda: rng.standard_t(3, (256, 1024)),
        "student-t, 1.5": lambda: rng.standard_t(1.5, (256, 1024)),
        "positive": lambda: 1 + rng.random_sample((256, 1024)),
        "tiny": lambda: rng.standard_normal((256, 1024)) * 1e-4,
    }[kind]
    return (draw() / 32).astype(np.float32)


KINDS = ("gauss", "laplace", "student-t, 3", "student-t, 1.5", "positive", "tiny")


def rms(name: str, x: NDArray[np.float32], data: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.mean(np.square(dequantize(QTensor(name, x.shape, data)).astype(np.float64) - x))))


def ours_rms(name: str, x: NDArray[np.float32]) -> float:
    return rms(name, x, quantize(x, name).data)


def test_what_can_be_written() -> None:
    assert {*PLAIN, *SEARCHED, "Q8_1", "Q8_K"} == set(WRITTEN)
    assert not can_encode("IQ2_S")
    with pytest.raises(BadInput, match="IQ2_S can be read but not written"):
        quantize(np.zeros((1, 256), np.float32), "IQ2_S")
    with pytest.raises(BadInput, match="no decoder for weight format Q9_Z"):
        can_encode("Q9_Z")


@pytest.mark.parametrize("name", PLAIN)
@given(x=weights)
def test_plain_formats_are_gguf_pys_bytes(name: str, x: NDArray[np.float32]) -> None:
    want = gguf_quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8).reshape(-1)
    np.testing.assert_array_equal(quantize(x, name).data, want)


def test_bf16_rounds_to_even_and_keeps_nans_quiet() -> None:
    bits = np.arange(0, 1 << 32, 12347, np.uint32)
    bits = np.concatenate(
        (bits, np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x3F808000, 0x3F818000], "u4"))
    )
    x = bits.view(np.float32)[:, None]
    want = gguf_quantize(x, gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(format_module("BF16").encode(x), want)


@pytest.mark.parametrize("name", PLAIN)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoded_values_are_written_without_loss_of_more_than_a_step(name: str, seed: int) -> None:
    """|x - decode(encode(x))| is at most half a step, and a whole one where a signed code has no room at its upper end."""
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
    step = reach / top + 2**-14 / 8  # a step, and the grid of subnormal halves
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
    assert ours_rms(name, once) < 0.25 * ours_rms(name, x)


def test_slabs_leave_no_seam() -> None:
    x = np.random.default_rng(1).standard_normal((1100, 256)).astype(np.float32)
    assert x.size > 2 * tensor.SLAB
    for name in WRITTEN:
        f = format_module(name)
        np.testing.assert_array_equal(quantize(x, name).data, f.encode(x.reshape(-1, f.BLOCK)).reshape(-1))
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
    place = r"\(1, 32\)" if format_module(name).BLOCK <= 32 else r"\(1, 0\)"
    with pytest.raises(BadInput, match=rf"^tensor w: the block of .* at {place} is too large for {name}$"):
        quantize(x, name, "w")


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(BadInput, match="a row of 896 values is not a whole number of Q4_K blocks of 256"):
        quantize(np.zeros((2, 896), np.float32), "Q4_K")


@given(y=hnp.arrays(np.float32, 64, elements=st.floats(-128, 128, width=32)))
def test_round_half_away_is_roundf(y: NDArray[np.float32]) -> None:
    y = np.concatenate((y, np.rint(y) + np.float32(0.5), np.array([0.49999997, -0.49999997], np.float32)))
    exact = y.astype(np.float64)
    np.testing.assert_array_equal(round_half_away(y), np.copysign(np.floor(np.abs(exact) + 0.5), exact))


@given(x=weights)
def test_activations_hold_their_own_sums(x: NDArray[np.float32]) -> None:
    k = q8_k.encode(x).view(q8_k.STRUCT)[:, 0]
    np.testing.assert_array_equal(k["bsums"], k["qs"].reshape(-1, 16, 16).astype(int).sum(axis=2))
    for encode in (q8_1.encode, q8_1.encode_activations):
        b = encode(x.reshape(-1, 32)).view(q8_1.STRUCT)[:, 0]
        d = np.abs(x.reshape(-1, 32)).max(axis=1) / 127
        np.testing.assert_array_equal(b["s"], (b["qs"].astype(np.float32).sum(axis=1) * d).astype(np.float16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SEARCHED)
def test_search_is_no_worse_than_ggml(name: str, kind: str) -> None:
    assert ours_rms(name, sample(kind)) <= GGML_RMS[name, kind]


class Ggml:
    """The C library's own quantisers, out of llama-cpp-python's wheel."""

    def __init__(self, folder: Path) -> None:
        load = [ctypes.CDLL(str(next(folder.glob(f"libggml-{n}.*"))), mode=ctypes.RTLD_GLOBAL) for n in ("base", "cpu")]
        self.base, self.cpu = load
        self.cpu.ggml_cpu_init()

    def quantize(self, x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
        out = np.zeros(x.size // format_module(name).BLOCK * format_module(name).BYTES, np.uint8)
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)]
        i64 = ctypes.c_int64
        self.base.ggml_quantize_chunk(ggml.NUMBERS[name], *pointers, i64(0), i64(len(x)), i64(x.shape[1]), None)
        return out

    def row(self, function: str, x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
        """A `quantize_row_*` of the CPU backend (which also forwards to the plain `_ref` ones)."""
        f = format_module(name)
        out = np.zeros((x.size // f.BLOCK, f.BYTES), np.uint8)
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)]
        library = self.base if function.endswith("_ref") else self.cpu
        getattr(library, function)(*pointers, ctypes.c_int64(x.size))
        return out


@pytest.fixture(scope="module")
def c_library() -> Ggml:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        pytest.skip("llama-cpp-python is not installed (make oracle)")
    return Ggml(Path(found.origin).parent / "lib")


@pytest.mark.oracle
@pytest.mark.parametrize("name", SEARCHED)
def test_oracle_rms(name: str, c_library: Ggml) -> None:
    for kind in KINDS:
        x = sample(kind)
        error, ours = rms(name, x, c_library.quantize(x, name)), ours_rms(name, x)
        print(f'    ("{name}", "{kind}"): {error:.6e},  # ours {ours:.6e}, {ours / error:.4f} of it')
        assert error == pytest.approx(GGML_RMS[name, kind], rel=1e-5)
        assert ours <= error


@pytest.mark.oracle
@pytest.mark.model
@pytest.mark.parametrize("name", SEARCHED)
def test_oracle_rms_on_real_weights(name: str, c_library: Ggml, model_path: Path) -> None:
    """Tensors of the 0.5B that are Q8_0 or F32 in its file: the values that a conversion of it would meet."""
    tensors = [t for t in gguf.GGUFReader(model_path).tensors if t.tensor_type.name == "Q8_0" and t.shape[0] % 256 == 0]
    assert tensors
    for t in tensors[:: max(1, len(tensors) // 4)]:
        shape = tuple(int(n) for n in reversed(t.shape))
        x = dequantize(QTensor("Q8_0", shape, t.data.reshape(-1)))[:512]
        error, ours = rms(name, x, c_library.quantize(x, name)), ours_rms(name, x)
        print(f"{name} {t.name}: ggml {error:.6e}, ours {ours:.6e}, {ours / error:.4f} of it")
        assert ours <= error


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [*KINDS, "ties"])
def test_oracle_activations(kind: str, c_library: Ggml) -> None:
    """The quantisers that llama.cpp runs on activations: plain C, and what this machine's build of the CPU backend has."""
    x = sample(kind) if kind in KINDS else np.rint(sample("gauss") * 640) / 2
    x[:, ::32] = 127 if kind == "ties" else x[:, ::32]  # so that the step is 1 and halves are ties
    rules: list[tuple[str, str, Callable[[NDArray[np.float32]], NDArray[np.uint8]]]] = [
        ("quantize_row_q8_0_ref", "Q8_0", q8_0.encode),
        ("quantize_row_q8_1_ref", "Q8_1", q8_1.encode),
        ("quantize_row_q8_K_ref", "Q8_K", q8_k.encode),
        ("quantize_row_q8_K", "Q8_K", q8_k.encode),
    ]
    import platform

    if platform.machine() in ("x86_64", "AMD64"):  # the rule without vector code is the plain one; on ARM it is a third
        rules += [
            ("quantize_row_q8_0", "Q8_0", q8_0.encode_activations),
            ("quantize_row_q8_1", "Q8_1", q8_1.encode_activations),
        ]
    for function, name, encode in rules:
        want = c_library.row(function, x, name)
        np.testing.assert_array_equal(encode(x.reshape(-1, format_module(name).BLOCK)), want, err_msg=function)
