"""Modules that all layers share and each of them calls, as SGLang's, vLLM's and nano-vllm's rotary_emb: kept by its
names, such a module shows one call only. By the names that all layers have for it that is the last one's; by the only
name that a module tree tells, nobody knows whose.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .places import Held, Places


def without_other_calls(places: Places, phase: int) -> list[str]:
    """Takes out of a pass what its names cannot be of. Returns what was left out and why, for people."""
    depth = len({layer for p, layer, _ in places.held if p == phase and layer is not None})
    calls: dict[str, dict[int, Mapping[int, Held]]] = {}
    for (p, layer, target), ranks in places.held.items():
        if p == phase and layer is not None and next(iter(ranks.values())).rule.shared:
            calls.setdefault(target, {})[layer] = ranks
    said = []
    for target, layers in calls.items():
        end = max(layers)
        if len(layers) == 1 < depth:
            gone, why = [end], "which of them called it is not told"
        elif len(layers) > 1 and all(_same(ranks, layers[end]) for ranks in layers.values()):
            gone, why = sorted(layers)[:-1], f"only the last one's call, layer {end}, is there"
        else:
            continue
        for layer in gone:
            places.spare += [h.array for h in places.held.pop((phase, layer, target)).values()]
        said.append(f"pass {phase}: {target} is left out: all layers share its module, and {why}")
    return said


def _same(one: Mapping[int, Held], other: Mapping[int, Held]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(h.array.raw, other[r].array.raw) for r, h in one.items())
