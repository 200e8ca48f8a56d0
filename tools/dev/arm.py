"""make arm: the CPU backend in AArch64's machine code under qemu-user: whether its digests are this machine's, and
what its kernels' tests say there.

python -m qwenref.tools.dev.arm [--formats Q4_K,Q6_K] [--tests test_cpu.py,test_simd.py] [--paths neon,plain]

Debian's or Ubuntu's arm64 Python and qemu are unpacked into build/arm, beside the package index's aarch64 wheels;
nothing is installed, and no root is needed. Kernels are compiled here for the emulated processor (elsewhere.py) and
kept where the emulated process finds them; it compiles those itself that are not there, some thirty times as slowly,
and all of them where Debian's Python is not of this one's version.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from . import arm_tests

ROOT = Path(__file__).parents[2]
HERE = ROOT / "build" / "arm"
PROCESSOR = "neoverse-n1"
OURS = ("numpy", "numba", "llvmlite", "safetensors", "gguf", "tokenizers", "pytest", "hypothesis")
OTHERS = ("jinja2", "rich", "huggingface_hub", "threadpoolctl", "pytest-timeout")
MANYLINUX = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 34)))
PATHS = ("neon", "plain")  # the first is what that processor chooses by itself
STATE = {"": "", "::lists": "/lists", "::status": "/status"}  # of an apt of our own, below its folder
STAGES = ("Q4_K", "Q5_0", "Q6_K", "Q8_0")  # of the model whose stages are compared
FORMATS = (*STAGES, "IQ4_XS")  # whose products are, each by itself

# What Linux shows on such a processor, from which LLVM knows its name; qemu-user shows the host's.
CPUINFO = """processor	: 0
BogoMIPS	: 243.75
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

"""


def apt(architecture: str, *packages: str) -> list[Path]:
    """Debian packages and what they depend on, downloaded: apt with an empty system of its own."""
    state = HERE / f"apt-{architecture}"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    settings: dict[str, object] = {f"Dir::State{of}": f"{state}{at}" for of, at in STATE.items()}
    settings |= {"Dir::Cache": state, "APT::Architecture": architecture, "APT::Architectures": architecture}
    settings |= {"APT::Sandbox::User": "root"} if os.getuid() == 0 else {}
    words = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    for command in (["update"], ["install", "--download-only", "-y", "--no-install-recommends", *packages]):
        subprocess.run([*words, *command], stdout=subprocess.DEVNULL, check=True)
    return sorted((state / "archives").glob("*.deb"))


def unpack(packages: list[Path], to: Path) -> None:
    for package in packages:
        subprocess.run(["dpkg", "-x", package, to], check=True)


def fetch() -> None:
    """What is not there yet: qemu, the arm64 Python, the wheels. A folder that is there is whole."""
    HERE.mkdir(parents=True, exist_ok=True)
    if not (HERE / "host").exists():
        own = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
        _make("host", lambda to: unpack(apt(own.strip(), "qemu-user-static"), to))
    if not (HERE / "root").exists():
        _make("root", lambda to: unpack(apt("arm64", "python3", "libstdc++6"), to))
        (HERE / "root" / "proc").mkdir(exist_ok=True)
        (HERE / "root" / "proc" / "cpuinfo").write_text(CPUINFO)
    if not (HERE / "site").exists():
        wanted = [*(f"{name}=={version(name)}" for name in OURS), *OTHERS]
        platforms = [word for platform in MANYLINUX for word in ("--platform", platform)]
        how = ["--only-binary=:all:", "--python-version", python().name.removeprefix("python"), *platforms, *wanted]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target"]
        _make("site", lambda to: subprocess.run([*pip, to, *how], check=True))
    package = HERE / "package"
    package.mkdir(exist_ok=True)
    if not (package / "qwenref").exists():
        (package / "qwenref").symlink_to(ROOT, target_is_directory=True)


def python() -> Path:
    """The arm64 Python, by the name with its version."""
    return next((HERE / "root" / "usr" / "bin").glob("python3.[0-9]*"))


def _make(name: str, fill: Callable[[Path], object]) -> None:
    print(f"fetching {name}", file=sys.stderr)
    beside = HERE / f"{name}-new"
    shutil.rmtree(beside, ignore_errors=True)
    fill(beside)
    beside.rename(HERE / name)


def environment(path: str) -> dict[str, str]:
    own = {"XDG_CACHE_HOME": str(HERE / "cache"), "NUMBA_NUM_THREADS": "1", "QWENREF_SIMD": path}
    return {"PATH": os.environ["PATH"], "HOME": str(HERE), **own}


def in_emulation(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with these words on the emulated processor, on that path ("": the one that it chooses)."""
    places = f"{HERE / 'package'}:{HERE / 'site'}"
    qemu = HERE / "host" / "usr" / "bin" / "qemu-aarch64-static"
    command: list[str | Path] = [qemu, "-cpu", PROCESSOR, "-L", HERE / "root", python(), "-P", *words]
    env = environment(path) | {"PYTHONPATH": places}
    return subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)


def emulated(path: str, *words: str) -> str:
    """What it says."""
    done = in_emulation(path, *words)
    done.check_returncode()
    return done.stdout


