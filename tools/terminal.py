"""Text that nobody vouches for, on its way to a terminal, which would obey the control characters in it."""

from __future__ import annotations

import os
import sys
from math import isfinite
from typing import Any

# C0, DEL and C1 (ECMA-48), ESC and CSI among them: they move the cursor, hide, or make the terminal type.
CONTROLS = (*range(32), *range(127, 160))
# What turns or breaks a line (Unicode's Bidi_Control, and two separators).
BENDS = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
SHOWN = dict.fromkeys(CONTROLS, "\N{REPLACEMENT CHARACTER}")


def one_line(text: str) -> str:
    """The text on one line, from left to right, whatever a file's name or a tensor's holds."""
    return text.translate(SHOWN | dict.fromkeys(BENDS, "\N{REPLACEMENT CHARACTER}"))


LONGEST = 2000  # characters of a line on stderr: what is odd in a file is told, not printed


def on_stderr(text: str) -> None:
    """Says something on stderr, on one line that ends."""
    line = one_line(text)
    if (more := len(line) - LONGEST) > 0:
        line = f"{line[:LONGEST]} ... ({more} more characters)"
    print(line, file=sys.stderr, flush=True)


def bar_block() -> str:
    """What a bar is made of: a block, or # where stdout's encoding or a dumb terminal has none."""
    try:
        "\N{FULL BLOCK}".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#"
    return "#" if sys.stdout.isatty() and os.environ.get("TERM") == "dumb" else "\N{FULL BLOCK}"


def json_text(value: Any, indent: int | None = None) -> str:
    """One JSON document as RFC 8259 has it: numbers that are not finite are null there. Its escapes leave a terminal
    nothing to obey."""
    import json  # which `engine --help` does without

    return json.dumps(_finite(value), allow_nan=False, indent=indent).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def for_stdout(text: str) -> str:
    """The text as it is where stdout is a file or a pipe; a terminal is left only tabs and line breaks to obey."""
    if not sys.stdout.isatty():
        return text
    return text.translate({code: sign for code, sign in SHOWN.items() if chr(code) not in "\t\n\r"})
