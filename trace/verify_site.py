"""Site: one stage of one layer in one phase of a dump, and what it is recomputed from.

Every stage is a formula of other stages' values. A value is taken from the dump where the dump has it; where it has not,
it is recomputed in its turn, from the nearest values that are there, and the site remembers so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.config import Config
from ..engine.weights import Weights
from ..quant.tensor import QTensor, dequantize
from . import recipes_stages as formulas
from .dump import Dump, Entry
from .recipes import Recipe
from .recipes_floats import Array, Span, joined
from .recipes_products import Matrix, operand, product
from .recipes_rope import Rotation, rotations

Key = tuple[int, int | None, str]
CHAIN = 20  # stages recomputed on the way to one: a layer has 17


class Unjudgeable(Exception):
    """A stage cannot be recomputed; the message is the reason, for people."""


@dataclass
class Bench:
    """A dump on the bench, and the model it is judged by.

    tokens: ids by absolute position, None where neither manifest nor embedding told them.
    rotations: RoPE's angles by the recipe's name, fitted to the dump. codes: see `codes` below.
    distrusted: files that a later stage was found not to have been computed from; they count as missing.
    """

    dump: Dump
    weights: Weights
    tokens: list[int] | None = None
    distrusted: set[Key] = field(default_factory=set)
    rotations: dict[str, Rotation] = field(default_factory=dict)
    codes: dict[Any, int | str] = field(default_factory=dict)
    _starts: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rotations:
            self.rotations = rotations(self.config.rope_theta, np.asarray(self.weights.inv_freq_h, np.float32))
        reached = 0
        for phase in self.phases:
            entries = [e for e in self.dump.entries if e.phase == phase]
            T = max((e.shape[e.stage.letters.index("T")] for e in entries if "T" in e.stage.letters), default=1)
            S = max((e.shape[2] for e in entries if "S" in e.stage.letters), default=reached + T)
            self._starts[phase] = (S - T, T)
            reached = S

    @property
    def config(self) -> Config:
        return self.weights.config

    @property
    def phases(self) -> list[int]:
        return sorted({e.phase for e in self.dump.entries})

    def positions(self, e: Entry) -> tuple[int, ...]:
        """Absolute positions of an entry's rows. Without a manifest: a phase follows the one before it, and a file with
        fewer rows than its phase has the last ones (llama.cpp's last layer computes only the output row)."""
        if e.positions is not None:
            return e.positions
        start, T = self._starts[e.phase]
        rows = e.shape[e.stage.letters.index("T")] if "T" in e.stage.letters else 1
        return tuple(range(start + T - rows, start + T))

    def stored(self, key: Key) -> Entry | None:
        phase, layer, name = key
        return None if key in self.distrusted else self.dump.get(name, layer, phase)

    def gain(self, layer: int | None, name: str) -> Array:
        """A norm's gain or the QKV bias, as the file decodes."""
        leaf = getattr(self.weights if layer is None else self.weights.layers[layer], name)
        parts = leaf if isinstance(leaf, tuple) else (leaf,)
        return np.concatenate([dequantize(p) for p in parts]).astype(np.float64)

    def matrices(self, layer: int | None, name: str) -> list[Matrix]:
        """The matrices of a product stage, in the order of its columns."""
        role, part = PRODUCTS[name]
        leaf = getattr(self.weights if layer is None else self.weights.layers[layer], role)
        parts: tuple[QTensor, ...] = leaf if isinstance(leaf, tuple) else (leaf,)
        return [Matrix(p) for p in (parts if part is None else parts[part : part + 1])]


@dataclass(frozen=True)
class Site:
    """A stage to recompute. pos: absolute positions of its rows. given: inputs to use instead of the dump's.

    used, recomputed: what `compute` read from the dump, and what it had to make up for (filled as it goes).
    """

    bench: Bench
    phase: int
    layer: int | None
    stage: str
    pos: tuple[int, ...]
    recipe: Recipe
    given: Mapping[str, Span] = field(default_factory=dict)
    depth: int = 0
    used: dict[Key, None] = field(default_factory=dict)
    recomputed: dict[tuple[int, int | None, str, tuple[int, ...]], Span] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.bench.config

    @property
    def pos_T(self) -> NDArray[np.int32]:
        return np.array(self.pos, np.int32)

    def under(self, recipe: Recipe) -> Site:
        return replace(self, recipe=recipe, used={}, recomputed={})

    def having(self, **given: Span) -> Site:
        """The same stage with other inputs."""
        return replace(self, given={**self.given, **given}, used={}, recomputed={})

    def at(self, stage: str, layer: int | None = -1, pos: tuple[int, ...] | None = None, phase: int | None = None) -> Site:
        """Another stage, of the same layer, positions and phase where not said. What is given holds for this layer and phase."""
        layer = self.layer if layer == -1 else layer
        phase = self.phase if phase is None else phase
        given = self.given if (layer, phase) == (self.layer, self.phase) else {}
        return replace(self, stage=stage, layer=layer, pos=self.pos if pos is None else pos, phase=phase, given=given)

    def compute(self) -> Span:
        """The stage under the recipe. Raises Unjudgeable."""
        return FORMULAS[self.stage](self)

    def value(self) -> Span:
        """The stage's own value at `pos`: the dump's, or recomputed. Raises Unjudgeable."""
        key = (self.phase, self.layer, self.stage)
        entry = self.bench.stored(key)
        if entry is not None:
            rows = {p: i for i, p in enumerate(self.bench.positions(entry))}
            if all(p in rows for p in self.pos):
                self.used[key] = None
                index = [rows[p] for p in self.pos]
                axis = entry.stage.letters.index("T") if "T" in entry.stage.letters else 0
                values = entry.values()
                return Span.point(values if index == list(range(len(rows))) else np.take(values, index, axis))
        if self.depth >= CHAIN:
            raise Unjudgeable(f"too much is missing: {self.stage} of {place(self.layer)} and all before it")
        again = (*key, self.pos)
        if again not in self.recomputed:
            self.recomputed[again] = replace(self, depth=self.depth + 1).compute()
        return self.recomputed[again]

    def input(self, stage: str) -> Span:
        """Another stage of this layer, at these positions."""
        if stage in self.given:
            return self.given[stage]
        return self.at(stage).value()

    def before(self) -> Span:
        """The residual that enters this layer (or the final norm)."""
        if "before" in self.given:
            return self.given["before"]
        if self.layer == 0:
            return self.at("embedding").value()
        last = self.config.num_hidden_layers - 1 if self.layer is None else self.layer - 1
        return self.at("post_ffn_residual", layer=last).value()

    def qkv(self, part: int) -> Span:
        """The biased queries, keys or values (part 0, 1, 2): [T, N or K, H]."""
        return heads_of(self.config, self.input("qkv_bias"), part)

    def so_far(self, stage: str) -> Span:
        """Keys (k_post_rope) or values (qkv_bias) of every position up to the last of `pos`: [S, K, H]."""
        if f"all {stage}" in self.given:
            return self.given[f"all {stage}"]
        S, rows = max(self.pos) + 1, []
        reached = 0
        for phase in (p for p in self.bench.phases if p <= self.phase):
            start, T = self.bench._starts[phase]
            pos = tuple(p for p in range(max(start, reached), min(start + T, S)))
            if pos and pos[0] == reached:
                site = self.at(stage, pos=pos, phase=phase)
                span = site.input(stage) if phase == self.phase else site.value()
                rows.append(span if stage == "k_post_rope" else heads_of(self.config, span, 2))
                reached = pos[-1] + 1
        if reached < S:
            what = "keys" if stage == "k_post_rope" else "values"
            raise Unjudgeable(f"the {what} of positions {reached} to {S - 1} are not in the dump ({stage})")
        return joined(rows, 0)

    def matrices(self) -> list[Matrix]:
        return self.bench.matrices(self.layer, self.stage)

    def gain(self, name: str) -> Array:
        return self.bench.gain(self.layer, name)


def place(layer: int | None) -> str:
    return "the whole model" if layer is None else f"layer {layer}"


def heads_of(c: Config, qkv_TE: Span, part: int) -> Span:
    """Queries, keys or values out of a row of all three: [T, N or K, H]."""
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    start, n = ((0, N), (N, K), (N + K, K))[part]
    return qkv_TE.shaped(lambda v: v[:, start * H : (start + n) * H].reshape(len(v), n, H))


def linear(s: Site, x: Span, matrices: list[Matrix] | None = None) -> Span:
    """The stage's product of x [T, I], its parts side by side, rounded as the recipe has it."""
    parts = [product(s.recipe, x, m) for m in (matrices or s.matrices())]
    return formulas.rounded(s.recipe, joined(parts, 1))


def embedding(s: Site) -> Span:
    tokens = s.bench.tokens
    if tokens is None or max(s.pos) >= len(tokens):
        raise Unjudgeable("no token ids are known: the manifest has none, and no row of the embedding matches")
    w = s.bench.weights.embed
    bad = [tokens[p] for p in s.pos if not 0 <= tokens[p] < w.shape[0]]
    if bad:
        raise Unjudgeable(f"token {bad[0]} is outside the vocabulary of {w.shape[0]}")
    rows = np.concatenate([dequantize(w, tokens[p], tokens[p] + 1) for p in s.pos])
    return formulas.rounded(s.recipe, Span.point(formulas.weight(s.recipe, rows)))


def norm(s: Site, x: Span, gain: Array, eps: float | None = None) -> Span:
    return formulas.norm(s.recipe, x, gain, s.config.rms_norm_eps if eps is None else eps)


def rotated(s: Site, x: Span, angle_Th: Array | None = None) -> Span:
    way = s.bench.rotations[s.recipe.angle]
    return formulas.rope(s.recipe, x, way.angle(s.pos_T) if angle_Th is None else angle_Th)


def flat(x: Span) -> Span:
    return x.shaped(lambda v: v.reshape(len(v), -1))


FORMULAS: dict[str, Callable[[Site], Span]] = {
    "embedding": embedding,
    "attn_norm": lambda s: norm(s, s.before(), s.gain("attn_norm_D")),
    "qkv_matmul": lambda s: linear(s, s.input(INPUTS[s.stage])),
    "qkv_bias": lambda s: formulas.add(
        s.recipe, s.input("qkv_matmul"), Span.point(formulas.weight(s.recipe, s.gain("qkv_bias_E"))[None])
    ),
    "q_post_rope": lambda s: rotated(s, s.qkv(0)),
    "k_post_rope": lambda s: rotated(s, s.qkv(1)),
    "attn_scores": lambda s: formulas.scores(s.recipe, s.input("q_post_rope"), s.so_far("k_post_rope"), s.pos_T),
    "attn_softmax": lambda s: formulas.softmax(s.recipe, s.input("attn_scores"), s.pos_T),
    "attention": lambda s: formulas.mix(s.recipe, s.input("attn_softmax"), s.so_far("qkv_bias"), s.pos_T),
    "attn_out": lambda s: linear(s, flat(s.input(INPUTS[s.stage]))),
    "post_attn_residual": lambda s: formulas.add(s.recipe, s.before(), s.input("attn_out")),
    "ffn_norm": lambda s: norm(s, s.input("post_attn_residual"), s.gain("ffn_norm_D")),
    "ffn_gate": lambda s: linear(s, s.input(INPUTS[s.stage])),
    "ffn_up": lambda s: linear(s, s.input(INPUTS[s.stage])),
    "ffn_silu": lambda s: formulas.silu(s.recipe, s.input("ffn_gate")),
    "ffn_swigl": lambda s: formulas.mul(s.recipe, s.input("ffn_silu"), s.input("ffn_up")),
    "ffn_out": lambda s: linear(s, s.input(INPUTS[s.stage])),
    "post_ffn_residual": lambda s: formulas.add(s.recipe, s.input("post_attn_residual"), s.input("ffn_out")),
    "final_norm": lambda s: norm(s, s.before(), s.gain("final_norm_D")),
    "lm_head": lambda s: linear(s, s.input(INPUTS[s.stage])).shaped(lambda v: v[0]),
}

# stage: (the field of Layer or Weights, which of its parts; None for all side by side)
PRODUCTS: dict[str, tuple[str, int | None]] = {
    "qkv_matmul": ("qkv", None),
    "attn_out": ("attn_out", None),
    "ffn_gate": ("gate_up", 0),
    "ffn_up": ("gate_up", 1),
    "ffn_out": ("ffn_down", None),
    "lm_head": ("lm_head", None),
}
INPUTS = {
    "qkv_matmul": "attn_norm",
    "attn_out": "attention",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "ffn_out": "ffn_swigl",
    "lm_head": "final_norm",
}
ATTENTION = ("attn_scores", "attention")
ROPE = ("q_post_rope", "k_post_rope")
WEIGHTED = ("embedding", "attn_norm", "qkv_bias", "ffn_norm", "final_norm")


def arithmetic(s: Site) -> tuple[Any, ...]:
    """What of the recipe this stage shows: recipes that agree in it cannot be told apart here."""
    r = s.recipe
    if s.stage in PRODUCTS:
        formats = [m.format for m in s.matrices()]
        return r.result.name, r.weights and r.weights.name, tuple(map(r.operand, formats)), codes(s, formats)
    if s.stage in ATTENTION:
        return r.result.name, r.attention.name
    if s.stage in ROPE:
        return r.result.name, r.angle
    return r.result.name, (r.weights and r.weights.name) if s.stage in WEIGHTED else None


def codes(s: Site, formats: list[str]) -> int | str | None:
    """Which quantiser made the 8-bit activations: told apart only where it makes others of this input (a tie)."""
    kinds = tuple({s.recipe.operand(f): f for f in formats if s.recipe.operand(f) in ("Q8_0", "Q8_1")}.values())
    if not kinds or s.recipe.quantiser is None:
        return None
    key = (s.phase, s.layer, INPUTS[s.stage], kinds, s.recipe.quantiser)
    if key not in s.bench.codes:
        try:
            x = flat(s.input(INPUTS[s.stage]))
        except Unjudgeable:
            return s.recipe.quantiser
        made = [operand(s.recipe, x.mid, kind) for kind in kinds]
        told = b"".join(part.tobytes() for both in made for part in both if part is not None)
        s.bench.codes[key] = hash(told) if x.exact else s.recipe.quantiser
    return s.bench.codes[key]
