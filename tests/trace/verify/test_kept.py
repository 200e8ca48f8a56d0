"""What is kept of a partial dump's lacking values changes no finding, whatever is lacking and whatever is wrong."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from qwenref.trace.verify.finding import Verification
from qwenref.trace.verify.kept import Kept
from qwenref.trace.verify.verify import verify

from ...engines import changed, dump_of, with_values
from ...tiny import tiny_weights
from .test_verify_dumps import CORRUPTED, TOKENS, subset

W = tiny_weights(layers=3, formats="Q8_0")
ENGINES = ("HF float32", "HF bfloat16", "ggml, 16-bit KV")


def said(v: Verification) -> object:
    return v.recipe, [astuple(f) for f in v.findings], v.first, v.remarks


# Each of these finds something else if values of other facts are taken, too.
@pytest.mark.parametrize("seed", [105, 108, 111, 114, 120, 128])
def test_the_same_findings(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, n = np.random.default_rng(seed), seed - 100
    case = subset(dump_of(W, ENGINES[n % 3], TOKENS, steps=[5, 7], manifest=bool(n % 2)), rng)
    wrong, bad = list(CORRUPTED.values())[n % len(CORRUPTED)], case.entries[rng.integers(len(case.entries))].key
    case = changed(case, lambda e: with_values(e, wrong(e.values(), rng)) if e.key == bad else e)
    kept = said(verify(case, W))
    monkeypatch.setattr(Kept, "value", lambda self, site: site.compute())
    np.testing.assert_equal(kept, said(verify(case, W)))
