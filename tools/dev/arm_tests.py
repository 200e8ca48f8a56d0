"""The CPU kernels' own tests on the emulated processor (arm.py): which run there, which do not, and what they say.

A test that is not reported as passed, or as skipped with its reason, is a failure: so is one that never ran.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = "tests/engine/kernels"
PROCESSES = "starts processes of its own, which nothing would emulate"
# All of them, minus these: a file, or a test of one, and why it does not run there.
LEFT_OUT = {
    "test_ahead.py": PROCESSES,
    "test_contracts.py": "contracts of traces; stages of the CPU backend are compared above",
    "test_cuda.py": "another backend",
    "test_neon.py": "machine code that this machine makes for others, and reads",
    "test_numba_settings.py": PROCESSES,
    "test_cpu_paths.py::test_every_stage_has_the_same_bits": f"{PROCESSES}; its digests are compared above",
    "test_cpu_paths.py::test_a_path_that_is_asked_for_is_compiled_for_such_a_machine": PROCESSES,
    "test_cpu_paths.py::test_operations_on_this_path": f"{PROCESSES}; the files that it runs are here by themselves",
    "test_cpu_paths.py::test_a_second_process_compiles_nothing": PROCESSES,
}
FILES = tuple(p.name for p in sorted((ROOT / FOLDER).glob("test_*.py")) if p.name not in LEFT_OUT)
# What tests need whose names do not say so: single kernels, and models of a format, or of several.
UNNAMED = ("F32/f32", "F16/f32", "Q4_K/f32", *(f"{name}/{p}" for name in ("Q8_0", "Q5_0") for p in ("int8", "int16")))
NO_PRODUCTS = ("test_memory_is_the_formats", "test_memory_is_the_files")  # named after formats that they only pack
SLOW = 30  # times: of a test's limit here
REPORTED = re.compile(r"^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
PARTS = re.compile(r"\[(.+)\]$")


def collecting(files: Sequence[str]) -> list[str]:
    """pytest's words for the tests of these files that run there, by name."""
    without = [f"--deselect={FOLDER}/{name}" for name in LEFT_OUT if "::" in name]
    return [
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        *without,
        *(f"{FOLDER}/{f}" for f in files),
    ]


def collected(said: str) -> tuple[list[str], int]:
    """The tests' names, and how many more are asked for by a mark alone (matrix)."""
    tests = [line for line in said.splitlines() if line.startswith(f"{FOLDER}/") and "::" in line]
    deselected = re.search(r"(\d+) deselected", said)
    return tests, int(deselected[1]) if deselected else 0


def empty(files: Sequence[str], tests: Sequence[str]) -> list[str]:
    """Of the files those that no test was found in."""
    return [file for file in files if not any(test.startswith(f"{FOLDER}/{file}::") for test in tests)]


def running(tests: Sequence[str]) -> list[str]:
    limit = f"timeout={300 * SLOW}"
    return ["-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider", "-o", limit, *tests]


def kernels(tests: Sequence[str], formats: Sequence[str], precisions: Sequence[str]) -> Iterator[str]:
    """Products that these tests are named after, as Q4_K/int8. Of a name without a precision that is f32."""
    yield from UNNAMED
    for test in (test for test in tests if not any(name in test for name in NO_PRODUCTS)):
        parts = found[1].split("-") if (found := PARTS.search(test)) else []
        for name in (part for part in parts if part in formats):
            yield from (f"{name}/{p}" for p in [part for part in parts if part in precisions] or ["f32"])


def outcomes(tests: Sequence[str], said: str) -> dict[str, str]:
    """What became of each: MISSING where nothing is said of it."""
    found = dict(REPORTED.findall(said))
    return {test: found.get(test, "MISSING") for test in tests}


def summary(found: dict[str, str]) -> tuple[list[str], int]:
    """Lines: a file's tests by what became of them, then each that did not pass; and how many of these are wrong."""
    lines = []
    for file in sorted({test.partition("::")[0] for test in found}):
        own = [state for test, state in found.items() if test.startswith(f"{file}::")]
        counts = ", ".join(f"{own.count(state)} {state.lower()}" for state in sorted(set(own)))
        lines.append(f"  {Path(file).name:24} {counts}")
    wrong = {test: state for test, state in found.items() if state not in ("PASSED", "SKIPPED")}
    return [*lines, *(f"  {state} {test}" for test, state in wrong.items())], len(wrong)


def skips(said: str) -> list[str]:
    """Reasons, as pytest says them."""
    return [f"  {line}" for line in said.splitlines() if re.match(r"SKIPPED \[\d+\]", line)]
