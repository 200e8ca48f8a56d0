"""Each stage as a formula of others, under a site's recipe: the page (engine/forward.py) again, one stage at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...engine.config import Config
from ...engine.kernels import reference
from ...quant.tensor import dequantize, take
from ..stages import Kind, of_kind
from .evidence import Evidence
from .facts import NoTokenIds, OutsideVocabulary, Unjudgeable
from .recipes import flash, ggml_flash, operations
from .recipes.facts.fused import PRODUCT
from .recipes.facts.mixing import GGML
from .recipes.matrix import FileMatrix, matrix_of
from .recipes.products import (
    Beside,
    adapted,
    in_float64,
    of_product,
    of_rows,
    operand,
    plain_product,
    product,
    summation,
)
from .recipes.recipe import Recipe
from .recipes.scaled import WHOLE
from .span import FLOAT32, Array, Span, joined

PRODUCTS, ROPE, ATTENTION = of_kind("product"), of_kind("rotation"), of_kind("scores", "mix")
WITHIN = of_kind("scores", "soft-max")  # attention in one piece holds neither


class Inputs(Protocol):
    """What a formula asks for: the stage and its rows, the recipe, and other stages' values (site.py finds them)."""

    @property
    def evidence(self) -> Evidence: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def config(self) -> Config: ...
    @property
    def phase(self) -> int: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def stage(self) -> str: ...
    @property
    def given(self) -> Mapping[str, Span]:
        """Inputs to use instead of the dump's."""

    @property
    def pos(self) -> tuple[int, ...]: ...
    @property
    def pos_T(self) -> NDArray[np.int32]: ...  # noqa: N802

    @property
    def see_T(self) -> NDArray[np.int32]: ...  # noqa: N802

    def input(self, stage: str) -> Span:
        """Another stage of this layer, at these positions; BEFORE for the residual that enters it."""

    def input_of_all(self) -> Span:
        """The only input of this stage, at every position of the phase."""

    def unrounded(self) -> Span:
        """The only input of this stage, a residual, as it was before it was stored."""

    def qkv(self, part: int) -> Span:
        """Queries and keys as they are rotated, or values (part 0, 1, 2): [T, N or K, H]."""

    def so_far(self, stage: str) -> Span:
        """Keys (k_post_rope) or values (Evidence.valued) of every position so far: [S, K, H]."""

    @property
    def beside(self) -> Beside | None:
        """Which rows of a product are wanted in float64, too, of the file's weights."""

    def matrices(self) -> list[FileMatrix]: ...
    def gain(self, name: str) -> Array: ...


def heads_of(c: Config, qkv_TE: Span, part: int) -> Span:
    """Queries, keys or values out of a row of all three: [T, N or K, H]."""
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    start, n = ((0, N), (N, K), (N + K, K))[part]
    return qkv_TE.shaped(lambda v: v[:, start * H : (start + n) * H].reshape(len(v), n, H))


def as_heads(c: Config, x: Span, part: int) -> Span:
    """The same of what may have been told apart already."""
    return x if x.mid.ndim == 3 else heads_of(c, x, part)


def linear(s: Inputs, x: Span, matrices: list[FileMatrix] | None = None, rows: slice = slice(None)) -> Span:
    """The stage's product of x [T, I], or of some of its rows, its parts side by side, rounded as the recipe has it."""
    parts = [product(s.recipe, x, m, rows, s.beside) for m in (matrices or s.matrices())]
    return operations.rounded(s.recipe, joined(parts, 1))


def embedding(s: Inputs) -> Span:
    tokens = s.evidence.tokens
    if tokens is None or max(s.pos) >= len(tokens):
        raise Unjudgeable(NoTokenIds())
    w = matrix_of(s.evidence.weights.embed)
    bad = [tokens[p] for p in s.pos if not 0 <= tokens[p] < w.shape[0]]
    if bad:
        raise Unjudgeable(OutsideVocabulary(bad[0], w.shape[0]))
    token_T = np.array([tokens[p] for p in s.pos])
    y = Span.point(operations.weight(s.recipe, dequantize(take(w.tensor, token_T))))
    return operations.rounded(s.recipe, adapted(s.recipe, y, of_rows(token_T), w.adapters, looked_up=True))


