"""Innermost loops of assembly that multiply: what a test asks about, and llvm-mca counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

LABEL = re.compile(r"^([.\w$]+):")
COMMENT = re.compile(r"\s*(//|;|##|#(?=\s)).*")
ENDS = re.compile(r"(b|b\.\w+|br|ret|cbn?z|tbn?z|j\w+|retq?)$")
ALWAYS = ("b", "br", "ret", "retq", "jmp")
# Multiply-adds of one instruction, by its name and the kind of its first operand.
PRODUCTS = (
    (re.compile(r"[su]dot(\.4s)?\s"), 16),
    (re.compile(r"fmla(\.4s)?\s"), 4),
    (re.compile(r"vpdpbusd\s.*%zmm\d+$"), 64),
    (re.compile(r"vpdpbusd\s.*%ymm\d+$"), 32),
    (re.compile(r"vpmaddubsw\s.*%ymm\d+$"), 32),
    (re.compile(r"vfn?madd\d+ps\s.*%zmm\d+$"), 16),
    (re.compile(r"vfn?madd\d+ps\s.*%ymm\d+$"), 8),
)
INTEGER = re.compile(r"[su]dot|vpdpbusd|vpmaddubsw")


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of a loop, without those of loops in it that multiply nothing: they ask for memory ahead."""

    instructions: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [line.split()[0].partition(".")[0] for line in self.instructions]

    @property
    def products(self) -> int:
        """Multiply-adds an iteration: of bytes where there are any, else of float32."""
        integer = [line for line in self.instructions if INTEGER.match(line)]
        return sum(_products(line) for line in integer or self.instructions)

    @property
    def on_the_stack(self) -> list[str]:
        return [line for line in self.instructions if re.search(r"\[sp\b|\(%r[sb]p\)", line)]

    @property
    def calls(self) -> list[str]:
        return [line for line in self.instructions if re.match(r"(blr?|callq?)\s", line)]


def _products(line: str) -> int:
    return next((n for name, n in PRODUCTS if name.match(line)), 0)


def _blocks(assembly: str) -> tuple[list[list[str]], list[set[int]]]:
    """Basic blocks in their order, and where each may go on."""
    blocks: list[list[str]] = [[]]
    at: dict[str, int] = {}
    for text in assembly.splitlines():
        line = COMMENT.sub("", text).strip()
        if label := LABEL.match(line):
            at[label[1]] = len(blocks)
            blocks.append([])
        elif line and not line.startswith("."):
            blocks[-1].append(line)
            if ENDS.match(line.split()[0]):
                blocks.append([])
    next_: list[set[int]] = []
    for i, block in enumerate(blocks):
        name, *operands = block[-1].replace(",", " ").split() if block else [""]
        to = {at[operands[-1]]} if operands and operands[-1] in at else set()
        next_.append(to | ({i + 1} if name not in ALWAYS and i + 1 < len(blocks) else set()))
    return blocks, next_


def _cycles(nodes: set[int], next_: list[set[int]]) -> list[set[int]]:
    """The strongly connected parts of those blocks that can come again: who reaches itself, by what it reaches."""

    def reached(start: int, forward: bool) -> set[int]:
        found: set[int] = set()
        left = [start]
        while left:
            here = left.pop()
            for to in (next_[here] if forward else before[here]) & nodes - found:
                found.add(to)
                left.append(to)
        return found

    before: list[set[int]] = [set() for _ in next_]
    for i in nodes:
        for to in next_[i]:
            before[to].add(i)
    left, parts = set(nodes), []
    while left:
        node = min(left)
        part = reached(node, True) & reached(node, False)
        if part:
            parts.append(part)
        left -= part | {node}
    return parts


def loops(assembly: str) -> list[Loop]:
    """The innermost loops that multiply and add; a loop that only asks for memory is no inner one."""
    blocks, next_ = _blocks(assembly)
    multiplies = {i for i, block in enumerate(blocks) if any(_products(line) for line in block)}
    found: list[Loop] = []

    def descend(part: set[int]) -> None:
        heads = {to for i, going in enumerate(next_) if i not in part for to in going & part} or {min(part)}
        inner = _cycles(part - heads, next_)
        deeper = [p for p in inner if p & multiplies]
        for p in deeper:
            descend(p)
        if not deeper:
            own = part.difference(*inner)
            found.append(Loop(tuple(line for i in sorted(own) for line in blocks[i])))

    for part in _cycles(set(range(len(blocks))), next_):
        if part & multiplies:
            descend(part)
    return found
