"""How a picture is drawn: a figure by Matplotlib's own settings, its title, and text that its fonts can draw."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING

from ...errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 110  # an inch
# Letters of every script: Matplotlib's own font first, then what systems bring for Chinese, Japanese, Korean and signs.
FONTS = (
    "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans", "Noto Emoji", "Segoe UI Symbol",
)  # fmt: skip


def check_matplotlib() -> None:
    """Raises BadInput where it is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput(
            f"--png needs {error.name}; get it with: pip install 'qwenref[png]' (--html needs nothing)"
        ) from None


def drawn(draw: Callable[[Figure], None]) -> bytes:
    """What `draw` makes of an empty figure. By the library's own settings: a matplotlibrc in the working directory may
    ask for TeX, and for anything else."""
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts that are too tight for a long name: they are drawn all the same
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.family"] = [name for name, _ in fonts()]
        figure = Figure(dpi=DOTS, layout="constrained")
        draw(figure)
        out = BytesIO()
        figure.savefig(out, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
    return out.getvalue()


@cache
def fonts() -> tuple[tuple[str, frozenset[int]], ...]:
    """(family, the characters that it draws), of those that are here."""
    from matplotlib import font_manager

    found = []
    for name in FONTS:
        try:
            path = font_manager.findfont(name, fallback_to_default=False)
        except ValueError:
            continue
        found.append((name, frozenset(font_manager.get_font(path).get_charmap())))
    return tuple(found)


def drawable(text: str) -> str:
    """The text, with an escape in the place of every character that no font here has: an empty box says nothing."""
    known: frozenset[int] = frozenset().union(*(characters for _, characters in fonts()))
    return "".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in text)


def plain(text: str, longest: int = 0) -> str:
    """Text for a label. A dollar sign begins no formula. longest: characters, 0 for all."""
    text = drawable(text)
    return (text if not longest or len(text) <= longest else f"{text[: longest - 1]}…").replace("$", r"\$")


def headed(f: Figure, heading: str, source: str, *said: str) -> None:
    """The title, and in small letters what it is of, in as many lines as the width asks for."""
    wide = max(40, min(250, int(f.get_figwidth() * 14)))
    below = [line for text in (middle(source, wide), *said) for line in wrap(text, wide, max_lines=3, placeholder=" …")]
    size = max(9.0, f.get_figwidth() / 2)  # a picture of many maps is seen from farther away
    f.suptitle("\n".join(map(plain, [heading, *below])), fontsize=size, linespacing=1.4)


def middle(text: str, longest: int) -> str:
    """Beginning and end of what is too long."""
    return text if len(text) <= longest else f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"
