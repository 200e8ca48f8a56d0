"""What the judge's arithmetic stands on: the formats' rounding, and bounds that hold in whatever order is summed."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenref.engine.kernels import reference
from qwenref.quant import q8_0, q8_k
from qwenref.quant.tensor import QTensor
from qwenref.trace.verify.fit import fit_of
from qwenref.trace.verify.recipes import operations as stages
from qwenref.trace.verify.recipes.matrix import FileMatrix
from qwenref.trace.verify.recipes.products import SIGMAS, operand, product, summation
from qwenref.trace.verify.recipes.recipe import FLOAT32_RECIPE, RECIPES, Recipe
from qwenref.trace.verify.recipes.rope import Exact, Product, Repeated, fitted, rotations
from qwenref.trace.verify.span import BFLOAT16, FLOAT16, FLOAT32, Float, Span, plus, times

from ...tiny import tiny_tensor

f32 = np.float32
RNG = np.random.default_rng


# -- formats ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_bfloat16_rounds_to_nearest_even(bits: int) -> None:
    """Against the definition: the nearer of the two bfloat16 neighbours; of two equally near, the even one."""
    x = np.array([bits], np.uint32).view(f32)
    got = BFLOAT16.round(x.astype(np.float64))[0]
    if not np.isfinite(x[0]):
        assert np.isnan(got) if np.isnan(x[0]) else got == x[0]
        return
    down = np.array([bits & 0xFFFF0000], np.uint32)
    with np.errstate(over="ignore"):
        up = (down + np.uint32(0x10000)).view(f32).astype(np.float64)[0]
        below = down.view(f32).astype(np.float64)[0]
        high = np.copysign(2.0**128, below) if not np.isfinite(up) else up
    exact = float(x[0])
    if abs(exact - below) != abs(high - exact):
        want = below if abs(exact - below) < abs(high - exact) else up
    else:
        want = below if (bits >> 16) & 1 == 0 else up
    assert got == want


@pytest.mark.parametrize("f", [FLOAT32, FLOAT16, BFLOAT16])
def test_unit_roundoff(f: Float) -> None:
    x = RNG(0).uniform(1, 2, 20000)
    x = x if f is FLOAT32 else x.astype(f32).astype(float)  # 16 bits are rounded from float32
    error = np.abs(f.round(x) - x)
    assert error.max() <= f.u
    assert error.max() > 0.98 * f.u


def test_a_format_knows_its_own_values() -> None:
    x = RNG(0).standard_normal(100).astype(f32)
    assert FLOAT32.holds(x)
    assert not FLOAT16.holds(x)
    assert FLOAT16.holds(FLOAT16.round(x.astype(float)).astype(f32))
    assert BFLOAT16.holds(BFLOAT16.round(x.astype(float)).astype(f32))
    assert BFLOAT16.holds(np.array([np.nan, np.inf, 0, -0.0], f32))


# -- spans ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31))
def test_spans_hold_what_their_operands_may_be(seed: int) -> None:
    rng = RNG(seed)
    x, y = (Span.around(rng.standard_normal(50), rng.uniform(0, 0.5, 50)) for _ in range(2))
    a, b = (s.lo + rng.uniform(0, 1, 50) * (s.hi - s.lo) for s in (x, y))
    cases = ((plus(x, y), a + b), (times(x, y), a * b), (x.map(np.exp), np.exp(a)), (x.map(np.negative), -a))
    for made, value in cases:
        assert (value >= made.lo - 1e-12).all()
        assert (value <= made.hi + 1e-12).all()


def test_comparison_judges_every_element() -> None:
    mid = np.ones(1000)
    span = Span.around(mid, np.full(1000, 1e-6))
    got = mid.copy()
    assert fit_of(got, span).exact
    got[3] += 5e-7
    fit = fit_of(got, span)
    assert fit.good
    assert not fit.exact
    assert fit.worst == pytest.approx(0.5)
    got[700] += 2e-6
    fit = fit_of(got, span)
    assert (fit.good, fit.outside) == (False, 1)
    assert fit.left < 1e-7  # an average would not have seen it


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fits_only_what_is_not_finite(value: float) -> None:
    span = Span.around(np.ones(4), np.full(4, 0.1))
    assert fit_of(np.array([1, 1, value, 1]), span).outside == 1
    assert fit_of(np.array([1.0, 1, 1, 1]), Span.point(np.array([1, 1, value, 1]))).outside == 1
    assert fit_of(np.array([1, 1, value, 1]), Span.point(np.array([1, 1, value, 1]))).good


def test_a_bound_that_overflowed_allows_nothing() -> None:
    assert fit_of(np.array([2.0]), Span(np.ones(1), np.full(1, -np.inf), np.full(1, np.inf))).outside == 1


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [32, 256, 896, 4864])
def test_float32_sums_in_any_order_stay_inside_and_use_a_fair_part(K: int) -> None:
    """2,000 dot products, added one by one in their own order and a shuffled one."""
    rng = RNG(K)
    x, w = rng.standard_normal((2000, K)).astype(f32), rng.standard_normal((2000, K)).astype(f32)
    x[:, 7] *= 300  # the massive channel that Qwen2 has
    exact = (x.astype(np.float64) * w).sum(1)
    allowed = summation(K, np.square(exact), np.square(x.astype(np.float64) * w).sum(1))
    worst = 0.0
    for order in (np.arange(K), rng.permutation(K)):
        total = np.zeros(2000, f32)
        for k in order:
            total += x[:, k] * w[:, k]
        worst = max(worst, float((np.abs(total - exact) / allowed).max()))
    assert 0.02 < worst < 1


def test_the_tail_that_sigmas_covers() -> None:
    """A rounding error of a sum is a normal number times the size of a walk: 13 is beyond what 1e9 elements show.

    Checked where it can be: the simulated tail at 1e-4 and 1e-5 follows exp(-pi x / 2), which at 1e-9 gives 13.2.
    """
    rng = RNG(1)
    size, steps = 400_000, 64
    walks = np.zeros(size)
    square = np.zeros(size)
    for _ in range(steps):
        walks += rng.standard_normal(size) / np.sqrt(steps)
        square += np.square(walks) / steps
    x = np.abs(rng.standard_normal(size)) * np.sqrt(square)
    for chance in (1e-4, 1e-5):
        assert np.quantile(x, 1 - chance) == pytest.approx(-np.log(chance) * 2 / np.pi, rel=0.2)
    assert -np.log(1e-9) * 2 / np.pi == pytest.approx(SIGMAS, rel=0.02)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from(["Q8_0", "Q4_0", "Q4_1", "Q5_0", "F32"]))
def test_a_product_in_float32_lies_in_its_span(seed: int, fmt: str) -> None:
    rng = RNG(seed)
    q = tiny_tensor("w", fmt, (40, 96), std=0.1, mean=0.0, rng=rng)
    x = rng.standard_normal((5, 96)).astype(f32)
    y = x @ FileMatrix(q).rows(0, 40).T
    span = product(FLOAT32_RECIPE, Span.point(x), FileMatrix(q)).map(FLOAT32.round)
    assert fit_of(y, span).good
    wrong = y.copy()
    wrong[2, 17] += f32(1e-4)
    assert fit_of(wrong, span).outside == 1


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenref.trace.verify.recipes import matrix

    q = tiny_tensor("w", "Q8_0", (50, 64), std=1.0, mean=0.0, rng=RNG(0))
    x = Span.point(RNG(1).standard_normal((3, 64)))
    whole = product(FLOAT32_RECIPE, x, FileMatrix(q))
    monkeypatch.setattr(matrix, "SLAB", 64 * 7)
    sliced = product(FLOAT32_RECIPE, x, FileMatrix(q))
    np.testing.assert_allclose(whole.mid, sliced.mid, rtol=1e-14)
    np.testing.assert_allclose(whole.radius, sliced.radius, rtol=1e-5)


# -- stages -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([1, 7, 64, 896]))
def test_norms_of_float32_engines_lie_in_their_spans(seed: int, D: int) -> None:
    """Three orders: HF's, the formula as the reference has it, and one that scales before it normalises."""
    rng = RNG(seed)
    x = rng.standard_normal((4, D)).astype(f32) * f32(10.0 ** rng.integers(-3, 4))
    g = rng.standard_normal(D).astype(f32)
    span = stages.norm(FLOAT32_RECIPE, Span.point(x), g, 1e-6)
    mean = np.zeros((4, 1), f32)
    for k in range(D):
        mean += np.square(x[:, k : k + 1])
    scale = f32(1) / np.sqrt(mean / f32(D) + f32(1e-6))
    for y in (g * (x * scale), reference.rms_norm(x, g, 1e-6), (x * g) * scale):
        assert fit_of(y, span).good


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 60))
def test_softmax_of_float32_lies_in_its_span(seed: int, size: float) -> None:
    rng = RNG(seed)
    s = (rng.standard_normal((2, 5, 12)) * size).astype(f32)
    pos = np.arange(7, 12, dtype=np.int32)
    span = stages.softmax(FLOAT32_RECIPE, Span.point(s), pos)
    masked = np.where(np.arange(12) > pos[:, None], f32(-np.inf), s)
    e = np.exp(masked - masked.max(-1, keepdims=True))
    total = np.zeros((2, 5, 1), f32)
    for k in range(12):
        total += e[..., k : k + 1]
    assert fit_of(e / total, span).good
    assert not span.mid[..., -1][:, 0].any()


