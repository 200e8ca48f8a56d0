"""The package as pip installs it: a wheel of this tree in an environment of its own, used from another folder"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import qwenref
from qwenref.engine.aliases import DEFAULT
from qwenref.engine.files.convert import convert

from .models import model

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.oracle  # pip fetches setuptools from the index, and the kernels are compiled

# Of the checkout, what is no part of the package.
APART = ("tests", "docs", "skills", "build", "dist", ".*", "*.egg-info", "__pycache__", "*.pyc")
DATA = {"py.typed", "tools/mirrors.toml", "writers/qwenref_dump.h", "writers/qwenref_dump.rs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip install` does it, from a copy: nothing is left in the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*APART))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(place / "dist"),
        str(place / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stderr
    (built,) = (place / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment. The packages that ours needs are those of this one; ours is not."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place)
    paths = sysconfig.get_paths(vars={"base": str(place), "platbase": str(place)}, scheme="venv")
    python = Path(paths["scripts"]) / ("python.exe" if sys.platform == "win32" else "python")
    others = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (Path(paths["purelib"]) / "others.pth").write_text("\n".join(others) + "\n", "utf-8")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(paths["scripts"])


def said(scripts: Path, *command: str, cwd: Path) -> str:
    """What a program of the new environment prints, started in another folder."""
    alone = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")}
    found = [str(scripts / command[0]), *command[1:]]
    done = subprocess.run(found, capture_output=True, text=True, check=False, cwd=cwd, env=alone, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_that_is_needed(wheel: Path) -> None:
    """Every module but the tests', and what is read that is no module."""
    with zipfile.ZipFile(wheel) as z:
        names = {n.removeprefix("qwenref/") for n in z.namelist() if n.startswith("qwenref/")}
        (metadata,) = (n for n in z.namelist() if n.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(z.read(metadata))
        others = {n.partition("/")[0] for n in z.namelist()} - {"qwenref"}
    modules = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")}
    ours = {m for m in modules if not m.startswith(("tests/", "build/", "dist/", "."))}
    assert names == ours | DATA
    assert others == {metadata.partition("/")[0]}
    assert (facts["Name"], facts["Version"]) == ("qwenref", qwenref.__version__)
    assert facts.get_all("License-File") == ["LICENSE"] and "# qwenref" in facts.get_payload()


def test_it_runs_from_another_folder(scripts: Path, tmp_path: Path) -> None:
    version = f"qwenref {qwenref.__version__}\n"
    assert [said(scripts, name, "--version", cwd=tmp_path) for name in ("engine", "qwenref")] == [version, version]
    models = said(scripts, "python", "-m", "qwenref", "list", cwd=tmp_path)
    assert models.startswith(DEFAULT)
    at = said(scripts, "python", "-c", "import qwenref; print(qwenref.__file__)", cwd=tmp_path)
    assert Path(at).is_relative_to(scripts.parent)
    assert said(scripts, "python", "-m", "qwenref", "--help", cwd=tmp_path).startswith("usage: ")


def test_it_answers_and_speaks_json(scripts: Path, tmp_path: Path) -> None:
    """A small model, whose file lies where the command does not: the ids of this checkout's own `engine run`."""
    path = tmp_path / "model" / "tiny.gguf"
    path.parent.mkdir()
    convert(model("Q8_0"), path)
    words = ["run", str(path), "-p", "low", "-n", "4", "--json"]
    ours = subprocess.run([sys.executable, "-m", "qwenref.tools.main", *words], capture_output=True, check=True)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    report = json.loads(said(scripts, "qwenref", *words, cwd=elsewhere))
    assert report["ids"] == json.loads(ours.stdout)["ids"] and len(report["ids"]) == 4, report
    known = json.loads(said(scripts, "engine", "list", "--json", cwd=elsewhere))
    assert DEFAULT in json.dumps(known)


def test_it_computes_the_right_bits(scripts: Path, tmp_path: Path) -> None:
    """engine doctor's own model, through the installed kernels."""
    report = json.loads(said(scripts, "engine", "doctor", "--json", cwd=tmp_path))
    assert report["healthy"] is True, report
