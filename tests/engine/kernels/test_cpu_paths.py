"""The same bits on every instruction set, at every thread count, replayed or not; and no kernel from a stale cache.

Instruction sets are chosen when the backend is imported, so each has a process of its own; two run at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

from qwenref.engine import selftest
from qwenref.engine.forward import EVERY, forward
from qwenref.engine.kernels.cpu import Cpu
from qwenref.engine.kernels.cpu.machine import compiled
from qwenref.engine.kernels.cpu.machine.paths import PATHS, choose_path, features
from qwenref.engine.kernels.cpu.matmul.packed import FORMATS
from qwenref.engine.tap import SILENT
from qwenref.errors import BadInput

from ...tiny import tiny_weights

HERE = Path(__file__).parents[2]
CPU = Cpu()


def without(*prefixes: str) -> dict[str, str]:
    """A processor without the features that begin so: machine code without them, not only without our own use."""
    host = llvm.get_host_cpu_features().items()
    features = (f"{'+' if there and not name.startswith(prefixes) else '-'}{name}" for name, there in host)
    return {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ",".join(features)}


def has(path: str) -> bool:
    try:
        return choose_path(path, features()) == path
    except BadInput:
        return False


# name: the environment that it runs in
RUNS: dict[str, dict[str, str]] = {
    "1 thread": {"NUMBA_NUM_THREADS": "1"},
    "plain": {"QWENREF_SIMD": "plain"},
    "7 threads": {"NUMBA_NUM_THREADS": "7"},  # last of those that run always: by then its kernels are in the cache
}
# Of these the precisions that run always; none is all, and the self-test.
ALWAYS: dict[str, tuple[str, ...]] = {"1 thread": (), "plain": ("f32", "int8"), "7 threads": ()}
PATH_OF = {"1 thread": choose_path(None, features()), "plain": "plain"}
if has("avx512"):
    RUNS["CPU without AVX-512"] = without("avx512", "avxvnni")
    PATH_OF["CPU without AVX-512"] = "avx2"
    ALWAYS = {"CPU without AVX-512": ("int8", "int16")} | ALWAYS
if has("avxvnni"):
    RUNS["CPU with VNNI of 256 bits"] = without("avx512")
    PATH_OF["CPU with VNNI of 256 bits"] = "avxvnni"


@pytest.mark.timeout(900)  # three paths' kernels are compiled
@pytest.mark.parametrize(
    "runs", [ALWAYS, pytest.param(dict.fromkeys(RUNS, ()), marks=pytest.mark.matrix)], ids=["some", "all"]
)
def test_every_stage_has_the_same_bits(runs: dict[str, tuple[str, ...]]) -> None:
    """What cpu_digest.py prints in each environment, two processes at a time. One test: pytest-xdist's processes would
    each compile all of it.
    """

    def run(name: str) -> Any:
        command = [sys.executable, str(HERE / "cpu_digest.py"), *(("--precision", *runs[name]) if runs[name] else ())]
        done = subprocess.run(command, env=os.environ | RUNS[name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(runs, pool.map(run, runs), strict=True))
    whole = found["1 thread"]["digests"]
    for name, said in found.items():
        assert said["digests"] == {p: whole[p] for p in runs[name] or whole}, name
        assert said["self-test"] == ({} if runs[name] else selftest.DIGESTS), name
        assert said["path"] == PATH_OF.get(name, said["path"]), name


@pytest.mark.matrix
@pytest.mark.parametrize("name", [name for name in FORMATS if "/" not in name])
def test_products_have_the_same_bits_on_every_path(name: str) -> None:
    """The kernels of all formats, on all paths, take minutes to compile."""
    found = {}
    for path in (path for path in PATHS if has(path)):
        command = [sys.executable, str(HERE / "cpu_digest.py"), "--products", name]
        done = subprocess.run(
            command, env=os.environ | {"QWENREF_SIMD": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{path}: {done.stderr}"
        found[path] = done.stdout
    assert len(set(found.values())) == 1 and len(found) > 1, found


WITHOUT = {"avx2": ("avx512f", "avxvnni"), "avxvnni": ("avx512f",)}


@pytest.mark.skipif(not has("avx512"), reason="what a path does without, this machine has not")
@pytest.mark.parametrize(("path", "has_not"), [(path, lacks) for path, lacks in WITHOUT.items() if has(path)])
def test_a_path_that_is_asked_for_is_compiled_for_such_a_machine(path: str, has_not: tuple[str, ...]) -> None:
    """A figure of it would be of no machine otherwise: LLVM uses what it is told is there."""
    program = "from qwenref.engine.kernels.cpu.machine import paths; print(paths.config.CPU_FEATURES)"
    env = os.environ | {"QWENREF_SIMD": path}
    said = subprocess.run([sys.executable, "-P", "-c", program], env=env, capture_output=True, text=True, check=True)
    told = said.stdout.strip().split(",")
    assert {f"-{name}" for name in has_not} <= set(told) and "+avx2" in told


@pytest.mark.parametrize("path", [path for path in PATHS if has(path)])
def test_operations_on_this_path(path: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("test_simd.py")),
        str(Path(__file__).with_name("test_untapped.py")),
    ]
    run = subprocess.run(
        command, check=False, env=os.environ | {"QWENREF_SIMD": path}, capture_output=True, text=True, cwd=HERE.parent
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
def test_a_replayed_step_has_the_bits_of_a_step(precision: str) -> None:
    w = CPU.prepare(tiny_weights(heads=3, kv_heads=1, head_dim=32, vocab=77, formats="Q8_0", hidden=96), precision)
    tokens = np.arange(45, dtype=np.int32)
    plain, replayed = (CPU.new_cache(w.config, 45, precision) for _ in range(2))
    for cache in (plain, replayed):
        forward(tokens[:5], w, cache, CPU, SILENT)
    step = CPU.record(lambda k, token_T: forward(token_T, w, replayed, k, SILENT), replayed)
    for t in range(5, 45):
        want = forward(tokens[t : t + 1], w, plain, CPU, SILENT)
        assert step(tokens[t : t + 1]).tobytes() == want.tobytes()
    assert replayed.length == 45
    with pytest.raises(BadInput, match="46 positions do not fit a cache of 45"):
        step(tokens[:1])


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
@pytest.mark.parametrize("T", [1, 2, 6, 7, 41, 130])
def test_a_batched_prompt_has_the_bits_of_a_prompt(T: int, precision: str) -> None:
    """Put off, joined row by row, and with memory that is lent again: more layers than a batch's jobs run at once."""
    formats = {"q": "Q8_0", "k": "Q5_0", "ffn_up": "Q5_0", "ffn_down": "F16"}
    w = tiny_weights(layers=20, heads=3, kv_heads=1, head_dim=32, hidden=96, mlp=416, formats=formats)
    w, tokens = CPU.prepare(w, precision), np.arange(T, dtype=np.int32) % 77
    plain, batched = (CPU.new_cache(w.config, T + 1, precision) for _ in range(2))
    want = forward(tokens, w, plain, CPU, SILENT)
    got = CPU.batch(lambda k: forward(tokens, w, batched, k, SILENT))
    assert got.tobytes() == want.tobytes()
    assert (batched.k.tobytes(), batched.v.tobytes()) == (plain.k.tobytes(), plain.v.tobytes())