@given(st.floats(-200, 200, width=32))
def test_silu_of_float32_lies_in_its_span(value: float) -> None:
    x = np.array([value], f32)
    with np.errstate(over="ignore"):
        y = x / (f32(1) + np.exp(-x))
    assert not fit_of(y, stages.silu(FLOAT32_RECIPE, Span.point(x))).outside  # a value that underflows may be anything
    wrong = np.array([y[0] * 1.001 + 1e-30])
    assert fit_of(wrong, stages.silu(FLOAT32_RECIPE, Span.point(x))).outside or abs(y[0]) < 1e-27


@given(st.integers(0, 2**31))
def test_operands_held_wider_than_the_dump_has_them_stay_inside(seed: int) -> None:
    """An engine in float64 stores float32: a score of 100 moves by 4e-6, which the exponential makes relative."""
    rng = RNG(seed)
    x = rng.uniform(-75, 75, (3, 1, 40))
    for formula, exact, *pos in (
        (stages.silu, reference.silu),
        (stages.softmax, reference.softmax, np.array([39], np.int32)),
    ):
        span = formula(FLOAT32_RECIPE, Span.point(x.astype(f32)), *pos)
        assert fit_of(exact(x, *pos).astype(f32), span).good, formula.__name__


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 30000))
def test_rope_of_float32_lies_in_its_span(seed: int, position: int) -> None:
    x = RNG(seed).standard_normal((1, 3, 32)).astype(f32)
    inv_freq = (1 / 1e6 ** (np.arange(16) / 16)).astype(f32)
    pos = np.array([position], np.int32)
    angle = Product(inv_freq).angle(pos)
    cos, sin = np.cos(angle.astype(f32))[:, None], np.sin(angle.astype(f32))[:, None]
    a, b = np.split(x, 2, -1)
    y = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    assert fit_of(y, stages.rope(FLOAT32_RECIPE, Span.point(x), angle)).good
    off = stages.rope(FLOAT32_RECIPE, Span.point(x), Product(inv_freq).angle(pos + 1))
    assert fit_of(y, off).outside > 0


