"""Formats with groups, packed: to the bit what the same matrix gives decoded to float32, on every path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwenref.engine.kernels import cpu
from qwenref.engine.kernels.cpu.formats import fp4, mxfp4, nf4
from qwenref.engine.kernels.cpu.machine.paths import PATHS
from qwenref.engine.kernels.cpu.matmul import packed
from qwenref.engine.kernels.cpu.matmul.linear import stack
from qwenref.engine.kernels.cpu.matmul.packed import FORMATS, form_of, pack
from qwenref.engine.load import open_weights
from qwenref.quant import fp4 as fp4_format
from qwenref.quant import mxfp4 as mxfp4_format
from qwenref.quant import nf4 as nf4_format
from qwenref.quant.by_column import ByColumn
from qwenref.quant.codes import SCALES, unpack
from qwenref.quant.codes import pack as pack_codes
from qwenref.quant.tensor import Assembled, QTensor, dequantize, format_of

from ...tiny import collect
from ..files.test_quantised import CASES, MODELS, assembled, golden, model, parts_of
from .test_cpu_paths import has

GROUPED = [name for name in FORMATS if "/" in name]
FIRST = (
    *("INT/4/128/F16", "INT/4/128/BF16", "MLX/4/128/BF16", "NF4/64/BF16", "F8_E4M3/128/F32", "INT_ACT/4/F16"),
    "INT/3/128/F16",
)  # whose kernels other tests need, too; and one whose codes lie across words
# The kernels of all formats, on all paths, take minutes to compile.
PARAMETERS = [name if name in FIRST else pytest.param(name, marks=pytest.mark.matrix) for name in GROUPED]


def linear(x_TI: np.ndarray, w: Any) -> np.ndarray:
    y: np.ndarray = cpu.backend().linear(x_TI, w)
    return y


def random_matrix(name: str, rows: int, K: int, spread: int = 0) -> QTensor:
    """Random codes; scales of a model's size, times powers of two up to 2^spread and down to 2^-spread; some are 0."""
    f, rng = format_of(name), np.random.default_rng(rows * K)
    blocks = rng.integers(0, 256, (rows * K // f.block, f.bytes), np.uint8).view(f.struct)[:, 0]
    for field in {"scale", "bias", "absmax"} & set(f.struct.names or ()):
        usual = 2.0**-16 if name.startswith("F8") else 0.01  # the largest codes are 448 and 57344
        values = (rng.standard_normal(len(blocks)) * usual).astype(np.float32)
        values *= np.exp2(rng.integers(-spread, spread + 1, len(blocks))).astype(np.float32)
        values[rng.random(len(blocks)) < 0.05] = 0
        values = abs(values) if field == "absmax" else values
        stored = f.struct[field]
        blocks[field] = values.view(np.uint32) >> 16 if stored == SCALES["BF16"] else values.astype(stored)
    if name.startswith("F8"):
        blocks["qs"][blocks["qs"] & 127 > 123] = 3  # no infinities, no NaN
    if "zero" in (f.struct.names or ()):
        blocks["zero"] = rng.integers(0, f.levels + 1, len(blocks))
    return QTensor(name, (rows, K), np.ascontiguousarray(blocks).view(np.uint8).reshape(-1))


def in_act_order(w: QTensor) -> tuple[QTensor, np.ndarray]:
    """INT's columns in another order, each with its own group: and what they decode to."""
    f, (O, I) = format_of(w.format), w.shape
    order = np.random.default_rng(I).permutation(I)
    b, bits, kind = w.data.view(f.struct).reshape(O, -1), int(w.format.split("/")[1]), w.format.split("/")[3]
    stream = pack_codes(unpack(b["qs"].reshape(O, -1), bits)[:, order], bits)
    columns = ByColumn(bits, kind, (O, I), lambda: stream, lambda: (b["scale"], b["zero"]), order // f.block)
    values = dequantize(w)[:, order]
    encode = format_of(kind).encode
    assert encode is not None
    return Assembled(kind, w.shape, lambda: columns.decoded(encode), "w", columns), values


def made(name: str, rows: int, K: int, group: int, spread: int = 0) -> tuple[QTensor, np.ndarray]:
    """A matrix that is packed in that form, in groups of that many columns, and its values."""
    if name.startswith("INT_ACT"):
        _, bits, kind = name.split("/")
        return in_act_order(random_matrix(f"INT/{bits}/{group}/{kind}", rows, K, spread))
    w = random_matrix(regrouped(name, group), rows, K, spread)
    return w, dequantize(w)


def decoded(values: np.ndarray) -> QTensor:
    return QTensor("F32", values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def regrouped(name: str, group: int) -> str:
    file, *sizes = name.split("/")
    sizes[name.count("/") > 2] = str(group)  # INT and MLX have bits in front of it
    return "/".join([file, *sizes])


# rows, columns, a group's columns, how far scales go
SHAPES = ((70, 256, 32, 0), (33, 896, 128, 9), (5, 416, 416, 0), (1, 320, 64, 9))


@pytest.mark.parametrize("name", PARAMETERS)
def test_products_have_the_bits_of_the_decoded_matrix(name: str) -> None:
    """For one token, few and many, of which the last tile is not full."""
    for rows, K, group, spread in SHAPES:
        w, values = made(name, rows, K, group, spread)
        form = name if name.startswith("INT_ACT") else w.format
        assert form_of(w).format.name == form
        mine, other = stack([w], "f32"), stack([decoded(values)], "f32")
        assert [p.form.format.name for p in (*mine.parts, *other.parts)] == [form, "F32"]
        x = np.random.default_rng(K).standard_normal((41, K)).astype(np.float32)
        for T in (1, 3, 41):
            assert linear(x[:T], mine).tobytes() == linear(x[:T], other).tobytes(), (
                rows,
                K,
                group,
                T,
            )


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_weight_is_the_formats(name: str) -> None:
    """A product with the unit matrix is the weights; only a zero's sign is lost in it. Scales are of all sizes."""
    K, group = 192, 64
    w, values = made(name, 64, K, group, 11)
    packed_ = stack([w], "f32")
    assert packed_.parts[0].form.format.name == (name if name.startswith("INT_ACT") else w.format)
    unit = np.eye(K, dtype=np.float32)
    np.testing.assert_array_equal(linear(unit, packed_), values.T)
    np.testing.assert_array_equal(linear(unit[77:78], packed_), values.T[77:78])


@pytest.mark.parametrize(
    "case",
    [case if case in ("gptq-4-act", "gptq-3") else pytest.param(case, marks=pytest.mark.matrix) for case in CASES],
)
def test_packed_weights_are_the_librarys(case: str) -> None:
    """What each library decodes of its own file, out of the packed matrix."""
    (w,) = assembled(*parts_of(case))[0].values()
    packed_, values = stack([w], "f32"), dequantize(golden()[0][case]["="])
    assert "/" in packed_.parts[0].form.format.name
    unit = np.eye(values.shape[1], dtype=np.float32)
    np.testing.assert_array_equal(linear(unit, packed_), values.T)
    np.testing.assert_array_equal(linear(unit[37:38], packed_), values.T[37:38])


@pytest.mark.parametrize("name", GROUPED)
def test_memory_is_the_formats(name: str) -> None:
    if name.startswith("INT_ACT"):  # of a group 8 bytes, and what a row block and the matrix have once
        w, bits = made(name, 64, 384, 128)[0], int(name.split("/")[1])
        assert pack(w).data.size == 64 * (384 * bits // 8 + 3 * 8 + 4)
        return
    w = random_matrix(regrouped(name, 128), 64, 384)
    assert pack(w).data.size == w.data.size == 64 * 3 * format_of(w.format).bytes


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("INT/4/64/F16", "scale", 8000.0), ("INT/4/64/F16", "zero", 17), ("INT/4/64/F16", "zero", -1),
        ("INT/8/64/BF16", "scale", 0x7F00), ("MLX/4/64/F16", "bias", -65504.0), ("MLX/4/64/BF16", "bias", 0x7F00),
        ("F8_E4M3/64/F32", "qs", 255), ("F8_E5M2/64/F16", "qs", 124), ("F8_E4M3/64/BF16", "scale", 1e-37),
        ("NF4/64/F16", "absmax", 1e5), ("NF4/64/BF16", "absmax", 1e-38), ("FP4/64/BF16", "absmax", 1e38),
    ],
)  # fmt: skip
def test_what_the_products_can_not_round_is_decoded(name: str, field: str, value: float) -> None:
    """Scales beyond reason: the values overflow their type, or are below its normal numbers."""
    w = random_matrix(name, 32, 128)
    blocks = w.data.copy().view(format_of(name).struct)
    blocks[field][5] = value
    w = QTensor(name, w.shape, blocks.view(np.uint8))
    assert pack(w).form.format.name == "F32"
    x = np.random.default_rng(1).standard_normal((1, 128)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        assert linear(x, stack([w], "f32")).tobytes() == linear(x, stack([decoded(dequantize(w))], "f32")).tobytes()


@pytest.mark.parametrize(("name", "field", "value"), [("INT/4/64/F16", "scale", 8000.0), ("INT/4/64/F16", "zero", 17)])
def test_so_it_is_in_act_order(name: str, field: str, value: float) -> None:
    blocks = random_matrix(name, 32, 128).data.copy().view(format_of(name).struct)
    blocks[field][5] = value
    w, values = in_act_order(QTensor(name, (32, 128), blocks.view(np.uint8)))
    assert pack(w).form.format.name == "F32"
    x = np.random.default_rng(1).standard_normal((1, 128)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        assert linear(x, stack([w], "f32")).tobytes() == linear(x, stack([decoded(values)], "f32")).tobytes()


@pytest.mark.parametrize("group", [8, 24, 40, 48, 96])
def test_whole_numbers_in_groups_of_any_size(group: int) -> None:
    """Such as are no multiple of 32 columns have the kernels of act order."""
    w = random_matrix(f"INT/4/{group}/F16", 37, 480)
    mine, other = stack([w], "f32"), stack([decoded(dequantize(w))], "f32")
    assert mine.parts[0].form.format.name == ("INT_ACT/4/F16" if group % 32 else w.format)
    x = np.random.default_rng(group).standard_normal((41, 480)).astype(np.float32)
    for T in (1, 3, 41):
        assert linear(x[:T], mine).tobytes() == linear(x[:T], other).tobytes()


@pytest.mark.parametrize("name", ["INT/7/64/F16", "INT/4/12/F16", "MLX/5/24/F16", "NF4/16/BF16", "LLM_INT8/48"])
def test_other_sizes_are_decoded(name: str) -> None:
    assert form_of(random_matrix(name, 2, 240 if "12" in name else 192)).format.name == "F32"


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_of_a_model_has_the_bits_of_the_decoded_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of the libraries; many tokens, then one."""
    path, _, tokens = model(name, tmp_path / "m")

    def stages() -> list[dict[Any, np.ndarray]]:
        return collect(open_weights(path).weights, "cpu", "f32", tokens[:-1], tokens[-1:])

    assert any("/" in form for form in cpu.formats_of(open_weights(path).weights))
    found = stages()
    monkeypatch.setattr(packed, "FILES", frozenset({"F16", "BF16", "F32"}))
    assert cpu.formats_of(open_weights(path).weights)[0] in ("F32", "F16")
    for mine, other in zip(found, stages(), strict=True):
        assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in other.items()}


def test_levels_are_said_twice_alike() -> None:
    assert np.array_equal(np.float32(nf4.LEVELS), nf4_format.LEVELS)
    assert np.array_equal(np.float32(fp4.LEVELS), fp4_format.LEVELS)
    assert np.array_equal(np.float32(mxfp4.LEVELS), mxfp4_format.LEVELS)


# The widest path's tiles lie otherwise than avx2's: of these two forms, products run there always.
SOME = f"{test_products_have_the_bits_of_the_decoded_matrix.__name__} and (INT_ACT/4/F16 or INT/4/128/F16)"


@pytest.mark.parametrize(
    ("path", "which"),
    [pytest.param("avx2", SOME, id="avx2, some")] * has("avx2")
    + [pytest.param(p, "products or weight or decoded", id=p, marks=pytest.mark.matrix) for p in PATHS if has(p)],
)
def test_on_this_path(path: str, which: str) -> None:
    """Instruction sets are chosen when the backend is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "matrix or not matrix"]
    command += ["-k", which]
    env = os.environ | {"QWENREF_SIMD": path}
    run = subprocess.run([*command, __file__], check=False, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
