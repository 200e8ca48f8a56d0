"""A part of a stage as one PNG: what the page draws, with axes, units and a title. Drawn by Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..plural import plural
from ..stages import of_kind
from .attention import HEADS, KEYS
from .caption import sizes, title
from .curves import NAMED
from .drawing import drawn, headed, plain
from .figures import by_channel, by_layer, massive
from .guess import Guess
from .histogram import histogram
from .names import Names
from .view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 4  # maps side by side
WRITTEN = 16  # keys of a single map whose values are written into the cells
POSITIONS = 24  # columns of the lens
LONGEST = 14  # characters of a token
COLOUR, STRONG = "#0f766e", "#c81e3a"  # as on the pages


def stage_picture(source: str, v: View, layers: Sequence[View], names: Names) -> bytes:
    """A stage of one layer, as `page.stage_page` has it. The bytes of a PNG. Raises BadInput without Matplotlib."""
    if "S" in v.entry.stage.letters:
        return drawn(lambda f: attention(f, source, v, names))
    return drawn(lambda f: values(f, source, v, layers, names))


def layers_picture(source: str, layers: Sequence[View], names: Names) -> bytes:
    """A stage of several layers: norms and largest magnitudes by depth."""

    def draw(f: Figure) -> None:
        f.set_size_inches(8, 5)
        headed(f, title(layers[0].entry, None), source, sizes(layers[0], names))
        depth(f.subplots(), layers)

    return drawn(draw)


def lens_picture(source: str, positions: Sequence[Sequence[Guess]], v: View, names: Names) -> bytes:
    """What each layer says: at several positions the likeliest token of each, at one position its likeliest tokens."""
    return drawn(lambda f: lens(f, source, positions, v, names))


# ---- attention


def attention(f: Figure, source: str, v: View, names: Names) -> None:
    """A map for each head: queries down, keys across. Probabilities share a scale of colours."""
    rows, columns = v.rows[-KEYS:], v.columns[-KEYS:]
    heads = (v.heads or range(1))[:HEADS]
    queries = [v.positions[r] for r in rows]
    said = {p: plain(names.at(p) or str(p), LONGEST) for p in {*columns, *queries}}
    probable = v.entry.stage.name in of_kind("soft-max")
    down = sized(f, len(heads), len(rows), len(columns), 0.08 * max(map(len, said.values())), not probable)
    cut = [f"the last {len(rows)} queries and {len(columns)} keys of what was chosen"]
    cut = cut if len(rows) < len(v.rows) or len(columns) < len(v.columns) else []
    cut += [f"the first {len(heads)} heads of {len(v.heads or (0,))}"] if len(heads) < len(v.heads or (0,)) else []
    headed(f, title(v.entry, v.entry.layer), source, sizes(v, names), *cut)
    maps_NRC = v.by_head[: len(heads), rows.start - v.rows.start :, columns.start - v.columns.start :]
    future_RC = np.array(columns)[None, :] > np.array(queries)[:, None]
    maps_NRC = np.where(future_RC | ~np.isfinite(maps_NRC), np.nan, maps_NRC.astype(np.float64))
    every: NDArray[Any] = f.subplots(down, -(-len(heads) // down), squeeze=False)
    shown: list[Axes] = every.flat[: len(heads)].tolist()
    unit = "probability" if probable else "score before the soft-max, no unit"
    for axes, head, map_RC in zip(shown, heads, maps_NRC, strict=True):
        some = map_RC[~np.isnan(map_RC)]
        low, high = (0.0, 1.0) if probable or not some.size else (float(some.min()), float(some.max()))
        image = axes.imshow(map_RC, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="equal")
        axes.set_title(f"head {head}", fontsize=9)
        axes.set_xlabel("key", fontsize=8)
        axes.set_ylabel("query", fontsize=8)
        axes.set_xticks(range(len(columns)), [said[c] for c in columns], rotation=90, fontsize=7)
        axes.set_yticks(range(len(rows)), [said[q] for q in queries], fontsize=7)
        if written(len(heads), len(columns)):
            write_cells(axes, map_RC, (low + high) / 2)
        if not probable:
            f.colorbar(image, ax=axes, label=unit, shrink=0.8)
    for axes in every.flat[len(heads) :]:
        axes.remove()
    if probable:
        f.colorbar(image, ax=shown, label=unit, shrink=0.8 if down == 1 else 0.5)


def sized(f: Figure, heads: int, rows: int, columns: int, names_inches: float, barred: bool) -> int:
    """Gives the figure room for its maps, and returns in how many lines they stand. barred: each has its own scale."""
    cell = 0.5 if written(heads, columns) else 0.24 if columns <= KEYS // 2 else 0.18
    across = min(ACROSS, heads)
    down = -(-heads // across)
    wide = across * (cell * columns + names_inches + 0.6 + barred) + 1.2
    f.set_size_inches(max(6.0, wide), max(3.5, down * (cell * rows + names_inches + 0.9) + 1.2))
    return down


def written(heads: int, columns: int) -> bool:
    return heads == 1 and columns <= WRITTEN


def write_cells(axes: Axes, map_RC: NDArray[np.float64], half: float) -> None:
    """Each value in its cell, light on what is dark."""
    for (y, x), value in np.ndenumerate(map_RC):
        if not np.isnan(value):
            ink = "white" if value < half else "black"
            axes.text(x, y, f"{value:.2g}", ha="center", va="center", fontsize=7, color=ink)


# ---- channels, layers, sizes


def values(f: Figure, source: str, v: View, layers: Sequence[View], names: Names) -> None:
    f.set_size_inches(9, 8)
    headed(f, title(v.entry, v.entry.layer), source, sizes(v, names))
    lower = "layers" if len(by_layer(layers)) > 1 else "spread"
    axes = f.subplot_mosaic([["channels", "channels"], [lower, "spread"]])
    channels(axes["channels"], v)
    spread(axes["spread"], v)
    if "layers" in axes:
        depth(axes["layers"], layers)


def channels(axes: Axes, v: View) -> None:
    """The largest magnitude in each channel; massive activations marked."""
    most_C, is_C = by_channel(v)
    logits = v.column_is == "token"
    called = "token id" if logits else v.column_is
    axes.set_xlabel(called)
    axes.set_ylabel("|logit|, no unit" if logits else f"largest |x| over {plural(len(v.rows), 'position')}, no unit")
    found = sorted(np.flatnonzero(is_C).tolist(), key=lambda i: -most_C[i])
    count = plural(int(massive(v.by_head).sum()), "massive value")
    what = "Magnitude of each token's logit" if logits else f"Largest magnitude in each {called}"
    axes.set_title(f"{what}; {count} (above 100 and 1,000 times the median)", fontsize=9)
    if not most_C.any():
        return empty(axes, "no finite value but zero")
    axes.set_yscale("log")
    axes.set_ylim(float(most_C.max()) * 1e-6, float(most_C.max()) * 3)
    axes.plot(v.columns, np.where(most_C > 0, most_C, np.nan), color=COLOUR, linewidth=0.8, marker=".", markersize=1.5)
    for i in found:
        axes.plot(v.columns[i], most_C[i], "o", color=STRONG, markersize=4)
    for i in found[:NAMED]:
        axes.annotate(
            f"{v.columns[i]}: {most_C[i]:.4g}", (v.columns[i], most_C[i]), xytext=(5, 2), textcoords="offset points",
            fontsize=8,
        )  # fmt: skip


def depth(axes: Axes, layers: Sequence[View]) -> None:
    """RMS and largest magnitude, layer by layer."""
    from matplotlib.ticker import MaxNLocator

    found = by_layer(layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("magnitude, no unit")
    axes.set_title("RMS and largest magnitude by layer", fontsize=9)
    if not found:
        return empty(axes, "no finite value but zero")
    numbers, rms, most = zip(*found, strict=True)
    axes.set_yscale("log")
    axes.plot(numbers, most, "--", color=STRONG, marker=".", label="largest |x|")
    axes.plot(numbers, rms, color=COLOUR, marker=".", label="RMS")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def spread(axes: Axes, v: View) -> None:
    """The histogram; the first and the last bar hold what is outside."""
    axes.set_xlabel("value, no unit")
    axes.set_ylabel("values in the bin")
    axes.set_title("Values by size; what is outside is at both ends", fontsize=9)
    h = histogram(v.computed())
    if h is None:
        return empty(axes, "no finite value")
    counts = [h.below, *h.counts, h.above]
    colours = [STRONG, *[COLOUR] * len(h.counts), STRONG]
    axes.bar(range(len(counts)), counts, width=0.9, color=colours)
    places = np.arange(len(h.edges)) + 0.5
    every = max(1, len(h.edges) // 7)
    axes.set_xticks(places[::every], [f"{e:.3g}" for e in h.edges[::every]], fontsize=8)


def empty(axes: Axes, said: str) -> None:
    axes.text(0.5, 0.5, said, transform=axes.transAxes, ha="center", va="center")


# ---- the lens


def lens(f: Figure, source: str, positions: Sequence[Sequence[Guess]], v: View, names: Names) -> None:
    """Layers down, as the text has them: the last line is the model's own answer."""
    shown = positions[-POSITIONS:]
    cut = [f"the last {len(shown)} positions of {len(positions)}"] * (len(shown) < len(positions))
    if len(shown) == 1:
        (of_position,) = shown
        wide = max((len(g.top) for g in of_position), default=1) or 1
        cells = [[*g.top, *[None] * (wide - len(g.top))] for g in of_position]
        across, unit = [str(n + 1) for n in range(wide)], "rank: the likeliest next tokens of each layer"
        where = f"at position {of_position[0].position} {names.at(of_position[0].position)}; "
    else:
        wide, where = len(shown), ""
        cells = [[g.top[0] if g.top else None for g in of_layer] for of_layer in zip(*shown, strict=True)]
        across = [f"{p[0].position} {names.at(p[0].position)}" for p in shown]
        unit = "position, and its token"
    f.set_size_inches(max(7.0, 1.05 * wide + 2.5), max(3.5, 0.26 * len(cells) + 2.2))
    said = f"{where}what the model would say next if it ended after the layer"
    headed(f, f"Logit lens of {title(v.entry, None)}", source, said, sizes(v, names), *cut)
    axes = f.subplots()
    p = np.array([[np.nan if t is None else t.probability for t in row] for row in cells], np.float64)
    image = axes.imshow(p, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (y, x), value in np.ndenumerate(p):
        token = cells[y][x]
        text = "not finite" if token is None else plain(names.spelled(token.id) or str(token.id), LONGEST)
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if value < 0.5 else "black")
    axes.set_xticks(
        range(wide), [plain(text, LONGEST + 5) for text in across], fontsize=8, rotation=0 if len(shown) == 1 else 45
    )
    axes.set_yticks(range(len(cells)), layer_names(shown), fontsize=8)
    axes.set_xlabel(unit)
    axes.set_ylabel("layer" if len(shown) > 1 else "layer (rank there of the last line's choice)")
    f.colorbar(image, ax=axes, label="probability")


def layer_names(shown: Sequence[Sequence[Guess]]) -> list[str]:
    """With the rank, where one position is shown."""
    called = ["-" if g.layer is None else str(g.layer) for g in shown[0]]
    if len(shown) > 1:
        return called
    return [f"{c} ({'-' if g.rank is None else g.rank})" for c, g in zip(called, shown[0], strict=True)]