def norm(s: Inputs, x: Span, gain: Array, eps: float | Array | None = None) -> Span:
    of = s.unrounded() if s.recipe.norm == "apart" and x.mid.ndim == 2 else None  # heads are of no residual
    return operations.norm(s.recipe, x, gain, s.config.rms_norm_eps if eps is None else eps, of)


def rotated(s: Inputs, x: Span, angle_Th: Array | None = None, magnitude: float | None = None) -> Span:
    """The rotation by the model's angles and magnitude, or by others."""
    way, own = s.evidence.rotations[s.recipe.angle], s.evidence.weights.magnitude
    angle_Th = way.angle(s.pos_T) if angle_Th is None else angle_Th
    return operations.rope(s.recipe, x, angle_Th, own if magnitude is None else magnitude)


def flat(x: Span) -> Span:
    return x.shaped(lambda v: v.reshape(len(v), -1))


def inputs_of(s: Inputs) -> list[Span]:
    """The stage's inputs that are rows of the same positions; of what has heads, its own part of Q, K and V."""
    stage = s.evidence.stage(s.stage)
    found = [s.input(name) for name in stage.inputs]
    return [as_heads(s.config, x, stage.part or 0) for x in found] if stage.letters[-1] == "H" else found


def input_of(s: Inputs) -> Span:
    """The only input of a stage that has one."""
    (x,) = inputs_of(s)
    return x


def weight_of(s: Inputs) -> Array:
    """The stage's own gain or bias."""
    return s.gain(s.evidence.stage(s.stage).weight or "")


def product_of(s: Inputs) -> Span:
    if s.evidence.stage(s.stage).positions == "all":
        return linear(s, flat(input_of(s)))
    x = s.input_of_all() if s.recipe.quantiser in WHOLE else flat(input_of(s))
    return linear(s, x, rows=slice(-1, None)).shaped(lambda v: v[0])


def product_in_float64(s: Inputs, parts: Sequence[Array]) -> Array | None:
    """The product of a stage's inputs with the file's weights, as float32 numbers, without what rounding may make of
    it: half of the work, or, where its parts were made beside another, none. None where adapters are added."""
    x, matrices = flat(input_of(s)).mid, s.matrices()
    if any(m.adapters for m in matrices):
        return None
    whole = s.evidence.stage(s.stage).positions == "all"
    y = FLOAT32.round(np.concatenate(parts or [in_float64(x if whole else x[-1:], m) for m in matrices], 1))
    return y if whole else y[0]


def bias_of(s: Inputs) -> Span:
    b, (of,) = operations.weight(s.recipe, weight_of(s))[None], s.evidence.stage(s.stage).inputs
    # Inside the product, the sum may begin at the bias: each of its additions rounds a sum that is larger by as much.
    x = input_of(s)
    more: Array = np.zeros(1)
    if PRODUCT in s.recipe.fused:
        matrices = s.evidence.matrices(s.layer, of)
        more = summation(matrices[0].shape[1], 2 * np.square(b), np.zeros(1))
        if any(m.adapters for m in matrices):
            # Adapters are added to product and bias, which were stored: a rounding more, of what is without them.
            added, less = adapters_of(s, of)
            without = np.abs(x.mid + b) + np.abs(added)
            # DoRA takes the bias off again, which is rounded, and multiplies what is left with its gain less 1.
            more = more + s.recipe.result.u * (without + less * (without + np.abs(x.mid) + np.abs(added)))
    return operations.add(s.recipe, x, Span.point(b), more=more)


