"""Nothing from the directory where the user stands is run: every command, in a folder where each name is a trap."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine.files.convert import convert
from qwenref.tools.main import COMMANDS

from ..models import model

OURS = {"qwenref", "engine", "quant", "tools", "trace"}
START = {"sitecustomize", "usercustomize"}
PROGRAMS = ("python", "git", "nvcc", "nvidia-smi", "ldconfig", "gcc", "cc", "ld", "objdump", "lscpu", "uname", "sh")
NAMES = {n for n in {*sys.stdlib_module_names, *packages_distributions()} | OURS | START if n.isidentifier()}


class Traps:
    """A folder of modules and programs that each write their name down when they are run."""

    def __init__(self, folder: Path, canary: Path) -> None:
        self.folder, self.canary = folder, canary
        says = f"import builtins, sys\nwith open({str(canary)!r}, 'a') as f: f.write(__name__ + chr(10))\n"
        for name in sorted(NAMES):
            (folder / f"{name}.py").write_text(says)
        for name in ("pip", "numba", "yaml", "multiprocessing"):  # a folder goes before a file
            (folder / name).mkdir()
            for file in ("__init__.py", "__main__.py"):
                (folder / name / file).write_text(says)
        for name in PROGRAMS:
            (folder / name).write_text(f"#!/bin/sh\necho {name} >> {canary}\n")
            (folder / name).chmod(0o755)
        (folder / "trap.pth").write_text(f"import os; open({str(canary)!r}, 'a').write('pth')\n")
        (folder / ".numba_config.yaml").write_text("cache_dir: ./k\ndisable_jit: 1\na: [")
        (folder / ".env").write_text("PYTHONPATH=.\n")

    def sprung(self) -> list[str]:
        return sorted(set(self.canary.read_text().split())) if self.canary.exists() else []


@pytest.fixture
def traps(tmp_path: Path) -> Traps:
    (tmp_path / "here").mkdir()
    return Traps(tmp_path / "here", tmp_path / "canary")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    convert(model(), path)
    return path


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command as pip installs it: Python looks for modules beside the script, and not in the working directory."""
    file = tmp_path_factory.mktemp("bin") / "engine"
    file.write_text("import sys\nfrom qwenref.tools.main import main\nsys.exit(main())\n")
    return [sys.executable, str(file)]


def run(traps: Traps, *command: str) -> tuple[int, str]:
    """Exit status and everything said, in the folder of traps, on a machine without a network."""
    absent = {"PYTHONPATH": "", "PYTHONSAFEPATH": "", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(traps.folder)}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(traps.canary.parent)}
    env = os.environ | absent | pip | {"QWENREF_MODELS": str(traps.canary.parent / "pulled")}
    done = subprocess.run(command, cwd=traps.folder, env=env, input="", capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def lines(path: Path, out: Path) -> Iterator[tuple[list[str], int]]:
    """Every command with work to do, and its exit status. What one of them writes, later ones read."""
    m, ids = str(path), ["--tokens", "3,4,5"]
    (out / "arrays").mkdir()
    np.save(out / "arrays" / "attn_norm.0.npy", np.zeros((3, 64), np.float32))
    yield ["run", "-m", m, "-p", "low", "-n", "2"], 0
    yield ["inspect", m, "--check"], 0
    yield ["trace", m, *ids, "--save-tensor", "all", "--save-tensor-dir", str(out / "d")], 0
    (out / "text").write_text("low and behold, the lowest of the low\n")
    yield ["eval", m, "-f", str(out / "text"), "-c", "8"], 0
    yield ["embed", m, "low", "lower"], 0
    yield ["score", m, "low"], 2
    yield ["diff", str(out / "d"), str(out / "d")], 0
    yield ["show", str(out / "d"), "--lens", "-m", m], 0
    yield ["verify", str(out / "d"), "-m", m], 0
    yield ["import", str(out / "arrays"), str(out / "i"), "-m", m, *ids], 0
    yield ["convert", m, str(out / "c.apr")], 0
    yield ["bench", m, "-p", "3", "-n", "2", "-t", "1", "-r", "1", "--precision", "f32"], 0
    yield ["compile", m], 0
    yield ["list"], 0
    yield ["completion", "bash"], 0
    yield ["pull"], 2
    yield ["doctor"], 0
    yield ["dump-hf", m, str(out / "h"), *ids], 2
    yield ["dump-llamacpp", m, str(out / "l"), *ids], 2


def test_no_command_runs_anything_from_there(traps: Traps, path: Path, script: list[str], tmp_path: Path) -> None:
    seen = set()
    for command, status in lines(path, tmp_path):
        found, said = run(traps, *script, *command)
        assert traps.sprung() == [], command
        # The two dumpers may or may not be installed; nothing else has a choice.
        assert found == status or command[0].startswith("dump-"), f"{command}: {said}"
        assert "Traceback" not in said, said
        seen.add(command[0])
    assert seen == set(COMMANDS)
    assert not (traps.folder / "k").exists()


def test_programs_that_pip_asks_are_asked_elsewhere(
    traps: Traps, script: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip says which rustc there is, and rustup's runs what a rust-toolchain.toml where it stands names."""
    (tmp_path / "path").mkdir()
    for name in ("rustc", "lsb_release", "uname"):
        (tmp_path / "path" / name).write_text(f"#!/bin/sh\npwd >> {tmp_path}/places\n")
        (tmp_path / "path" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    status, said = run(traps, *script, "pull")
    assert (status, traps.sprung()) == (2, []) and "package index: No matching distribution" in said
    assert set((tmp_path / "places").read_text().split()) == {"/"}


def test_python_m_finds_the_command_and_nothing_else_there(traps: Traps, path: Path) -> None:
    """Python itself looks in the working directory for `-m`: a `qwenref` that lies there is what the user has named."""
    (traps.folder / "qwenref.py").unlink()
    for command in (["run", "-m", str(path), "-p", "low", "-n", "2"], ["pull"]):
        _, said = run(traps, sys.executable, "-m", "qwenref.tools.main", *command)
        assert traps.sprung() == [], said


def test_our_processes_run_our_own_tree(tmp_path: Path) -> None:
    """One that is found only where the user stands is not looked for again: its neighbours would be found with it."""
    (tmp_path / "qwenref").symlink_to(Path(__file__).parents[2], target_is_directory=True)
    (tmp_path / "inspect.py").write_text("print('trap')")
    program = (
        "import pathlib, subprocess, sys;"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'qwenref' not in f.__module__]; sys.path.insert(0, '');"
        "from qwenref.child import own_process;"
        "subprocess.run(own_process('inspect', 'qwenref', '--details'))"  # says where it found the module
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"Origin: {tmp_path / 'qwenref' / '__init__.py'}" in done.stdout.splitlines()
    assert "trap" not in done.stdout


def test_make_stays_in_its_own_folder(tmp_path: Path) -> None:
    """Elsewhere, .venv/bin/python would be another's."""
    makefile = Path(__file__).parents[2] / "Makefile"
    # A make that runs these tests would have another's say that it is one inside another.
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    elsewhere = ["make", "-n", "-f", str(makefile), "lint"]
    done = subprocess.run(elsewhere, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and "make -C FOLDER" in done.stderr
    done = subprocess.run(
        ["make", "-n", "-C", str(makefile.parent), "lint"], capture_output=True, text=True, check=True
    )
    assert ".venv/bin/ruff check" in done.stdout
