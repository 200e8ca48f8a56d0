"""What an engine's arithmetic costs (engine verify --cost): the tokens run again in float64, with each of its facts
alone and with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .engine.all_logits import all_logits
from .engine.evaluate import Figures, log_softmax
from .engine.kernels import Backend, Kernels, reference
from .engine.weights import Weights, parts
from .errors import BadInput
from .quant.rms import rms
from .quant.tensor import dequantize
from .trace.verify.finding import Verification
from .trace.verify.recipes import operations
from .trace.verify.recipes.facts.table import FACTS
from .trace.verify.recipes.matrix import matrix_of
from .trace.verify.recipes.products import product
from .trace.verify.recipes.recipe import FLOAT32_RECIPE, UNTOLD, Recipe
from .trace.verify.report.spent import Cost
from .trace.verify.span import FLOAT32, Array, Span

NUMBERS = ("weights", "quantiser", "requantised", "attention", "cache", "sums", "result")  # facts that change numbers
# Terms that are summed before a partial sum is rounded, as a tensor core's: the engine's own order is unknown.
STEP = 16


@dataclass(frozen=True, slots=True)
class Keys:
    """Of one layer whose keys are held in few bits: the norm of their bias; how far the cache moves them, and how much
    they differ from position to position (RMS both)."""

    layer: int
    norm: float
    moved: float
    spread: float


def costs(
    v: Verification, bound: Weights, done: Callable[[int], None] = lambda n: None
) -> tuple[list[Cost], str | None]:
    """What each fact of the engine's arithmetic costs, and all of them; and what is to be said of its keys. bound: the
    model's weights as `bind` gives them. done: told how many facts are run.

    Raises BadInput where nothing is known of the engine, nobody knows the tokens, or the model has adapters or no
    output head.
    """
    if not any(f.explained for f in v.findings) or v.recipe.name == UNTOLD:
        why = "what the dump holds is the same in any" if v.status == 0 else "no stage is explained"
        raise BadInput(f"--cost: {why}, so nothing is known of the engine's arithmetic; leave --cost away")
    if bound.lm_head is None:
        raise BadInput("--cost is told in logits, and this model has no output head; leave --cost away")
    if v.tokens is None:
        raise BadInput("--cost runs the tokens again, and the dump does not say which they are; give them by --tokens")
    if bound.adapted:
        raise BadInput("--cost knows no adapters; merge them (engine convert --lora)")
    if bad := next((t for t in v.tokens if not 0 <= t < bound.config.vocab_size), None):
        raise BadInput(f"--cost: token {bad} is outside the vocabulary of {bound.config.vocab_size}")
    w = reference.prepare(bound, "f64")
    exact_TV = log_softmax(logits(v.tokens, w, Computed(FLOAT32_RECIPE)))
    found, keys = [], None
    for n, (fact, recipe) in enumerate(facts_of(v.recipe)):
        kernels = Computed(recipe)
        found.append(cost(fact, v.tokens, exact_TV, logits(v.tokens, w, kernels)))
        if recipe.cache is not None and keys is None:
            keys = about_keys(fact, list(layers_of(bound, kernels)))
        done(n + 1)
    return found, keys


def facts_of(r: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Each fact of a recipe that changes numbers, in words, and a recipe of it alone; then all of them."""
    names = {f.field: f.words for f in FACTS}
    said = {
        "result": f"every result in {r.result.name}",
        "weights": "" if r.weights is None else f"weights and activations of products in {r.weights.name}",
        "attention": f"keys, values and their partners in {r.attention.name}",
        "sums": f"sums kept in {r.sums.name} (every {STEP} terms)",
    }
    own = [field for field in NUMBERS if getattr(r, field) != getattr(FLOAT32_RECIPE, field)]
    for field in own:
        value = getattr(r, field)
        yield said.get(field) or names[field](value, r.result), replace(FLOAT32_RECIPE, **{field: value})
    if len(own) > 1:
        yield "all of these", replace(FLOAT32_RECIPE, **{field: getattr(r, field) for field in own})