def adapters_of(s: Inputs, product_stage: str) -> tuple[Array, Array]:
    """What adapters add to another stage of the layer, a product: [T, O]. And the size of DoRA's gain less 1, [O]."""
    (given,), added, less = s.evidence.stage(product_stage).inputs, list[Array](), list[Array]()
    x = flat(s.input(given))
    for m in s.evidence.matrices(s.layer, product_stage):
        gains = [np.abs(a.dora.gain(a.scale) - 1) for a in m.adapters if a.dora is not None]
        # Without a gain nothing hangs on the product, and it need not be decoded again.
        y = plain_product(s.recipe, x, m) if gains else Span.point(np.zeros((len(x.mid), m.shape[0])))
        added.append(adapted(s.recipe, y, of_product(x), m.adapters).mid - y.mid)
        less.append(sum(gains, np.zeros(m.shape[0])))
    return np.concatenate(added, 1), np.concatenate(less)


def rotation_of(s: Inputs) -> Span:
    return rotated(s, input_of(s))


def mix_of(s: Inputs) -> Span:
    if s.recipe.mix == "stored" or not s.given.keys().isdisjoint(WITHIN):
        return mix(s, s.input("attn_softmax"), s.so_far(s.evidence.valued))
    q, k, v = s.input("q_post_rope"), s.so_far("k_post_rope"), s.so_far(s.evidence.valued)
    if s.recipe.mix in GGML:
        tiled = s.recipe.mix == "ggml" and len(s.evidence.rows[s.phase]) >= ggml_flash.TILE
        return ggml_flash.attention(s.recipe, q, k, v, s.see_T, tiled, s.evidence.window(s.layer))
    return flash.attention(s.recipe, q, k, v, s.see_T, s.evidence.window(s.layer))


def mix(s: Inputs, p: Span, v: Span) -> Span:
    """These probabilities times these values, as the recipe has it."""
    if s.recipe.mix == "stored":
        return operations.mix(s.recipe, p, v, s.see_T)
    return flash.weighed(s.recipe, p, v, s.see_T)


def scores_of(s: Inputs) -> Span:
    """Scores that a query sees."""
    return seen_of(s, operations.scores(s.recipe, s.input("q_post_rope"), s.so_far("k_post_rope"), s.see_T))


def seen_of(s: Inputs, y: Span) -> Span:
    """Scores (which are 0 after the query), 0 where the query does not see the key."""
    window = s.evidence.window(s.layer)
    if window > s.see_T.max(initial=0):
        return y
    unseen_TS = reference.hidden(s.see_T, y.mid.shape[2], window)
    return y.shaped(lambda v: np.where(unseen_TS, 0, v))


FORMULAS: dict[Kind, Callable[[Inputs], Span]] = {
    "look-up": embedding,
    "norm": lambda s: norm(s, input_of(s), weight_of(s)),
    "product": product_of,
    "bias": bias_of,
    "rotation": rotation_of,
    "scores": scores_of,
    "soft-max": lambda s: operations.softmax(s.recipe, input_of(s), s.see_T, s.evidence.window(s.layer)),
    "mix": mix_of,
    "activation": lambda s: operations.silu(s.recipe, input_of(s)),
    "gate": lambda s: operations.mul(s.recipe, *inputs_of(s)),
    "residual": lambda s: operations.add(s.recipe, *inputs_of(s)),
}


def formula(s: Inputs) -> Span:
    """The stage of its inputs, under the recipe. Raises Unjudgeable."""
    return FORMULAS[s.evidence.stage(s.stage).kind](s)


def codes(s: Inputs, formats: list[str]) -> int | str | None:
    """Which quantiser made the 8-bit activations: told apart only where it makes others of this input (a tie)."""
    kinds = tuple({s.recipe.operand(f): f for f in formats if s.recipe.operand(f) in ("Q8_0", "Q8_1")}.values())
    if not kinds or s.recipe.quantiser is None:
        return None
    key = (s.phase, s.layer, s.evidence.stage(s.stage).inputs, kinds, s.recipe.quantiser)
    if key not in s.evidence.codes:
        try:
            x = flat(input_of(s))
        except Unjudgeable:
            return s.recipe.quantiser
        made = [operand(s.recipe, x.mid, kind) for kind in kinds]
        told = b"".join(part.tobytes() for both in made for part in both if part is not None)
        s.evidence.codes[key] = hash(told) if x.exact else s.recipe.quantiser
    return s.evidence.codes[key]
