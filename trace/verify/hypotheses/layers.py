"""Weights of other layers, as a loader mixes them up: all of one layer's, or the same ones in every layer.

Each stage by itself says no more than that its own weights are another layer's (products.py, norms.py, vectors.py).
What is said here is of several: review.py keeps it where all of them agree. Where the stages between are missing, it
is the only name that fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...stages import Key, of_kind
from ..arithmetic import involved
from ..evidence import Evidence
from ..formulas import PRODUCTS
from ..kept import Kept
from ..site import Site
from ..span import Span
from .hypothesis import Hypothesis, Several, entering
from .products import IN_LAYER, through

TABLE: list[Hypothesis] = []
hypothesis = entering(TABLE)

WHOLE, DISPLACED = "layer-weights", "weights-displaced"  # what review.py keeps where all agree
STAGES = (*of_kind("norm", "bias", "activation", "gate", "residual", "rotation", "mix"), *IN_LAYER)


@hypothesis(WHOLE, "the layer runs with all weights of layer {}", *STAGES)
def layer_weights(s: Site) -> Several:
    weighted = weights_in(s)
    near = dict.fromkeys((*(layer for _, layer in displaced(s)), 0, s.config.num_hidden_layers - 1))
    # A layer of which most stages are missing is run again for each that it may be: those first that loaders take.
    for layer in range(s.config.num_hidden_layers) if weighted == 1 else near:
        if layer != s.layer and weighted:
            yield str(layer), by(s, layer)


@hypothesis(DISPLACED, "each layer takes these weights {}", *STAGES)
def weights_displaced(s: Site) -> Several:
    if weights_in(s) == 1:
        for words, layer in displaced(s):
            yield words, by(s, layer)


def displaced(s: Site) -> Iterator[tuple[str, int]]:
    """Which layer's weights a layer has after a mistake that puts all of them in other places."""
    layers, own = s.config.num_hidden_layers, s.layer
    if own is None:
        return
    ordered = sorted(range(layers), key=str)
    for words, layer in (
        ("of the layer after it", own + 1),
        ("of the layer before it", own - 1),
        ("of the layer that stands in its place if names are sorted as text (1, 10, 11, 2)", ordered[own]),
        ("of the layer as which it stands if names are sorted as text (1, 10, 11, 2)", ordered.index(own)),
        ("of the layer that is as far from the end", layers - 1 - own),
    ):
        if layer != own and 0 <= layer < layers:
            yield words, layer


def weights_in(s: Site) -> int:
    """How many of the stages that this one is made of have weights of the layer. 0 of what is none of a layer, or made
    on the way to another."""
    if s.layer is None or s.stage != s.judged:
        return 0
    return weights_on(s.evidence, (s.phase, s.layer, s.stage))


def weights_on(evidence: Evidence, key: Key) -> int:
    """How many stages of the layer that have weights a stage is made of: itself, and those that the dump lacks."""
    spots = involved(evidence, key)
    return sum(layer == key[1] and stage.scope == "layer" and bool(stage.weight) for layer, stage in spots)


def by(s: Site, layer: int) -> Span:
    """The stage if its layer had another's weights."""
    weights, own = s.evidence.weights, s.layer
    assert own is not None
    layers = list(weights.layers)
    layers[own] = layers[layer]
    evidence = replace(s.evidence, weights=replace(weights, layers=type(weights.layers)(layers)), codes={}, held={})
    other = replace(s, evidence=evidence, kept=Kept(evidence), used={}, recomputed={})
    return through(other) if s.stage in PRODUCTS and weights_in(s) == 1 else other.compute()
