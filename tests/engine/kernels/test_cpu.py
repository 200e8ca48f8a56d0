"""The CPU backend against the reference in float64, with the bounds of Higham, Accuracy and Stability (2002), ch. 3."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenref.engine.config import Config
from qwenref.engine.kernels import reference
from qwenref.engine.kernels.cpu import Cpu
from qwenref.engine.kernels.cpu.elementary import exp
from qwenref.engine.kernels.cpu.machine.kernel import Kernel, at, rows_of
from qwenref.engine.kernels.cpu.machine.simd import get_i32, load_f32, set_i32, store_f32
from qwenref.engine.kernels.cpu.machine.team import run_now
from qwenref.engine.kernels.cpu.matmul.linear import LAYOUTS, Stack, stack
from qwenref.engine.kernels.cpu.matmul.packed import FORMATS, pack
from qwenref.engine.kernels.cpu.matmul.product import TILE, TILES
from qwenref.quant import q8_0, q8_1, q8_k, q16
from qwenref.quant.tensor import QTensor, dequantize, format_of

from ...tiny import SCATTERED, tiny_tensor

CPU = Cpu()
U = 2.0**-24  # unit roundoff of float32
# Formats without a packed form go through float32: one of a kind is enough.
ALL = (*(name for name in FORMATS if "/" not in name), "APRQ4")  # with groups: test_packed_groups.py
MINIMA = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
GRIDS = ("IQ3_S", "IQ3_XXS", "IQ2_XS", "IQ2_S", "IQ2_XXS", "IQ1_S", "IQ1_M")
LATER = (*GRIDS, "TQ1_0", "TQ2_0", "NVFP4")
# Formats with an int8 product.
INTEGER = (*MINIMA, "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", *GRIDS, "TQ1_0", "TQ2_0")


# The kernels of all formats take minutes to compile: of the later ones those of a kind run always.
IN_16 = {"Q4_0", "Q5_1", "Q4_K", "Q6_K", "Q8_0"}  # of the kernels of int8: blocks of 32 and 256, minima, 8 bits
ALWAYS = {("IQ3_S", "f32"), ("IQ2_XS", "f32"), ("TQ2_0", "f32"), ("IQ4_XS", "f32"), ("IQ4_XS", "int8")}


def in_turn(name: str, *precisions: str) -> tuple[pytest.MarkDecorator, ...]:
    later = name in LATER or name == "IQ4_XS" or ("int16" in precisions and name not in IN_16)
    return (pytest.mark.matrix,) if later and not {(name, p) for p in precisions} <= ALWAYS else ()


PRODUCTS = [pytest.param(name, p, marks=in_turn(name, p)) for name in ALL for p in CPU.PRECISIONS]


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


def scale_columns(name: str) -> list[int]:
    """Where in a block the halves are that must not be random bits."""
    places = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208], "MXFP4": [], "TQ1_0": [52], "TQ2_0": [64]}
    if name in places:
        return places[name]
    return [0, 2] if name in MINIMA else [0]


def random_matrix(rng: np.random.Generator, name: str, rows: int, K: int) -> QTensor:
    """Random codes under scales of a model's size."""
    f = format_of(name)
    if name in SCATTERED:
        return tiny_tensor("w", name, (rows, K), std=0.02, mean=0.0, rng=rng)
    if f.block == 1:
        blocks = f.encode(rng.standard_normal((rows * K, 1)).astype(np.float32))
    else:
        blocks = rng.integers(0, 256, (rows * K // f.block, f.bytes), dtype=np.uint8)
        for at in scale_columns(name):
            d = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
            blocks[:, at : at + 2] = d.view(np.uint8).reshape(-1, 2)
        if name == "MXFP4":
            blocks[:, 0] = rng.integers(115, 125, len(blocks))
    return QTensor(name, (rows, K), np.ascontiguousarray(blocks).reshape(-1))


def matrices(precision: str, *parts: QTensor) -> Stack:
    return stack(parts, precision)


def random_x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def as_int16(blocks: np.ndarray) -> np.ndarray:
    """docs/budgets.md: a whole number of steps, the largest value 32639 of them; step and reciprocal in float32."""
    amax = np.abs(blocks).max(1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(32639) / amax
    numbers = np.rint(blocks * np.where(np.isfinite(inverse), inverse, 0))
    return numbers.astype(np.float64) * (amax / np.float32(32639)).astype(np.float64)


def as_activations(name: str, precision: str, x_TI: np.ndarray) -> np.ndarray:
    """What x is for the product with a weight of that format, in float64: ggml's Q8_0 or Q8_K of it, the same with 16
    bits, or x itself. Q8_1's codes are Q8_0's; its sums: sums_apart.
    """
    block = format_of(name).block
    if precision == "f32" or name not in INTEGER:
        return x_TI.astype(np.float64)
    if precision == "int16":
        return as_int16(x_TI.reshape(-1, block)).reshape(x_TI.shape)
    rule, form = (q8_0.encode_activations, q8_0) if block == 32 else (q8_k.encode, q8_k)
    return form.decode(rule(x_TI.reshape(-1, block))).reshape(x_TI.shape).astype(np.float64)


def sums_apart(name: str, precision: str, x_TI: np.ndarray) -> np.ndarray:
    """[T, groups]: of each group's activations the sum that minima meet, less that of what as_activations has.

    A sum too large for a half is infinite, as in ggml.
    """
    group = format_of(name).group
    if precision != "int8" or format_of(name).activations != "Q8_1":
        return np.zeros((len(x_TI), x_TI.shape[1] // group))
    with np.errstate(over="ignore"):
        b = q8_1.encode_activations(x_TI.reshape(-1, 32)).view(q8_1.STRUCT)
    sums = b["s"].astype(np.float64) - b["d"].astype(np.float64) * b["qs"].sum(axis=-1, dtype=np.int64)
    return sums.reshape(len(x_TI), -1)


def of_one_code(w: QTensor, byte: int) -> np.ndarray:
    """[O, groups] in float64: what the code of all bits 0 or all bits 1 stands for."""
    f = format_of(w.format)
    b = w.data.copy().view(f.struct)
    for field in f.codes:
        b[field] = byte
    return dequantize(QTensor(w.format, w.shape, b.view(np.uint8)))[:, :: f.group].astype(np.float64)


@pytest.mark.parametrize(("name", "precision"), PRODUCTS)
@settings(max_examples=8)
@given(rows=st.integers(1, 100), blocks=st.integers(1, 9), T=st.integers(1, 13), seed=st.integers(0, 2**32 - 1))
def test_linear_is_a_dot_product_to_within_rounding(
    name: str, precision: str, rows: int, blocks: int, T: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    K = blocks * format_of(name).block * (31 if format_of(name).block == 1 else 1)
    w = random_matrix(rng, name, rows, K)
    x_TI = random_x(rng, T, K) * np.exp(random_x(rng, T, 1) * 3)
    got = CPU.linear(x_TI, matrices(precision, w))
    apart_TG = sums_apart(name, precision, x_TI)
    w_OI, x_TI = dequantize(w).astype(np.float64), as_activations(name, precision, x_TI)
    want = x_TI @ w_OI.T
    if apart_TG.any():
        with np.errstate(invalid="ignore"):
            want += apart_TG @ of_one_code(w, 0).T
    there = np.isfinite(want)
    assert (there == np.isfinite(got)).all() and there.all(1).sum() >= np.isfinite(apart_TG).all(1).sum()
    # Beside the dot product's own K roundings: the weight's in the reference, the rest of a minimum's, and x's sum's.
    size = np.abs(x_TI) @ np.abs(w_OI).T
    assert (np.abs(got[there] - want[there]) <= gamma(K + 4) * size[there]).all()


def take_away(w: QTensor, code: int) -> None:
    """Makes minima of what that code stands for, so that weights of it are nearly nothing, and other ones small."""
    f = format_of(w.format)
    b = w.data.view(f.struct)
    if f.block == 32:
        b["m"] = -code * b["d"]
    else:
        b["dmin"] = b["d"] * np.float16(code)
        if f.name == "Q2_K":
            b["scales"] = b["scales"] & 15 | b["scales"] << 4
        else:
            b["scales"][:, :4] = b["scales"][:, 4:8]
            b["scales"][:, 8:] = b["scales"][:, 8:] & 15 | b["scales"][:, 8:] << 4


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
@pytest.mark.parametrize("name", MINIMA)
def test_a_minimum_that_takes_the_codes_away_costs_rounding_alone(name: str, precision: str) -> None:
    """docs/budgets.md, Products with minima here: a bound of the parts' sizes, which holds however they cancel."""
    f, rng = format_of(name), np.random.default_rng(7)
    w = random_matrix(rng, name, 70, 6 * f.block)
    middle = f.levels // 2
    b = w.data.view(f.struct)
    b["qs"] = {4: 0xAA, 16: 0x88, 32: 0x00}[f.levels]  # the middle code for all, but for one byte of a block
    if f.high:
        b[f.high] = 0xFF
    b["qs"][:, 5] = rng.integers(0, 256, len(b))
    take_away(w, middle)
    x_TI = random_x(rng, 41, w.shape[1]) + 1
    got = CPU.linear(x_TI, matrices(precision, w))
    assert CPU.linear(x_TI[:1], matrices(precision, w)).tobytes() == got[:1].tobytes()
    apart_TG, used_TI = sums_apart(name, precision, x_TI), as_activations(name, precision, x_TI)
    least_OG, most_OG = of_one_code(w, 0), of_one_code(w, 255)
    want = used_TI @ dequantize(w).astype(np.float64).T + apart_TG @ least_OG.T

    groups, blocks = w.shape[1] // f.group, w.shape[1] // f.block
    roundings = {
        "f32": 2 * groups + f.group + 2,
        "int8": 2 * blocks if f.block == 32 else blocks + 3,
        "int16": 2 * blocks + 2 if f.block == 32 else blocks + 4,
    }[precision]
    steps = np.abs(x_TI).max() / 32639 * 256 if precision == "int16" else 0  # both halves may be larger than x
    size_TG = (np.abs(used_TI) + steps).reshape(len(x_TI), groups, -1).sum(axis=2) + np.abs(apart_TG)
    size_OG = np.abs(most_OG - least_OG) * f.levels / (f.levels - 1) + np.abs(least_OG)
    assert (np.abs(got - want) <= gamma(roundings + 3) * (size_TG @ size_OG.T)).all()  # 3: the reference's decoding
    assert np.abs(want).max() < 0.3 * (size_TG @ size_OG.T).max()  # they do cancel


@pytest.mark.parametrize(("name", "precision"), PRODUCTS)
@settings(max_examples=5)
@given(rows=st.integers(1, 100), T=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_linear_gives_equal_bits_however_tokens_are_grouped(
    name: str, precision: str, rows: int, T: int, cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    K = 5 * max(format_of(name).block, 13)
    w = matrices(precision, random_matrix(rng, name, rows, K), random_matrix(rng, name, 40, K))
    x_TI = random_x(rng, T, K)
    whole = CPU.linear(x_TI, w)
    cut = min(cut, T)
    parts = [CPU.linear(x, w) for x in (x_TI[:cut], x_TI[cut:]) if len(x)]
    one_by_one = [CPU.linear(x_TI[t : t + 1], w) for t in range(T)]
    assert whole.tobytes() == np.concatenate(parts).tobytes() == np.concatenate(one_by_one).tobytes()


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
def test_more_tokens_and_rows_than_one_panel_serves_have_the_bits_of_few(precision: str) -> None:
    """Two pieces of columns, several chunks of row blocks, the last one cut off, and more tiles than wait at once."""
    rng = np.random.default_rng(8)
    w = matrices(precision, random_matrix(rng, "Q4_K", 20 * 32 + 21, 512))
    x_TI = random_x(rng, TILES * TILE + 5, 512)
    got = CPU.linear(x_TI, w)
    for start in (0, 40, len(x_TI) - 8):
        assert got[start : start + 8].tobytes() == CPU.linear(x_TI[start : start + 8], w).tobytes()


def laid_out(name: str, x_TI: np.ndarray) -> Callable[[int, int, type], np.ndarray]:
    """x laid out for a product, read back: part(start, count, dtype) has [T, count] of the numbers that lie
    [count, tile] in every tile, `start` bytes for each of the tile's tokens behind its begin. T counts halves.
    """
    (T, K), layout = x_TI.shape, LAYOUTS[name]
    tile = layout.halves if T == 1 else layout.widths[2]
    tiles, size = -(-T * layout.halves // tile), layout.tile_size(K, tile)
    got = np.empty((tiles, size), np.uint8)
    run_now(layout.kernel.job(tiles, 1, *rows_of(x_TI), T, K, tile, at(got), size))

    def part(start: int, count: int, dtype: type) -> np.ndarray:
        of_tiles = np.ascontiguousarray(got[:, start * tile : (start + 4 * count) * tile]).view(dtype)
        return of_tiles.reshape(tiles, count, tile).transpose(0, 2, 1).reshape(-1, count)[: T * layout.halves]

    return part


@pytest.mark.parametrize("name", ["Q8_0", "Q8_1", "Q8_K"])
@settings(max_examples=20, deadline=None)
@given(
    T=st.integers(1, 9),
    blocks=st.integers(1, 3),
    scale=st.sampled_from([1e-38, 1e-7, 1, 3e4, 1e30]),
    seed=st.integers(0, 99),
)
def test_activations_are_ggmls_to_the_bit(name: str, T: int, blocks: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    form = {"Q8_0": q8_0, "Q8_1": q8_1, "Q8_K": q8_k}[name]
    block = form.BLOCK
    x_TI = rng.standard_normal((T, blocks * block)).astype(np.float32)
    x_TI[rng.random(x_TI.shape) < 0.3] = 0
    if seed % 3 == 0:
        x_TI = np.round(x_TI * 40) / 2  # many halves: ties, and extremes of both signs in one block
    if seed % 5 == 0:
        x_TI[0, :block] = 0
    x_TI *= np.float32(scale)
    with np.errstate(over="ignore"):  # a step too large for a half is infinite
        want = (form.encode_activations if block == 32 else q8_k.encode)(x_TI.reshape(-1, block))
    want = want.view(form.STRUCT).reshape(T, blocks)

    K, part = x_TI.shape[1], laid_out(name, x_TI)
    codes = np.ascontiguousarray(part(0, K // 4, np.int32)).view(np.int8)
    assert (codes == want["qs"].reshape(T, K)).all()
    assert part(K, blocks, np.float32).tobytes() == want["d"].astype(np.float32).tobytes()
    of_32 = codes.reshape(T, -1, 32).sum(axis=2)
    if name == "Q8_1":
        assert part(K + 4 * blocks, K // 32, np.float32).tobytes() == want["s"].astype(np.float32).tobytes()
    elif block == 32:
        assert (part(K + 4 * blocks, K // 32, np.int32) == of_32).all()
    else:

        def sums(start: int, count: int) -> np.ndarray:
            """Of four numbers 0 and 2 are one word, 1 and 3 the next."""
            words = np.ascontiguousarray(part(start, count // 2, np.int32)).view(np.int16)
            return words.reshape(T, -1, 2, 2).swapaxes(2, 3).reshape(T, -1)

        assert (sums(K + 4 * blocks, K // 16) == -want["bsums"].reshape(T, -1)).all()
        assert (sums(K + 4 * (blocks + K // 32), K // 32) == -of_32).all()


@pytest.mark.parametrize("block", [32, 256])
@settings(max_examples=20, deadline=None)
@given(
    T=st.integers(1, 9),
    blocks=st.integers(1, 3),
    scale=st.sampled_from([1e-42, 1e-38, 1e-7, 1, 3e4, 1e30]),
    seed=st.integers(0, 99),
)
def test_activations_of_16_bits_are_two_signed_bytes(block: int, T: int, blocks: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_TI = rng.standard_normal((T, blocks * block)).astype(np.float32)
    x_TI[rng.random(x_TI.shape) < 0.3] = 0
    if seed % 5 == 0:
        x_TI[0, :block] = 0
    x_TI *= np.float32(scale)
    x = x_TI.reshape(-1, block)
    want = as_int16(x)
    assert (q16.rounded(x) == want).all()

    K, of_halves = x_TI.shape[1], laid_out("Q16_0" if block == 32 else "Q16_K", x_TI)

    def part(start: int, count: int, dtype: type) -> np.ndarray:
        """[T, 2, count]: of the high halves and of the low ones."""
        return of_halves(start, count, dtype).reshape(T, 2, count)

    halves = np.ascontiguousarray(part(0, K // 4, np.int32)).view(np.int8).astype(np.int64)
    steps = part(K, K // block, np.float32).astype(np.float64)
    assert (steps[:, 0] == 256 * steps[:, 1]).all() or scale == 1e30
    values = (halves[:, 0] * 256 + halves[:, 1]).reshape(T, -1, block) * steps[:, 1, :, None]
    assert (values.reshape(want.shape) == want).all()
    of_32 = halves.reshape(T, 2, -1, 32).sum(axis=3)
    if block == 32:
        assert (part(K + K // block * 4, K // 32, np.int32) == of_32).all()


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_turn(name, "int8", "int16")) for name in INTEGER])
def test_the_noise_of_rounded_activations_is_the_predicted_one(name: str) -> None:
    """docs/budgets.md: a variance of sum w^2 d^2 / 12 for a step d; int16's steps are 257 times smaller than int8's."""
    rng = np.random.default_rng(5)
    block = format_of(name).block
    w, x_TI = random_matrix(rng, name, 64, 2048), random_x(rng, 30, 2048)
    w_OI = dequantize(w).astype(np.float64)
    amax = np.abs(x_TI.reshape(30, -1, block)).max(2).astype(np.float64)
    exact = x_TI.astype(np.float64) @ w_OI.T
    for precision, most in (("int8", 127), ("int16", 32639)):
        noise = CPU.linear(x_TI, matrices(precision, w)) - exact
        variance = np.repeat((amax / most) ** 2 / 12, block, axis=1) @ np.square(w_OI).T
        assert 0.9 < np.sqrt(np.mean(noise**2) / np.mean(variance)) < 1.1, precision


@pytest.mark.parametrize("name", [pytest.param(name, marks=in_turn(name, "f32")) for name in LATER])
def test_every_weight_is_the_formats(name: str) -> None:
    """A product with the unit matrix is the weights, to the bit but for a zero's sign: of all rows and scales."""
    w = random_matrix(np.random.default_rng(11), name, 320, 512)
    packed, unit, want = matrices("f32", w), np.eye(512, dtype=np.float32), dequantize(w)
    assert packed.parts[0].form.format.name == name and np.isfinite(want).all()
    np.testing.assert_array_equal(CPU.linear(unit, packed), want.T)
    for T in (1, 8):
        np.testing.assert_array_equal(CPU.linear(unit[300 : 300 + T], packed), want.T[300 : 300 + T])


@pytest.mark.parametrize("name", LATER)
def test_memory_is_the_files(name: str) -> None:
    """To within a word a block: of the signs that a file leaves out, for their number is even."""
    w = random_matrix(np.random.default_rng(3), name, 64, 512)
    packed = pack(w)
    assert packed.data.size == w.data.size + packed.form.extra * 64 * 512 // 256 * 4 < 1.07 * w.data.size


@pytest.mark.parametrize("T", [1, 41])
def test_every_power_of_mxfp4_is_its_own(T: int) -> None:
    """All 256, of which two are below a float32's normal numbers, to the bit."""
    blocks = np.full((256, 17), 0x21, np.uint8)
    blocks[:, 0] = np.arange(256)
    w = QTensor("MXFP4", (256, 32), blocks.reshape(-1))
    unit = np.eye(T, 32, dtype=np.float32)
    assert CPU.linear(unit, matrices("f32", w)).tobytes() == np.pad(dequantize(w).T, ((0, 9), (0, 0)))[:T].tobytes()


def _count(first, last, counts):
    for i in range(first, last):
        set_i32(counts + 4 * i, get_i32(counts + 4 * i) + 1)


def _add_up(first, last, counts, sums, T, per):
    """Items of `per` rows each."""
    for t in range(first * per, min(last * per, T)):
        set_i32(sums + 4 * t, get_i32(sums + 4 * t) + 10 * get_i32(counts + 4 * t))


COUNT, ADD_UP = Kernel(_count), Kernel(_add_up)


@pytest.mark.parametrize("T", [1, 2, 5, 6, 7, 64, 1001])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("shrink", [False, True])
def test_every_item_has_its_turn_once(T: int, chunk: int, shrink: bool) -> None:
    """Alone; then behind a job that it is joined to, row by row: what that wrote is there."""
    counts, sums = np.zeros((2, T), np.int32), np.zeros((2, T), np.int32)
    alone = COUNT.job(T, chunk, at(counts[0]), shrink=shrink)
    joined = COUNT.job(T, chunk, at(counts[1]), rows=T)
    tiles = ADD_UP.job(-(-T // 6), 1, at(counts[1]), at(sums[0]), T, 6, rows=T, rows_per_item=6)
    last = ADD_UP.job(T, chunk, at(counts[1]), at(sums[1]), T, 1, rows=T)
    run_now(alone, joined, tiles, last)
    assert (counts == 1).all() and (sums == 10).all()


CONFIGS = st.builds(
    lambda K, G, half: Config("qwen2", 8, 2, K * G, K, 2 * half, 8, 8, 4096, 1e6, 1e-6, True),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([1, 4, 16, 32, 37, 64]),
)


def attend(k, c: Config, precision: str, q, keys, values, chunks) -> list:
    """Scores, probabilities and mixtures of the positions, fed in chunks."""
    cache, out, start = k.new_cache(c, len(q), precision), [], 0
    for T in chunks:
        part = slice(start, start + T)
        pos_T, _ = k.positions(cache, T)
        k_SKH, v_SKH = k.append(cache, 1, keys[part], values[part])
        scores_NTS = k.attn_scores(q[part], k_SKH, pos_T)
        probs_NTS = k.softmax(scores_NTS, pos_T)
        out.append((scores_NTS, probs_NTS, k.attn_mix(probs_NTS, v_SKH, pos_T)))
        k.advance(cache, T)
        start += T
    return out


@settings(max_examples=25)
@given(c=CONFIGS, S=st.integers(1, 100), cuts=st.sets(st.integers(1, 99), max_size=5), seed=st.integers(0, 2**32 - 1))
def test_attention(c: Config, S: int, cuts: set[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    q, keys, values = random_x(rng, S, N, H), random_x(rng, S, K, H), random_x(rng, S, K, H)
    ((scores, probs, mix),) = attend(CPU, c, "f32", q, keys, values, [S])
    wide = [v.astype(np.float64) for v in (q, keys, values)]

    magnitudes = [np.abs(v) for v in wide]
    ((want, _, _),) = attend(reference, c, "f64", *wide, [S])
    ((size, _, _),) = attend(reference, c, "f64", *magnitudes, [S])
    assert (np.abs(scores - want) <= gamma(H + 3) * size).all()

    # From here each stage is judged on the backend's own input, so that its own rounding alone is bounded.
    pos_S = np.arange(S, dtype=np.int32)
    want = reference.softmax(scores.astype(np.float64), pos_S)
    spread = (
        np.abs(scores).max() * 2 + 4
    )  # the difference to the maximum rounds by u times its size; exp makes that relative
    assert (np.abs(probs - want) <= (gamma(S + 8) + spread * U) * want + 2.0**-126).all()

    want = reference.attn_mix(probs.astype(np.float64), wide[2], pos_S)
    size = reference.attn_mix(probs.astype(np.float64), magnitudes[2], pos_S)
    assert (np.abs(mix - want) <= gamma(S + 2) * size).all()

    bounds = sorted({0, S, *(x for x in cuts if x < S)})
    chunks = [b - a for a, b in pairwise(bounds)]
    parts = attend(CPU, c, "f32", q, keys, values, chunks)
    assert np.concatenate([p[2] for p in parts]).tobytes() == mix.tobytes()
    for start, (s, p, _) in zip(bounds, parts, strict=False):
        T, seen = s.shape[1:]
        assert s.tobytes() == scores[:, start : start + T, :seen].tobytes()
        assert p.tobytes() == probs[:, start : start + T, :seen].tobytes()


@settings(max_examples=25)
@given(T=st.integers(1, 9), D=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_rows(T: int, D: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    both = random_x(rng, T, 2 * D) * 4
    x_TD, y_TD, gain_D = both[:, :D], both[:, D:], random_x(rng, D)  # views with gaps between their rows
    wide = x_TD.astype(np.float64)

    assert (CPU.add(x_TD, y_TD) == x_TD + y_TD).all()
    assert (CPU.add(x_TD, gain_D) == x_TD + gain_D).all()
    assert (CPU.mul(x_TD, y_TD) == x_TD * y_TD).all()
    assert (CPU.scaled(x_TD, 1 / 3) == x_TD * np.float32(1 / 3)).all()

    want = reference.rms_norm(wide, gain_D.astype(np.float64), 1e-6)
    assert (np.abs(CPU.rms_norm(x_TD, gain_D, 1e-6) - want) <= gamma(D / 2 + 6) * np.abs(want)).all()

    want = reference.silu(wide)
    assert (np.abs(CPU.silu(x_TD) - want) <= gamma(5) * np.abs(want) + 2.0**-126).all()


@settings(max_examples=25)
@given(
    T=st.integers(1, 5),
    heads=st.integers(1, 5),
    half=st.sampled_from([1, 5, 32, 64]),
    start=st.integers(0, 2**20 - 8) | st.integers(0, 3000),
    seed=st.integers(0, 2**32 - 1),
)
def test_rope(T: int, heads: int, half: int, start: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_TNH = random_x(rng, T, heads * 2 * half + 7)[:, : heads * 2 * half].reshape(T, heads, 2 * half)
    pos_T = np.arange(start, start + T, dtype=np.int32)
    inv_freq_h = (1e6 ** (-np.arange(half) / half)).astype(np.float32)
    want = reference.rope(x_TNH.astype(np.float64), pos_T, inv_freq_h)
    size = np.tile(np.hypot(*np.split(np.abs(x_TNH.astype(np.float64)), 2, axis=-1)), 2)
    assert (np.abs(CPU.rope(x_TNH, pos_T, inv_freq_h) - want) <= gamma(4) * size).all()


def _exp(first, last, x, y):
    for i in range(first, last):
        store_f32(y + 128 * i, exp(load_f32(x + 128 * i)))


EXP = Kernel(_exp)


def test_exp_is_within_one_unit_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-110, 95, 200_001), np.linspace(-1, 1, 100_001)]).astype(np.float32)
    x = np.concatenate([x, np.float32([0, -0.0, np.inf, -np.inf, np.nan, 88.722839, -103.97, 1e30, -1e30])])
    x = x[: len(x) // 32 * 32] if len(x) % 32 == 0 else np.concatenate([x, np.zeros(-len(x) % 32, np.float32)])
    got = np.empty_like(x)
    run_now(EXP.job(len(x) // 32, 64, x.ctypes.data, got.ctypes.data))
    with np.errstate(over="ignore"):
        want = np.exp(x.astype(np.float64))
        unit = np.spacing(np.minimum(want, 3e38).astype(np.float32))
    finite = want < 3.4028234e38
    assert (np.abs(got[finite] - want[finite]) <= unit[finite]).all()
    assert (got[want > 3.4028236e38] == np.inf).all()
    assert np.isnan(got[np.isnan(x)]).all()
