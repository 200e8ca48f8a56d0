"""Against ggml's own C: the error of the searched formats, and the bytes of what it makes of activations."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qwenref.quant import ggml, q8_0, q8_1, q8_k
from qwenref.quant.fit import round_half_away
from qwenref.quant.tensor import QTensor, dequantize, format_of, quantize

SEARCHED = ["Q4_K", "Q5_K", "Q6_K"]

# ggml's RMS error on `sample` (libggml 0.25.3 of llama-cpp-python 0.3.36), as printed by
# `pytest tests/quant/test_quant_encode.py -k oracle_rms -s`.
GGML_RMS = {
    "Q4_K": {
        "gauss": 2.231311e-03, "laplace": 3.758617e-03, "student-t, 3": 5.013273e-03,
        "student-t, 1.5": 2.200997e-02, "positive": 1.053952e-03, "tiny": 7.122163e-06,
    },
    "Q5_K": {
        "gauss": 1.129548e-03, "laplace": 1.903917e-03, "student-t, 3": 2.536932e-03,
        "student-t, 1.5": 1.728041e-02, "positive": 5.275189e-04, "tiny": 7.172318e-06,
    },
    "Q6_K": {
        "gauss": 5.548195e-04, "laplace": 9.609611e-04, "student-t, 3": 1.392120e-03,
        "student-t, 1.5": 7.630857e-03, "positive": 4.727625e-04, "tiny": 3.117447e-06,
    },
}  # fmt: skip


def sample(kind: str) -> NDArray[np.float32]:
    """[256, 1024] of weights' usual size. RandomState's streams never change."""
    rng = np.random.RandomState(2)
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


@given(y=hnp.arrays(np.float32, 64, elements=st.floats(-128, 128, width=32)))
def test_round_half_away_is_roundf(y: NDArray[np.float32]) -> None:
    y = np.concatenate((y, np.rint(y) + np.float32(0.5), np.array([0.49999997, -0.49999997], np.float32)))
    exact = y.astype(np.float64)
    np.testing.assert_array_equal(round_half_away(y), np.copysign(np.floor(np.abs(exact) + 0.5), exact))


@given(x=hnp.arrays(np.float32, (2, 256), elements=st.floats(-1e3, 1e3, width=32)))
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
    assert ours_rms(name, sample(kind)) <= GGML_RMS[name][kind] * (1 + 1e-6)  # the figures have seven digits


class Ggml:
    """The C library's own quantisers, out of llama-cpp-python's wheel."""

    def __init__(self, folder: Path) -> None:
        load = [ctypes.CDLL(str(next(folder.glob(f"libggml-{n}.*"))), mode=ctypes.RTLD_GLOBAL) for n in ("base", "cpu")]
        self.base, self.cpu = load
        self.cpu.ggml_cpu_init()

    def quantize(self, x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
        out = np.zeros(x.size // format_of(name).block * format_of(name).bytes, np.uint8)
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (x, out)]
        i64 = ctypes.c_int64
        self.base.ggml_quantize_chunk(ggml.NUMBERS[name], *pointers, i64(0), i64(len(x)), i64(x.shape[1]), None)
        return out

    def row(self, function: str, x: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
        """A `quantize_row_*` of the CPU backend (which also forwards to the plain `_ref` ones)."""
        f = format_of(name)
        out = np.zeros((x.size // f.block, f.bytes), np.uint8)
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
        print(f'{name} "{kind}": {error:.6e}, ours {ours:.6e}, {ours / error:.4f} of it')
        assert error == pytest.approx(GGML_RMS[name][kind], rel=1e-5)
        assert ours <= error


@pytest.mark.oracle
@pytest.mark.model
def test_oracle_rms_on_real_weights(c_library: Ggml, model_path: Path) -> None:
    """What the 0.5B's file holds finest: its Q8_0 tensors (the embedding and some of V), in runs of 256 values."""
    tensors = [t for t in gguf.GGUFReader(model_path).tensors if t.tensor_type.name == "Q8_0"]
    assert len(tensors) > 4
    for t in tensors[:: len(tensors) // 4]:
        x = dequantize(QTensor("Q8_0", (t.data.shape[0], 896), t.data.reshape(-1)), 0, 1024).reshape(-1, 256)
        for name in SEARCHED:
            error, ours = rms(name, x, c_library.quantize(x, name)), ours_rms(name, x)
            print(f"{name} {t.name}: ggml {error:.6e}, ours {ours:.6e}, {ours / error:.4f} of it")
            assert ours <= error


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [*KINDS, "ties"])
def test_oracle_activations(kind: str, c_library: Ggml) -> None:
    """What llama.cpp runs on activations: the plain C, and what the CPU backend was built with for this machine."""
    x = sample(kind) if kind in KINDS else np.rint(sample("gauss") * 640) / 2
    x[:, ::32] = 127 if kind == "ties" else x[:, ::32]  # so that the step is 1 and halves are ties
    rules: list[tuple[str, str, Callable[[NDArray[np.float32]], NDArray[np.uint8]]]] = [
        ("quantize_row_q8_0_ref", "Q8_0", q8_0.encode),
        ("quantize_row_q8_1_ref", "Q8_1", q8_1.encode),
        ("quantize_row_q8_K_ref", "Q8_K", q8_k.encode),
        ("quantize_row_q8_K", "Q8_K", q8_k.encode),
    ]
    if platform.machine() in ("x86_64", "AMD64"):  # built for this machine, so with AVX; ARM has a rule of its own
        rules += [
            ("quantize_row_q8_0", "Q8_0", q8_0.encode_activations),
            ("quantize_row_q8_1", "Q8_1", q8_1.encode_activations),
        ]
    for function, name, encode in rules:
        want = c_library.row(function, x, name)
        np.testing.assert_array_equal(encode(x.reshape(-1, format_of(name).block)), want, err_msg=function)