@pytest.mark.parametrize("precision", CPU.PRECISIONS)
@pytest.mark.parametrize("tokens", [2, 4, 8])
def test_a_replayed_pass_of_several_tokens_has_the_bits_of_each(tokens: int, precision: str) -> None:
    w = CPU.prepare(tiny_weights(heads=3, kv_heads=1, head_dim=32, vocab=77, formats="Q8_0", hidden=96), precision)
    ids = np.arange(45, dtype=np.int32)
    plain, replayed = (CPU.new_cache(w.config, 45, precision) for _ in range(2))
    for cache in (plain, replayed):
        forward(ids[:5], w, cache, CPU, SILENT)
    step = CPU.record(lambda k, ids_T: forward(ids_T, w, replayed, k, SILENT, EVERY), replayed, tokens)
    for t in range(5, 45 - tokens, tokens):
        want = [forward(ids[i : i + 1], w, plain, CPU, SILENT).tobytes() for i in range(t, t + tokens)]
        for _ in range(2):  # the second time over the positions of the first: what they held leaves no trace
            replayed.length = t
            assert [x.tobytes() for x in step(ids[t : t + tokens])] == want


def test_the_cache_folder_is_named_after_every_source(tmp_path: Path) -> None:
    source, other = tmp_path / "a.py", tmp_path / "b.py"
    source.write_text("x = 1")
    other.write_text("y = 1")
    both = [source, other]
    before = compiled.digest(both, "numba 1")
    assert before == compiled.digest(reversed(both), "numba 1")
    assert before != compiled.digest(both, "numba 2")
    other.write_text("y = 2")  # a helper that no kernel's own file mentions
    assert before != compiled.digest(both, "numba 1")