def native(path: str, *words: str) -> str:
    env = os.environ | environment(path)
    command = [sys.executable, "-P", *words]
    return subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def keep(path: str, kernels: list[str], jobs: int) -> None:
    """Compiles kernels (elsewhere.py) for what the emulated processor is on that path, where it looks for them."""
    told = emulated(path, "-m", "qwenref.tools.dev.elsewhere", "--describe").strip()

    def compile_(some: list[str]) -> None:
        native(path, "-m", "qwenref.tools.dev.elsewhere", "keep", told, *some)

    compile_([])  # what all of them need
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_, (kernels[i::jobs] for i in range(jobs))))


def kept() -> set[Path]:
    return {p for p in (HERE / "cache").glob("qwenref/kernels/*/*") if not p.name.startswith("new-")}


def digests(run: Callable[..., str], path: str, formats: list[str], jobs: int) -> tuple[str, dict[str, str]]:
    """The path that ran, and digests by what they are of."""
    script = str(ROOT / "tests" / "cpu_digest.py")
    wanted = [["--precision", "f32", "int8", "int16"], *(["--products", name] for name in formats)]
    with ThreadPoolExecutor(jobs) as pool:
        stages, *products = (json.loads(said) for said in pool.map(lambda words: run(path, script, *words), wanted))
    found = {f"stages, {precision}": digest for precision, digest in stages["digests"].items()}
    for name, of in zip(formats, products, strict=True):
        found |= {f"{name}, {precision}": digest for precision, digest in of.items()}
    return stages["path"], found


def run_tests(path: str, tests: list[str], jobs: int) -> int:
    """How many failed, or did not run. A process takes every so many'th, of all files."""
    before = kept()
    with ThreadPoolExecutor(jobs) as pool:
        parts = [part for i in range(jobs) if (part := tests[i::jobs])]
        runs = list(pool.map(lambda part: in_emulation(path, *arm_tests.running(part)), parts))
    found: dict[str, str] = {}
    for part, run in zip(parts, runs, strict=True):
        found |= arm_tests.outcomes(part, run.stdout)
    lines, wrong = arm_tests.summary(found)
    lines += sorted({line for run in runs for line in arm_tests.skips(run.stdout)})
    print("\n".join(lines))
    failed = [run for run in runs if run.returncode]
    for run in failed:
        print(run.stdout, file=sys.stderr)
    print(f"  {len(kept() - before)} kernels had to be compiled there", file=sys.stderr)
    return max(wrong, len(failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS), help="whose products are compared as well")
    parser.add_argument("--paths", default=",".join(PATHS), help="of the emulated processor")
    parser.add_argument("--tests", default=",".join(arm_tests.FILES), help=f"files of {arm_tests.FOLDER} ('': none)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    args = parser.parse_args()
    formats, files = ([name for name in words.split(",") if name] for words in (args.formats, args.tests))
    if unknown := [file for file in files if file not in arm_tests.FILES]:
        parser.error(f"--tests {','.join(unknown)}: there are {', '.join(arm_tests.FILES)}")
    fetch()
    from ...engine.kernels.cpu import Cpu
    from ...engine.kernels.cpu.matmul import packed

    tests, matrix = arm_tests.collected(native("", *arm_tests.collecting(files))) if files else ([], 0)
    path, wanted = digests(native, "", formats, args.jobs)
    print(f"this machine, {path}")
    kernels = [f"{name}/{precision}" for name in (*STAGES, *formats, "F32") for precision in Cpu.PRECISIONS]
    kernels += arm_tests.kernels(tests, packed.FORMATS, Cpu.PRECISIONS)
    wrong = 0
    for file in arm_tests.empty(files, tests):
        print(f"{file}: no tests")
        wrong += 1
    for path in args.paths.split(","):
        chosen = "" if path == PATHS[0] else path
        start = time.monotonic()
        keep(chosen, list(dict.fromkeys(kernels)), args.jobs)
        compiled = time.monotonic() - start
        ran, found = digests(emulated, chosen, formats, args.jobs)
        if ran != path:
            print(f"emulated {PROCESSOR} chose {ran}, not {path}")
            wrong += 1
        differ = [name for name in wanted if found.get(name) != wanted[name]]
        wrong += len(differ)
        took, same = time.monotonic() - start, len(wanted) - len(differ)
        print(f"emulated {PROCESSOR}, {ran}: {same} of {len(wanted)} digests equal", flush=True)
        print(f"  {took:.0f} s, {compiled:.0f} of them to compile here", file=sys.stderr)
        for name in wanted:
            print(f"  {name:16} {found.get(name, 'missing')[:16]} {'differs' if name in differ else 'equal'}")
        if files:
            start = time.monotonic()
            print(f"emulated {PROCESSOR}, {ran}: {len(tests)} tests", flush=True)
            wrong += run_tests(chosen, tests, args.jobs)
            print(f"  {time.monotonic() - start:.0f} s", file=sys.stderr)
    if files:
        print(f"left out: {matrix} tests marked matrix or as below")
        for name, why in arm_tests.LEFT_OUT.items():
            print(f"  {name}: {why}")
    return 1 if wrong or not wanted else 0


if __name__ == "__main__":
    sys.exit(main())
