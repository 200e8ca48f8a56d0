"""Cycles that llvm-mca counts for 256 multiply-adds of the packed formats, in other processors' machine code.

python -m qwenref.tools.dev.cycles [--mca llvm-mca-19] [FORMAT ...]      a table for docs/performance.md

Static: of the loops that multiply, over and over, with every load from the first-level cache. What stands around them,
and memory, is not in it. Needs LLVM 19 (Debian's package llvm-19): older ones model Neoverse N1 as a Cortex-A57.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Sequence

from ...quant.tensor import format_of
from .elsewhere import PROCESSORS, assembly
from .loops import loops

FORMATS = (
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q2_K",
    "Q3_K",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "BF16",
    "F32",
)
KERNELS = ("int8 one", "int8 many", "int16 many", "f32 one", "f32 many")
ITERATIONS = 100
APPLES_SDOT = re.compile(r"sdot\.4s\s+(v\d+), (v\d+), (v\d+)(\[\d\])?")  # as LLVM writes it, and does not read it


def _sdot(found: re.Match[str]) -> str:
    to, codes, tokens, lane = found.groups()
    return f"sdot {to}.4s, {codes}.16b, {tokens}.{f'4b{lane}' if lane else '16b'}"


def cycles(mca: str, processor: str, instructions: Sequence[str]) -> float:
    """Of one round of these instructions."""
    triple = PROCESSORS[processor].triple
    words = [mca, f"-mtriple={triple}", f"-mcpu={processor}", f"-iterations={ITERATIONS}", "-instruction-info=0"]
    code = "\n".join(APPLES_SDOT.sub(_sdot, line) for line in instructions if not re.match(r"(cb|tb|b|j)\S*\s", line))
    said = subprocess.run(words, input=f"{code}\n", capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", said)
    assert found, said
    return int(found[1]) / ITERATIONS


def again(processor: str, name: str) -> int:
    """How many products of the machine make one of the format's: 16-bit activations are two bytes, and on AVX2 codes of
    8 bits are two parts (paths.py, planes).
    """
    form = format_of(name.partition("/")[0])
    halves = 2 if "/int16" in name else 1
    parts = 2 if processor == "znver3" and "/int" in name and form.name in ("Q8_0", "IQ4_NL", "IQ4_XS") else 1
    return halves * parts


def of_kernel(mca: str, processor: str, name: str, text: str) -> float:
    """Cycles for 256 multiply-adds: of a kernel's loops that do as much as its busiest one."""
    found = loops(text)
    most = max(loop.products for loop in found)
    busy = [loop for loop in found if loop.products == most]
    total = sum(cycles(mca, processor, loop.instructions) for loop in busy)
    return 256 * total * again(processor, name) / sum(loop.products for loop in busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=FORMATS, metavar="FORMAT")
    parser.add_argument("--mca", default="llvm-mca-19")
    args = parser.parse_args()
    print("| weights | processor | " + " | ".join(KERNELS) + " |\n|---|---|" + "---|" * len(KERNELS))
    wanted = [f"{form}/{kernel}" for form in args.formats for kernel in KERNELS]
    made = {processor: assembly(processor, wanted) for processor in PROCESSORS}
    for form in args.formats:
        for processor, kernels in made.items():
            names = [f"{form}/{kernel}" for kernel in KERNELS]
            row = [f"{of_kernel(args.mca, processor, n, kernels[n]):.1f}" if n in kernels else "" for n in names]
            print(f"| {form} | {processor} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