class Computed:
    """The reference backend in float64, but for the facts of a recipe. keys: what it had of each layer, without and
    with its cache."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.keys = recipe, list[tuple[Array, Array]]()
        for name in ("embed", "add", "mul", "scaled", "silu", "rope", "softmax", "rms_norm"):
            setattr(self, name, partial(self._rounded, getattr(reference, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def _rounded(self, f: Any, *args: Any) -> Array:
        y: Array = f(*args)
        return y if self.recipe.result is FLOAT32 else self.recipe.result.round(y)

    def batch(self, forward: Callable[[Kernels], Any]) -> Any:
        return forward(cast("Kernels", self))

    def linear(self, x_TI: Array, w: reference.Matrix) -> Array:
        if self.recipe.sums is not FLOAT32:
            return self._rounded(self.in_steps, x_TI, w)
        if all(getattr(self.recipe, field) is None for field in ("weights", "quantiser", "requantised")):
            return self._rounded(reference.linear, x_TI, w)
        y = [product(self.recipe, Span.point(x_TI), matrix_of(part)).mid for part in w.parts]
        return self._rounded(np.concatenate, y, 1)

    def in_steps(self, x_TI: Array, w: reference.Matrix) -> Array:
        """A product whose partial sums are rounded, of matrices and activations as the recipe has them."""
        r, held = self.recipe, []
        x_TI = x_TI if r.weights is None else r.weights.round(x_TI)
        for slab in w.slabs():
            w_OI = slab if r.weights is None else r.weights.round(slab)
            y_TO: Array = np.zeros((len(x_TI), len(w_OI)))
            for at in range(0, x_TI.shape[1], STEP):
                y_TO = r.sums.round(y_TO + x_TI[:, at : at + STEP] @ w_OI[:, at : at + STEP].T)
            held.append(y_TO)
        return np.concatenate(held, 1)

    def attn_scores(self, q_TNH: Array, k_SKH: Array, pos_T: NDArray[np.int32]) -> Array:
        r = self.recipe
        if r.cache is not None:
            self.keys.append((k_SKH, operations.kept(r, Span.point(k_SKH)).mid))
        if r.cache is None and r.attention is FLOAT32:
            return self._rounded(reference.attn_scores, q_TNH, k_SKH, pos_T)
        return operations.scores(r, Span.point(q_TNH), Span.point(k_SKH), pos_T).mid

    def attn_mix(self, probs_NTS: Array, v_SKH: Array, pos_T: NDArray[np.int32]) -> Array:
        if self.recipe.cache is None and self.recipe.attention is FLOAT32:
            return self._rounded(reference.attn_mix, probs_NTS, v_SKH, pos_T)
        return operations.mix(self.recipe, Span.point(probs_NTS), Span.point(v_SKH), pos_T).mid


def logits(ids: Sequence[int], w: Weights, kernels: Computed) -> Array:
    """[T, V]: of every position."""
    with np.errstate(all="ignore"):
        every = all_logits(ids, w, cast("Backend", kernels), "f64")
        return np.concatenate([np.array(rows, np.float64) for _, rows in every])


def cost(fact: str, ids: Sequence[int], exact_TV: Array, with_TV: Array) -> Cost:
    """exact_TV: float64's log-probabilities; with_TV: logits."""
    next_T = np.array([*ids[1:], int(exact_TV[-1].argmax())])
    figures = Figures()
    figures.add(0, with_TV, next_T, exact_TV.astype(np.float64))
    flips = []
    for flip in figures.flips:
        second, first = np.sort(exact_TV[flip.token])[-2:]
        flips.append((flip.token, float(first - second)))
    known = len(ids) - 1
    perplexity = tuple(exp(float(np.mean(nll[:known]))) for nll in (figures.base_nll, figures.nll)) if known else None
    divergence = tuple(max(d, 0.0) for d in figures.divergence)
    return Cost(fact, divergence, tuple(flips), perplexity)  # type: ignore[arg-type]


# -- keys -------------------------------------------------------------------------------------------------------------


def layers_of(w: Weights, kernels: Computed) -> Iterator[Keys]:
    """Of each layer with a key bias; nothing of a model without."""
    c = w.config
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    for i, layer in enumerate(w.layers):
        if layer.qkv_bias_E is None:
            return
        bias_E = np.concatenate([dequantize(p) for p in parts(layer.qkv_bias_E)])
        k_SKH, held_SKH = kernels.keys[len(kernels.keys) - len(w.layers) + i]  # of the last chunk: all positions
        moved, spread = rms(held_SKH - k_SKH), rms(k_SKH - k_SKH.mean(0, keepdims=True))
        yield Keys(i, float(np.linalg.norm(bias_E[N * H : (N + K) * H])), moved, spread)


def about_keys(cache: str, layers: Sequence[Keys]) -> str | None:
    """Qwen2's key bias is large in a few layers, and few bits that must hold it hold little of the rest."""
    if not layers:
        return None
    worst = sorted(layers, key=lambda one: -one.norm)[:2]
    usual = float(np.median([one.norm for one in layers]))
    norms = ", ".join(f"{one.norm:.3g} in layer {one.layer}" for one in worst)
    moved = ", ".join(f"by {one.moved:.2g} in layer {one.layer}" for one in worst)
    spread = " and ".join(f"{one.spread:.2g}" for one in worst)
    return (
        f"The keys' bias must be held, too: its norm is {usual:.3g} in the median layer, {norms}. "
        f"So the cache ({cache}) moves keys {moved}, where they differ by {spread} from position to position."
    )
