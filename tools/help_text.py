"""How --help lays out what a command says of itself: within the width of the terminal, examples as they are typed"""

from __future__ import annotations

import argparse
from textwrap import wrap


class HelpText(argparse.RawDescriptionHelpFormatter):
    """Lines at the margin run on and are one paragraph, which ends at a line with a colon at its end; indented ones,
    examples and lists, stay lines of their own, and go on further in where they are too long.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        ended = True
        for line in text.splitlines():
            alone = not line or line[0] == " " or line.endswith(":")
            if alone or ended:
                lines.append(line)
            else:
                lines[-1] += f" {line}"
            ended = alone
        return "\n".join(indent + part for line in lines for part in self._wrapped(line, width - len(indent)))

    @staticmethod
    def _wrapped(line: str, width: int) -> list[str]:
        inside = " " * (len(line) - len(line.lstrip()))
        further = f"{inside}    " if inside else ""
        return wrap(line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False) or [""]
