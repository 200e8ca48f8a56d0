"""Large stages are computed some rows at a time: every bit is as it was, and memory is bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwenref.trace.verify import span
from qwenref.trace.verify.report.plain import as_json
from qwenref.trace.verify.span import Span, by_rows
from qwenref.trace.verify.verify import verify

from ...engines import Run, changed, dump_of
from ...thinned import thinned
from ...tiny import tiny_weights

W = tiny_weights(layers=1, formats="Q8_0")
TOKENS = np.random.default_rng(6).integers(0, 259, 23).tolist()
HIDDEN = ("ffn_gate", "ffn_up", "ffn_silu", "attn_scores", "attn_softmax")


def judged(engine: str, lacking: tuple[str, ...]) -> dict[str, Any]:
    def wrong(run: Run, y: np.ndarray) -> np.ndarray:
        return y * np.float32(1.01)

    dump = dump_of(W, engine, TOKENS, mistakes={("ffn_out", 0): wrong})
    return as_json(verify(changed(dump, lambda e: None if e.stage.name in lacking else e), W))


EVERY = [(engine, lacking) for engine in ("HF bfloat16", "HF float32", "ggml, 16-bit KV") for lacking in (HIDDEN, ())]


@pytest.mark.parametrize(("engine", "lacking"), thinned(EVERY, lambda case: f"{case[0]}-{len(case[1])} lacking", 5))
def test_findings_are_the_same(engine: str, lacking: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(engine, lacking)
    assert "unexplained" in whole["counts"]
    monkeypatch.setattr(span, "PIECE", 3 * 96)  # three rows of the largest stage
    assert judged(engine, lacking) == whole


def test_pieces_of_which_some_are_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span, "PIECE", 8)
    x, row = Span.point(np.arange(40.0).reshape(10, 4)), Span.point(np.ones((1, 4)))

    def f(a: Span, b: Span) -> Span:
        return Span.point(a.mid + b.mid) if a.mid[0, 0] < 16 else Span.around(a.mid + b.mid, np.ones_like(a.mid))

    y = by_rows(f, x, row)
    assert np.array_equal(y.mid, x.mid + 1)
    assert np.array_equal(y.radius, np.repeat(np.arange(10) >= 4, 4).reshape(10, 4))
    assert by_rows(lambda a: Span.point(2 * a.mid), x).exact


def test_what_is_made_on_the_way_is_as_large_as_a_piece() -> None:
    """tracemalloc sees NumPy's arrays: beside the three ends of the result, an activation of 32 MiB takes little."""
    import tracemalloc

    from qwenref.trace.verify.recipes.operations import mul, silu
    from qwenref.trace.verify.recipes.recipe import Recipe

    x = Span.point(np.random.default_rng(0).standard_normal((64, 1 << 16)))
    for f in (lambda: silu(Recipe(), x), lambda: mul(Recipe(), x, x)):
        tracemalloc.start()
        try:
            y = f()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 6.5 * y.mid.nbytes, peak / y.mid.nbytes