# -- RoPE's angles ----------------------------------------------------------------------------------------------------


def turned(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
    a, b = np.split(x.astype(np.float64), 2, -1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(f32).astype(np.float64)


@pytest.mark.parametrize("way", ["product", "repeated", "exact"])
def test_the_way_of_the_angle_is_found(way: str) -> None:
    inv_freq = (f32(1) / (1e6 ** (np.arange(32) / 32)).astype(f32)).astype(f32)
    known = rotations(1e6, inv_freq)
    pos = np.arange(300, dtype=np.int32)
    x = RNG(0).standard_normal((300, 2, 64)).astype(f32).astype(np.float64)
    found, told = fitted(known, [(x, turned(x, known[way].angle(pos)), pos)])
    assert told
    assert next(iter(found)) == way


def test_short_prompts_do_not_tell() -> None:
    inv_freq = (f32(1) / (1e6 ** (np.arange(32) / 32)).astype(f32)).astype(f32)
    known = rotations(1e6, inv_freq)
    pos = np.arange(3, dtype=np.int32)
    x = RNG(0).standard_normal((3, 2, 64)).astype(f32).astype(np.float64)
    found, told = fitted(known, [(x, turned(x, known["repeated"].angle(pos)), pos)])
    assert not told
    assert next(iter(found)) == "product"
    assert fitted(known, []) == (known, False)


def test_another_pow_is_found_frequency_by_frequency() -> None:
    """torch's pow and ours differ by one unit in the last place at H = 128: what the dump shows is taken."""
    inv_freq = (f32(1) / (1e6 ** (np.arange(64) / 64)).astype(f32)).astype(f32)
    theirs = inv_freq.copy()
    theirs[[3, 20]] = (theirs[[3, 20]].view(np.int32) + np.array([-1, 2], np.int32)).view(f32)
    pos = np.arange(400, dtype=np.int32)
    x = RNG(0).standard_normal((400, 2, 128)).astype(f32).astype(np.float64)
    found, told = fitted(rotations(1e6, inv_freq), [(x, turned(x, Product(theirs).angle(pos)), pos)])
    best = found["product"]
    assert told
    assert isinstance(best, Product)
    np.testing.assert_array_equal(best.inv_freq_h, theirs)


def test_exact_and_repeated_are_what_they_say() -> None:
    pos = np.array([0, 1, 1000], np.int32)
    exact = Exact(1e6 ** (-np.arange(32) / 32)).angle(pos)
    np.testing.assert_allclose(exact[2], 1000 * 1e6 ** (-np.arange(32) / 32), rtol=1e-15)
    repeated = Repeated(f32(1e6 ** (-1 / 32)), 32).angle(pos)
    assert repeated[2, 0] == 1000
    assert repeated[2, 1] == f32(1000) * f32(1e6 ** (-1 / 32))
    np.testing.assert_allclose(repeated, exact, rtol=1e-5)


# -- operands ---------------------------------------------------------------------------------------------------------


def recipe(quantiser: str) -> Recipe:
    return next(r for r in RECIPES if r.quantiser == quantiser)


@pytest.mark.parametrize(("fmt", "f"), [("Q4_0", q8_0), ("Q8_0", q8_0), ("Q4_K", q8_k), ("Q6_K", q8_k)])
def test_the_reference_operand_is_the_quantisers_own(fmt: str, f: ModuleType) -> None:
    x = RNG(0).standard_normal((3, 512)).astype(f32)
    values, extra = operand(recipe("reference"), x.astype(np.float64), fmt)
    want = f.decode(f.encode(x.reshape(-1, f.BLOCK))).reshape(3, 512)
    np.testing.assert_array_equal(values, want)
    assert extra is None


def test_vector_quantisers_part_from_the_reference_at_ties_only() -> None:
    """x86 and arm round ties to even; a tie is a value that is half a step: 0.5, 1.5, 2.5 of 127."""
    x = np.zeros((1, 32), f32)
    x[0, :5] = [127, 0.5, 1.5, 2.5, -2.5]
    away, _ = operand(recipe("reference"), x.astype(np.float64), "Q8_0")
    even, _ = operand(recipe("x86"), x.astype(np.float64), "Q8_0")
    arm, _ = operand(recipe("arm"), x.astype(np.float64), "Q8_0")
    assert away[0, :5].tolist() == [127, 1, 2, 3, -3]
    assert even[0, :5].tolist() == arm[0, :5].tolist() == [127, 0, 2, 2, -2]
    smooth = RNG(2).standard_normal((20, 256))
    same = [operand(recipe(q), smooth, "Q8_0")[0] for q in ("reference", "x86", "arm")]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])