def test_the_cache_folder_knows_every_source_of_machine_code() -> None:
    """All files of this project that a kernel's module imports, but for what it only asks on the host."""
    import qwenref
    from qwenref.engine.kernels import cpu, numba_settings

    known = {str(p) for p in compiled.sources()}
    assert {str(p) for p in Path(cpu.__file__).parent.rglob("*.py")} <= known
    assert numba_settings.__file__ in known
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{cpu.__name__}."):
            for value in vars(module).values():  # a number or function of another package would be compiled in
                code = getattr(value, "py_func", getattr(value, "function", None))
                if isinstance(code, FunctionType):
                    outside = {n: v for n in code.__code__.co_names if (v := code.__globals__.get(n)) is not None}
                    for n, v in outside.items():
                        home = getattr(v, "__module__", None) or ""
                        assert not home.startswith(f"{qwenref.__name__}.") or home.startswith(cpu.__name__), (name, n)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NUMBA_CACHE_DIR": ""}
    program = (
        "from qwenref.engine.kernels.cpu import rows; from qwenref.engine.kernels.cpu.formats import q8_0;"
        "print([k.compile() for k in (*rows.KERNELS[:2], q8_0.FORM.f32[0])])"
    )

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert run().strip() == "[True, True, True]"
    kernels = tmp_path / "qwenref" / "kernels"
    assert [p.name for p in (tmp_path / "qwenref").iterdir()] == ["kernels"]
    assert {p.stat().st_mode & 0o777 for p in (kernels, *kernels.iterdir()) if p.is_dir()} == {0o700}
    assert run().strip() == "[False, False, False]"


@pytest.fixture
def fresh_store() -> Iterator[Callable[[], compiled.Store | None]]:
    """What a new process would find."""

    def find() -> compiled.Store | None:
        compiled.store.cache_clear()
        return compiled.store()

    yield find
    compiled.store.cache_clear()


def test_a_cache_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_store: Callable[[], compiled.Store | None]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    store = fresh_store()
    assert store is not None and store.folder.parent == tmp_path
    store.folder.chmod(0o777)
    second = fresh_store()
    assert second is not None and second.folder == tmp_path / "x" / "qwenref" / "kernels" / store.folder.name
    (tmp_path / "x" / "qwenref" / "kernels").chmod(0o777)
    third = fresh_store()
    assert third is not None and third.folder.parent == tmp_path / "t" / f"qwenref-{os.getuid()}"
    third.folder.parent.rename(tmp_path / "elsewhere")
    third.folder.parent.symlink_to(tmp_path / "elsewhere")  # planted by whoever else writes there
    assert fresh_store() is None


def test_a_user_without_a_home_keeps_kernels_in_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_store: Callable[[], compiled.Store | None]
) -> None:
    """Nobody's process in a container: no $HOME, no entry in the passwd file; the second process finds the same."""

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = fresh_store()
    assert store is not None and store == fresh_store()
    assert store.folder.parent.parent == tmp_path and store.folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.chdir(tmp_path)  # what is unpacked here is the user's own too
    assert fresh_store() is None
