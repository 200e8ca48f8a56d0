"""Numba's settings and compiled kernels: nothing from a working directory or from another program's shell."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwenref.cores import cores
from qwenref.engine.kernels import numba_settings
from qwenref.engine.kernels.cpu.machine import compiled
from qwenref.errors import BadInput

from ...tiny import tiny_weights, write_gguf

# Compiles, which is when Numba reads its settings again, and says what they are.
SAY = """
from qwenref.engine.kernels.cpu.machine import team
import numba, sys
from numba.core import config
assert numba.njit(lambda x: x + 1)(1) == 2
print(config.DISABLE_JIT, int(config.OPT), config.DEBUG_CACHE, config.CACHE_DIR, config.NUMBA_NUM_THREADS, sep="|")
print(numba.get_num_threads(), config.THREADING_LAYER, config.DISABLE_INTEL_SVML, "yaml" in sys.modules, sep="|")
"""


def python(program: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program that stands in a folder and imports nothing from there."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | environment
    command = [sys.executable, "-P", "-c", program]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def said(cwd: Path, **environment: str) -> list[list[str]]:
    done = python(SAY, cwd, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("|") for line in done.stdout.splitlines()]


OURS = [["0", "3", "0", "", str(cores())], [str(cores()), "workqueue", "1", "False"]]


@pytest.mark.parametrize(
    "settings",
    ["cache_dir: ./k\ndisable_jit: 1\nnum_threads: 1\nopt: 0\ndebug_cache: 1\n", "num_threads: 0", "a: [", "- a", "\0"],
)
def test_a_file_in_the_working_directory_sets_nothing(settings: str, tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text(settings)
    assert said(tmp_path) == OURS
    assert not (tmp_path / "k").exists()


def test_numba_cuda_does_not_read_it_either(tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text("a: [")
    program = "from qwenref.engine.kernels import backend; from numba import cuda; print(cuda.is_available())"
    done = python(program, tmp_path, NUMBA_ENABLE_CUDASIM="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_another_programs_variables_set_nothing(tmp_path: Path) -> None:
    foreign = {"NUMBA_DISABLE_JIT": "1", "NUMBA_OPT": "soon", "NUMBA_DEBUG_CACHE": "1", "NUMBA_DUMP_IR": "1"}
    assert said(tmp_path, **foreign, NUMBA_CACHE_LOCATOR_CLASSES="evil.Locator") == OURS


def test_the_users_own_variables_count(tmp_path: Path) -> None:
    first, second = said(tmp_path, NUMBA_NUM_THREADS="1", NUMBA_THREADING_LAYER="omp", NUMBA_CPU_NAME="")
    assert (first[4], second[0], second[1]) == ("1", "1", "omp")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NUMBA_NUM_THREADS", "many", "a number of threads, 1 to"),
        ("NUMBA_NUM_THREADS", "0", "a number of threads"),
        ("NUMBA_NUM_THREADS", "9" * 5000, "a number of threads"),
        ("NUMBA_THREADING_LAYER", "silk", "one of workqueue"),
        ("NUMBA_ENABLE_CUDASIM", "yes", "simulator"),
        ("NUMBA_CPU_NAME", "a\x1b[2J", "processor"),
    ],
)
def test_a_value_that_numba_would_stumble_over(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"^{name}=.*: give .*{says}"):
        numba_settings.settings()


def test_it_is_one_line_of_the_commands(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_weights())
    program = f"import sys; from qwenref.tools.main import main; sys.exit(main(['bench', {str(path)!r}]))"
    done = python(program, tmp_path, NUMBA_NUM_THREADS="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "engine bench: NUMBA_NUM_THREADS=many: give a number of threads, 1 to 1024, or unset it\n"


def test_the_environment_is_left_as_it_was(tmp_path: Path) -> None:
    program = (
        "import os; before = dict(os.environ);"
        "from qwenref.engine.kernels.cpu.machine import team; import yaml; assert yaml.safe_load('a: 1') == {'a': 1};"
        "assert dict(os.environ) == before; from qwenref.engine.kernels.numba_settings import ignored; print(ignored())"
    )
    done = python(program, tmp_path, NUMBA_OPT="0", NUMBA_NUM_THREADS="1", NUMBA_CACHE_DIR="/nowhere")
    assert (done.stdout, done.stderr) == ("['NUMBA_OPT']\n", "")


# ---- what is kept


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def store(tmp_path: Path) -> compiled.Store:
    return compiled.Store(tmp_path, b"k" * 32)


def test_what_is_written_is_read(store: compiled.Store) -> None:
    store.write("a", b"code")
    assert store.read("a") == b"code" and store.read("b") is None
    store.write("a", b"")
    assert store.read("a") == b""
    assert [p.name for p in store.folder.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["empty", "short", "cut", "longer", "flipped", "bare", "swapped", "folder", "pipe"])
def test_anything_else_is_not(kind: str, store: compiled.Store) -> None:
    store.write("a", b"code of a")
    store.write("b", b"code of b")
    path = store.folder / "a"
    whole = path.read_bytes()
    changed = {
        "empty": b"",
        "short": whole[:31],
        "cut": whole[:-1],
        "longer": whole + b"x",
        "flipped": whole[:40] + bytes([whole[40] ^ 1]),
        "bare": b"code of a",
        "swapped": (store.folder / "b").read_bytes(),
    }
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(changed[kind])
    assert store.read("a") is None
    store.write("a", b"anew")  # onto a folder it cannot be: compiled again each time, without a word
    assert store.read("a") == (None if kind == "folder" else b"anew")
    assert sorted(p.name for p in store.folder.iterdir()) == ["a", "b"]


def test_another_key_or_another_version_is_not(store: compiled.Store, tmp_path: Path) -> None:
    store.write("a", b"code")
    assert compiled.Store(store.folder, b"j" * 32).read("a") is None
    shutil.copytree(store.folder, tmp_path / "other")
    assert compiled.Store(tmp_path / "other", store.key).read("a") is None


def test_a_full_disk_is_not_an_error() -> None:
    compiled.Store(Path("/dev/full/there"), b"k" * 32).write("a", b"code")


def test_the_key_is_the_users_secret(tmp_path: Path) -> None:
    key = compiled._key(tmp_path)
    assert key is not None and len(key) == 32 and compiled._key(tmp_path) == key
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    path = tmp_path / "key"
    assert path.stat().st_mode & 0o777 == 0o600
    for spoil in (lambda: path.chmod(0o644), lambda: path.write_bytes(key[:31]), lambda: path.write_bytes(key + b"x")):
        spoil()
        other = compiled._key(tmp_path)
        assert other not in (None, key) and other == path.read_bytes() and path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to("/dev/zero")
    assert compiled._key(tmp_path) == path.read_bytes() and not path.is_symlink()


def test_a_planted_kernel_is_not_unpickled(tmp_path: Path) -> None:
    """Everything about it is right, its folder the user's own, but for the seal; $NUMBA_CACHE_DIR even names it."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "mine"), "NUMBA_CACHE_DIR": str(tmp_path / "k")}
    program = "from qwenref.engine.kernels.cpu import rows; print(rows.add.compile())"
    first = python(program, tmp_path, **environment)
    assert (first.stdout, first.stderr) == ("True\n", "")
    (folder,) = (tmp_path / "k").iterdir()
    (tmp_path / ".numba_config.yaml").write_text(f"cache_dir: {tmp_path / 'k'}")
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[: compiled.SEAL] + pickle.dumps(Bomb(tmp_path / "canary")))
    again = python(program, tmp_path, **environment)
    assert (again.stdout, again.stderr) == ("True\n", "")
    assert not (tmp_path / "canary").exists()
    assert python(program, tmp_path, **environment).stdout == "False\n"


def test_more_threads_than_numba_was_given(tmp_path: Path) -> None:
    if cores() == 1:
        pytest.skip("one core: -t 2 is refused for another reason")
    program = "from qwenref.engine.load import set_threads; set_threads(2)"
    done = python(program, tmp_path, NUMBA_NUM_THREADS="1")
    assert done.stderr.splitlines()[-1].endswith("BadInput: 2 threads: NUMBA_NUM_THREADS=1 allows no more")