def test_q8_1_meets_minima_with_its_own_sums() -> None:
    """The block sum is a half, rounded from the unrounded step: it is not the sum of the decoded values."""
    rng = RNG(0)
    q = tiny_tensor("w", "Q4_1", (8, 64), std=1.0, mean=0.0, rng=rng)
    x = rng.standard_normal((2, 64))
    values, extra = operand(recipe("reference"), x, "Q4_1")
    assert extra is not None
    assert extra.shape == (2, 2)
    w = FileMatrix(q)
    want = values @ w.rows(0, 8).astype(np.float64).T + extra @ w.minima(0, 8).T
    got = product(recipe("reference"), Span.point(x), w).mid
    np.testing.assert_allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize("fmt", ["Q4_1", "Q5_1", "Q4_K", "Q5_K", "Q2_K"])
def test_codes_and_minima_that_are_added_up_apart_lie_in_the_span(fmt: str) -> None:
    """Kernels that never form the weights: where the two sums cancel, each one's rounding is still there."""
    w = FileMatrix(tiny_tensor("w", fmt, (300, 512), std=1.0, mean=0.0, rng=RNG(4)))
    x = (1 + 0.01 * RNG(5).standard_normal((4, 512))).astype(f32)  # of one sign: both sums are large
    m = w.minima(0, 300)
    assert m is not None
    constants = np.repeat(m, 512 // m.shape[1], 1).astype(f32)
    np.testing.assert_array_equal(constants, w.constants(0, 300))
    codes = w.rows(0, 300) - constants
    one, other = np.zeros((4, 300), f32), np.zeros((4, 300), f32)
    for k in range(512):
        one += x[:, k : k + 1] * codes[:, k]
        other += x[:, k : k + 1] * constants[:, k]
    span = product(FLOAT32_RECIPE, Span.point(x), w).map(FLOAT32.round)
    assert fit_of(one + other, span).good


def test_an_uncertain_operand_widens_the_span_by_a_whole_step_near_a_tie() -> None:
    x = np.full((1, 32), 0.25)
    x[0, 0] = 127.0
    x[0, 1] = 10.5
    q = QTensor("Q8_0", (1, 32), q8_0.encode(np.ones((1, 32), f32)).reshape(-1))
    sure = product(recipe("reference"), Span.point(x), FileMatrix(q))
    unsure = product(recipe("reference"), Span.around(x, np.where(x == 10.5, 1e-4, 0)), FileMatrix(q))
    assert sure.radius[0, 0] < 1e-3
    assert unsure.radius[0, 0] > 1
