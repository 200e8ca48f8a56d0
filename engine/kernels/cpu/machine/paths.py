"""Which instructions kernels are made of: a path, chosen for the host or by the variable QWENREF_SIMD.

"avx512": AVX-512 with VNNI; "avxvnni": AVX2 with VNNI; "avx2"; "neon": ARM's vectors with dot products of bytes
(ARMv8.2 DotProd); "plain": whatever LLVM makes of it. Results are equal to the bit on all of them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from numba import config as numba_config

from .....errors import BadInput

config: Any = numba_config


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """needs: features of the machine, by LLVM's names. tile: tokens of a tile of integer products, which is even, for
    halves of a token lie side by side. tile_f32: the same in float32. parts: in how many parts 32 rows pass over such a
    tile: sums of 6 tokens and 16 rows are 12 of 16 registers of 8 lanes, chains enough for two additions a cycle.
    few, few_ints: tokens of a tile where weights are decoded on their way, and take registers, too, in float32 and in
    integers. eights: whether integer products of one token and of few go 8 rows at a time (eights.py). heads: that
    attention takes together. abreast: whether two groups' chains lie side by side, which hides the latency of one;
    where a vector of 32 lanes is eight registers its own are enough. planes: in how many parts 8-bit codes are
    multiplied: of two products with bytes the sum takes 17 bits, of nibbles 13. asks: whether integer products of many
    tokens ask for memory before it is needed, which nobody has measured on ARM. signed: whether dot products take codes
    as signed numbers. lacks: how features begin that such a machine has not, and that machine code does without where
    the path is asked for on a better one. dots: LLVM's names of the dot products of bytes and of 16-bit numbers, and
    the lanes that they take, where the machine has them.
    """

    needs: frozenset[str]
    tile: int = 2
    tile_f32: int = 2
    parts: int = 1
    few: int = 2
    few_ints: int = 2
    eights: bool = False
    heads: int = 2
    abreast: bool = True
    planes: int = 1
    asks: bool = True
    signed: bool = False
    dots: tuple[str, str, int] | None = None
    lacks: tuple[str, ...] = ()


AVX2 = frozenset({"avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
NEON = frozenset({"neon", "dotprod"})
VPDP = "llvm.x86.avx512.vpdpbusd", "llvm.x86.avx512.vpdpwssd"
SETS = {  # the best first
    "avx512": InstructionSet(
        AVX512, tile=6, tile_f32=6, few=4, few_ints=4, heads=4, dots=(f"{VPDP[0]}.512", f"{VPDP[1]}.512", 16)
    ),
    "avxvnni": InstructionSet(
        AVX2 | {"avxvnni"},
        tile_f32=6,
        parts=2,
        few=4,
        few_ints=4,
        dots=(f"{VPDP[0]}.256", f"{VPDP[1]}.256", 8),
        lacks=("avx512",),
    ),
    "avx2": InstructionSet(
        AVX2, tile_f32=6, parts=2, few=4, few_ints=4, eights=True, planes=2, lacks=("avx512", "avxvnni")
    ),
    "neon": InstructionSet(NEON, heads=1, abreast=False, asks=False, signed=True),
    "plain": InstructionSet(frozenset(), heads=1, planes=2),
}
PATHS = tuple(SETS)
AT_HWCAP, HWCAP_ASIMDDP = 16, 1 << 20  # linux/auxvec.h, and arm64's asm/hwcap.h


def features() -> set[str]:
    """What the machine that Numba compiles for can do: the host, unless NUMBA_CPU_FEATURES says otherwise."""
    if config.CPU_FEATURES is not None:
        return {f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+")}
    return {name for name, there in llvm.get_host_cpu_features().items() if there} | _not_found_by_llvm()


def _not_found_by_llvm() -> set[str]:
    """On macOS LLVM finds out nothing, and Apple's own processors all have DotProd. On Linux it does not ask for that,
    which the kernel tells every process.
    """
    match sys.platform, platform.machine():
        case "darwin", "arm64":
            return set(NEON)
        case "linux", "aarch64":
            ask = ctypes.CDLL(None).getauxval
            ask.argtypes, ask.restype = [ctypes.c_ulong], ctypes.c_ulong
            return set(NEON) if ask(AT_HWCAP) & HWCAP_ASIMDDP else set()
    return set()


def choose_path(forced: str | None, have: set[str]) -> str:
    """The best path for these features, or the forced one. Raises BadInput if that is unknown or the machine lacks
    it.
    """
    possible = [path for path, s in SETS.items() if s.needs <= have]
    if not forced:
        return possible[0]
    if forced not in possible:
        raise BadInput(f"QWENREF_SIMD={forced}: this machine has {', '.join(possible)}")
    return forced


def why() -> str:
    """Why PATH is the path, in words."""
    if os.environ.get("QWENREF_SIMD"):
        return "QWENREF_SIMD says so"
    kin = [p for p in PATHS[: PATHS.index(PATH)] if ("neon" in SETS[p].needs) == ("neon" in features())]
    lacking = {p: sorted(SETS[p].needs - features()) for p in kin}
    missing = [f"{p} needs {', '.join(names)}" for p, names in lacking.items()]
    which = "NUMBA_CPU_FEATURES" if config.CPU_FEATURES is not None else "this processor"
    return f"{'; '.join(missing)}, which {which} does not name" if missing else "the best there is"


PATH = choose_path(os.environ.get("QWENREF_SIMD"), features())
SET = SETS[PATH]
if os.environ.get("QWENREF_SIMD") and SET.lacks and config.CPU_FEATURES is None:
    config.CPU_FEATURES = ",".join(
        f"{'+' if there and not name.startswith(SET.lacks) else '-'}{name}"
        for name, there in llvm.get_host_cpu_features().items()
    )
if PATH == "neon" and config.CPU_FEATURES is None:
    config.CPU_FEATURES = ",".join(f"+{name}" for name in sorted(features()))
