"""make arm's tests: every one of the kernels' is run there or left out with a reason, and what it reads is counted."""

from __future__ import annotations

from qwenref.tools.dev.arm_tests import (
    FILES,
    FOLDER,
    LEFT_OUT,
    ROOT,
    collected,
    empty,
    kernels,
    outcomes,
    skips,
    summary,
)

PASSED = "test_cpu.py::test_rows"
SAID = f"""
{FOLDER}/{PASSED} PASSED                                      [ 20%]
{FOLDER}/test_cpu.py::test_linear[Q4_K-int8] FAILED                     [ 40%]
{FOLDER}/test_untapped.py::test_blocks[(1, 0, 8) of all] SKIPPED (why)  [ 60%]
SKIPPED [1] {FOLDER}/test_untapped.py:12: why
"""
TESTS = [f"{FOLDER}/{name}" for name in (PASSED, "test_cpu.py::test_linear[Q4_K-int8]")]
TESTS += [f"{FOLDER}/{name}" for name in ("test_untapped.py::test_blocks[(1, 0, 8) of all]", "test_cpu.py::test_gone")]


def test_what_is_left_out_is_there() -> None:
    assert FILES
    for name in LEFT_OUT:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / FOLDER / file).read_text(), name
        assert (file in FILES) == bool(test)


def test_no_outcome_is_taken_for_granted() -> None:
    found = outcomes(TESTS, SAID)
    assert list(found.values()) == ["PASSED", "FAILED", "SKIPPED", "MISSING"]
    lines, wrong = summary(found)
    assert wrong == 2 and [line.split()[0] for line in lines] == [
        *("test_cpu.py", "test_untapped.py", "FAILED", "MISSING"),
    ]
    assert lines[0].split(maxsplit=1)[1] == "1 failed, 1 missing, 1 passed"
    assert skips(SAID) == [f"  SKIPPED [1] {FOLDER}/test_untapped.py:12: why"]
    assert summary(outcomes(TESTS[:1], "no tests ran"))[1] == 1


def test_names_of_tests_say_which_kernels_they_need() -> None:
    said = (
        f"{TESTS[1]}\n{FOLDER}/test_packed_groups.py::test_x[NF4/64/BF16]\n\n2/5 tests collected (3 deselected) in 1s\n"
    )
    tests, others = collected(said)
    assert tests == [TESTS[1], f"{FOLDER}/test_packed_groups.py::test_x[NF4/64/BF16]"] and others == 3
    assert empty(["test_cpu.py", "test_simd.py", "test_packed_groups.py"], tests) == ["test_simd.py"]
    needed = list(kernels(tests, ("Q4_K", "NF4/64/BF16"), ("f32", "int8")))
    assert needed[-2:] == ["Q4_K/int8", "NF4/64/BF16/f32"]
    assert list(kernels([f"{FOLDER}/test_cpu.py::test_memory_is_the_files[Q4_K]"], ("Q4_K",), ("f32",))) == needed[:-2]
