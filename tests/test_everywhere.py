"""Nothing that Windows or macOS lacks is needed: every module, and a run from file to answer, with those names gone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from qwenref.engine.files.convert import convert

from .models import model

ROOT = Path(__file__).parents[1]

# Python's own modules and other packages know their system; they keep what they have, as copies. Then the names go, and
# only then is anything of this package imported. What only code for Linux names, by sys.platform, stays.
WITHOUT = """\
import importlib, sys
import asyncio, multiprocessing.connection, multiprocessing.context, runpy, shutil, subprocess, tempfile  # noqa
import gguf, huggingface_hub, jinja2.sandbox, llvmlite, numba, numpy, rich.progress, safetensors.numpy, tokenizers
import numba.core.caching, numba.core.ccallback
try:
    import cuda.pathfinder, numba.cuda
except ImportError:
    pass
import mmap, os, signal
from types import SimpleNamespace

GONE = {
    os: '''chown fchmod fchown fork forkpty getegid geteuid getgid getloadavg getpgid getuid kill_pg killpg lchown
        major mkfifo mknod openpty posix_fadvise posix_fallocate posix_spawn pread preadv pwrite sched_getaffinity
        sched_yield setpgid setsid sysconf statvfs uname wait3 wait4
        O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC''',
    signal: '''SIGALRM SIGCHLD SIGHUP SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGXCPU ITIMER_REAL alarm pause
        pthread_kill pthread_sigmask setitimer siginterrupt sigpending sigwait''',
    mmap: " ".join(n for n in dir(mmap) if n.startswith(("MADV_", "MAP_", "PROT_"))),
}
kept = {real: SimpleNamespace(**vars(real)) for real in GONE}
for module in list(sys.modules.values()):
    for name, value in list(vars(module).items()) if hasattr(module, "__dict__") else []:
        if any(value is real for real in GONE) and module.__name__ != "__main__":
            setattr(module, name, kept[value])
for real, names in GONE.items():
    for name in names.split():
        if hasattr(real, name):
            delattr(real, name)
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
"""

EVERY_MODULE = """
from qwenref.errors import BadInput
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.split(".")[0] in {"torch", "transformers", "llama_cpp", "cuda"}, (name, error)
    except BadInput as error:
        assert name.startswith("qwenref.engine.kernels.cuda") and "needs the package numba-cuda" in str(error), name
    print(name)
"""

COMMANDS = """
from qwenref.tools.main import main
for command in sys.argv[2].split("; "):
    sys.argv = ["engine", *command.split()]
    assert main() == 0, command
"""


def python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-P", "-c", WITHOUT + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_what_other_systems_lack() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    files = [file for package in packages for file in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")]
    modules = {".".join(("qwenref", *f.relative_to(ROOT).with_suffix("").parts)) for f in files}
    modules = {m.removesuffix(".__init__") for m in modules if not m.endswith("__main__")}
    assert set(python(EVERY_MODULE, "-", *sorted(modules)).split()) == modules


def test_a_model_runs_from_file_to_trace_without_them(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    convert(model(), path)
    commands = [
        f"run -m {path} -p Hello -n 3",
        f"trace {path} --tokens 1,2,3 --save-tensor all --save-tensor-dir {tmp_path / 'dump'}",
        f"diff {tmp_path / 'dump'} {tmp_path / 'dump'}",
    ]
    # argv[1] is where -c's own arguments begin for a process that is started again.
    python(COMMANDS, "-", "; ".join(commands))
    assert (tmp_path / "dump").is_dir()


def test_python_m_qwenref_is_the_command() -> None:
    command = [sys.executable, "-P", "-m", "qwenref", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("qwenref ")
