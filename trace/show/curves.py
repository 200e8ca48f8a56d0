"""A part of a stage as curves and bars: over its channels, over the layers, by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log10

import numpy as np

from ..plural import plural
from ..verify.report.charts import EDGE, HIGH, WIDE, chart, frame, label
from .figures import by_channel, by_layer, massive
from .histogram import histogram
from .view import View

POINTS = 300  # of a curve
NAMED = 6  # massive channels


def channels(v: View) -> str:
    """The largest magnitude in each channel, over the rows and heads; massive activations named."""
    most_C, is_C = by_channel(v)
    top = max(float(most_C.max()), 1e-30)

    def place(column: float, value: float) -> tuple[float, float]:
        """Six powers of ten, the largest at the top."""
        y = max(0.0, 1 + log10(max(value, 1e-300) / top) / 6)
        return EDGE + (WIDE - EDGE - 12) * column / max(1, len(v.columns) - 1), HIGH - EDGE - (HIGH - EDGE - 14) * y

    step = -(-len(v.columns) // POINTS)
    highest = [i + int(most_C[i : i + step].argmax()) for i in range(0, len(most_C), step)]
    spots = [place(i, most_C[i]) for i in highest]
    parts = [frame(), f'<path class="curve mean" d="{path(spots)}"/>', label(EDGE - 3, 15, tick(top), "end")]
    parts += [label(EDGE - 3, HIGH - EDGE + 3, tick(top * 1e-6), "end")]
    parts += [label(EDGE, HIGH - 16, str(v.columns.start)), label(WIDE - 8, HIGH - 16, str(v.columns[-1]), "end")]
    found = sorted(np.flatnonzero(is_C).tolist(), key=lambda i: -most_C[i])
    for i in found:
        x, y = place(i, most_C[i])
        tip = f"{v.column_is} {v.columns[i]}: {most_C[i]:.4g}"
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{tip}</title></circle>')
    for n, i in enumerate(found[:NAMED]):
        parts.append(label(min(place(i, 1)[0] + 5, WIDE - 40), 18 + 10 * n, str(v.columns[i])))
    count = int(massive(v.by_head).sum())
    said = f"Largest magnitude in each {v.column_is}, logarithmic. "
    said += f"Massive (above 100, and 1,000 times the median): {plural(count, 'value')}"
    return chart(said + (f", in {', '.join(str(v.columns[i]) for i in found[:NAMED])}." if found else "."), parts)


def path(spots: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)


def depth(layers: Sequence[View]) -> str:
    """RMS and largest magnitude, layer by layer; nothing where there is only one."""
    found = [(layer, log10(rms), log10(most)) for layer, rms, most in by_layer(layers)]
    if len(found) < 2:
        return ""
    last, low = max(1, found[-1][0]), min(rms for _, rms, _ in found)
    high = max(low + 1e-3, *(most for _, _, most in found))

    def place(layer: int, y: float) -> tuple[float, float]:
        return EDGE + (WIDE - EDGE - 12) * layer / last, HIGH - EDGE - (HIGH - EDGE - 14) * (y - low) / (high - low)

    rms, most = ([place(f[0], f[i]) for f in found] for i in (1, 2))
    parts = [frame(), f'<path class="curve mean" d="{path(rms)}"><title>RMS</title></path>']
    parts += [f'<path class="curve" stroke-dasharray="6 3" d="{path(most)}"><title>largest</title></path>']
    parts += [label(EDGE - 3, 15, tick(10**high), "end"), label(EDGE - 3, HIGH - EDGE + 3, tick(10**low), "end")]
    parts += [label(EDGE, HIGH - 16, "0"), label(WIDE - 8, HIGH - 16, f"{last}", "end")]
    return chart("RMS (line) and largest magnitude (dashes) by layer, logarithmic.", parts)


def spread(v: View) -> str:
    """The histogram."""
    h = histogram(v.computed())
    if h is None:
        return ""
    counts = [h.below, *h.counts, h.above]
    top, step = max(counts), (WIDE - EDGE - 12) / len(counts)
    parts = [frame()]
    for i, n in enumerate(counts):
        tall = (HIGH - EDGE - 22) * n / top
        kind = "beyond" if i in (0, len(counts) - 1) else "within"
        box = f'x="{EDGE + i * step:.1f}" y="{HIGH - EDGE - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"'
        parts.append(f'<rect class="{kind}" {box}><title>{plural(n, "value")}</title></rect>')
    parts += [label(EDGE + step, HIGH - 16, tick(h.edges[0]), "middle")]
    parts += [label(EDGE + step * (len(counts) - 1), HIGH - 16, tick(h.edges[-1]), "middle")]
    return chart("Values by size; what is outside is at both ends.", parts)


def tick(x: float) -> str:
    """A number at an axis, in five characters or so."""
    if 1e-2 <= abs(x) < 1e5 or not x:
        return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}"
    digits, exponent = f"{x:.0e}".split("e")
    return f"{digits}e{int(exponent)}"
