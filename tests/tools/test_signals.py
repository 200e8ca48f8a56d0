"""Every command, ended in the middle: it dies of the signal at once, and nothing of it runs on or lies about.

The commands are real processes. Most are stopped where they have written everything and moved nothing (tests/busy.py),
`bench` where its own process works; the downloads are busy by themselves.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qwenref.beside import HIDDEN
from qwenref.engine.aliases import DEFAULT, MODELS
from qwenref.engine.files import open_checkpoint
from qwenref.engine.files.convert import convert
from qwenref.engine.kernels.cpu.machine import team
from qwenref.engine.kernels.cpu.machine.kernel import Kernel, at
from qwenref.engine.kernels.cpu.machine.simd import set_i32
from qwenref.engine.kernels.cpu.machine.work import _read
from qwenref.tools.main import main

from ..models import model
from ..tiny import tiny_weights, write_gguf

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")

BUSY = [sys.executable, str(Path(__file__).parents[1] / "busy.py")]
MOVE = "beside:Beside.move"
# command: (where it stops, its words); {} is a folder with tiny.gguf, dump/ and arrays/, DIR one to write to.
COMMANDS = {
    "run": ("engine.generate:sample", "run -m {}/tiny.gguf --backend reference -p x -n 9"),
    "inspect": ("tools.inspect_model:check", "inspect {}/tiny.gguf --check"),
    "eval": (MOVE, "eval {}/tiny.gguf --backend reference -f {}/text -c 8 --save-logits DIR/l.dat"),
    "eval --workers": (
        "tools.workers:Worker.take",
        "eval {}/tiny.gguf --backend reference -f {}/text -f {}/text -c 8 --workers 2",
    ),
    "diff": ("tools.diff_weights:tensor_rows", "diff --weights {}/tiny.gguf {}/tiny.gguf"),
    "verify": ("judging:judge", "verify {}/dump {}/tiny.gguf"),
    "verify --html": (MOVE, "verify {}/dump {}/tiny.gguf --html DIR/report.html"),
    "show": (MOVE, "show {}/dump attn_norm 1 --npy DIR/a.npy"),
    "convert": (MOVE, "convert {}/tiny.gguf DIR/again.apr"),
    "convert to a folder": (MOVE, "convert {}/tiny.gguf DIR/again/"),
    "trace": (MOVE, "trace {}/tiny.gguf --backend reference -p x --save-tensor all --save-tensor-dir DIR/dump"),
    "import": (MOVE, "import {}/arrays DIR/dump -m {}/tiny.gguf"),
    "dump-hf": (MOVE, "dump-hf {}/tiny.gguf DIR/dump -p x"),
    "dump-llamacpp": (MOVE, "dump-llamacpp {}/tiny.gguf DIR/dump -p x"),
    "bench": ("tools.bench:Bench.hear", "bench {}/silent.gguf -p 3 -n 2 -t 1 --precision f32"),
    "pull": ("-", "pull"),
    "pull from the package index": ("-", "pull"),
}
FOREIGN = {"dump-hf": "torch", "dump-llamacpp": "llama_cpp"}
SIGNALS = {"SIGINT": "python", "SIGTERM": "native", "SIGHUP": "native", "SIGKILL": "python"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    convert(model(), folder / "tiny.gguf")
    write_gguf(folder / "silent.gguf", tiny_weights())  # without a tokenizer: bench does not time a first token
    assert main(["trace", str(folder / "tiny.gguf"), "--backend", "reference", "--save-tensor", "all", "-p", "x",
                 "--save-tensor-dir", str(folder / "dump")]) == 0  # fmt: skip
    (folder / "text").write_text("low and behold, the lowest of the low\n")
    (folder / "arrays").mkdir()
    for name in ("attn_norm.0", "ffn_out.1"):
        np.save(folder / "arrays" / f"{name}.npy", np.ones((3, model().config.hidden_size), np.float32))
    return folder


@dataclass
class Stalling:
    """Answers the hub's question with 2 MiB and pip's with nothing, and never ends either."""

    url: str
    asked: threading.Event


@pytest.fixture
def server() -> Iterator[Stalling]:
    asked, over = threading.Event(), threading.Event()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/simple"):
                self.send_response(206)
                self.send_header("Content-Length", str(MODELS[DEFAULT].bytes))
                self.end_headers()
                self.wfile.write(bytes(2 << 20))
            asked.set()
            over.wait()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as hub:
        hub.daemon_threads = True
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield Stalling(f"http://127.0.0.1:{hub.server_port}", asked)
        over.set()
        hub.shutdown()


class Process:
    """A command of ours in a cache and a folder of its own, whose children can be told from all other processes."""

    def __init__(self, files: Path, folder: Path, where: str, how: str, line: str, **environment: str) -> None:
        self.mark = f"QWENREF_TEST={uuid.uuid4()}"
        words = line.replace("{}", str(files)).replace("DIR", str(folder)).split(" ")
        env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")} | environment | dict([self.mark.split("=")])
        self.process = subprocess.Popen(
            [*BUSY, where, how, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )

    def hear(self, words: bytes) -> None:
        """Waits until stderr says so, a minute at most."""
        heard, limit = b"", time.monotonic() + 60
        assert self.process.stderr is not None
        while words not in heard:
            ready, _, _ = select.select([self.process.stderr], [], [], max(0, limit - time.monotonic()))
            assert ready, f"no {words!r} so far: {heard!r}"
            more = os.read(self.process.stderr.fileno(), 4096)
            assert more, heard.decode()
            heard += more

    def running(self) -> list[str]:
        """It and its children, as far as they run."""
        found = []
        for p in Path("/proc").iterdir():
            try:
                if p.name.isdigit() and self.mark.encode() in (p / "environ").read_bytes():
                    found.append((p / "cmdline").read_text().replace("\0", " "))
            except OSError:
                pass
        return found

    def end(self, number: int) -> bytes:
        """Sends the signal; all processes must end long before they would by themselves. What stderr said since."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=20)
        assert self.process.returncode == -number
        soon(lambda: not self.running(), 5)
        return said


def soon(there: Callable[[], object], seconds: float = 60) -> None:
    """Waits until it is so."""
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit
        time.sleep(0.01)


def hidden(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if HIDDEN.fullmatch(p.name)]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.oracle if c in FOREIGN else ()) for c in COMMANDS]
)
def test_it_dies_of_the_signal_and_leaves_nothing(
    command: str, name: str, files: Path, tmp_path: Path, server: Stalling
) -> None:
    if command in FOREIGN:
        pytest.importorskip(FOREIGN[command], reason=f"{FOREIGN[command]} is not installed (make oracle)")
    where, line = COMMANDS[command]
    environment: dict[str, str] = {"HF_HUB_CACHE": str(tmp_path / "hf"), "QWENREF_MODELS": str(tmp_path / "models")}
    if command == "bench":
        environment["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME", "")  # with kernels that are compiled
    environment["HF_ENDPOINT"] = server.url if command == "pull" else "http://127.0.0.1:9"
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{server.url}/simple"}
    p = Process(files, tmp_path, where, SIGNALS[name], line, **environment)
    if where != "-":
        p.hear(b"busy")
    else:
        p.hear(b"models\n")  # where it downloads to
        assert server.asked.wait(60)
        soon(lambda: command != "pull" or any(f.stat().st_size for f in tmp_path.glob("models/*.part")))
    left = hidden(tmp_path)
    assert len(left) == (where == MOVE or "index" in command)
    said = p.end(getattr(signal, name))
    if command.startswith("pull"):  # what it has is kept, and said if there was time to
        said = re.sub(rb"^[\d,]+ bytes are there; engine pull [\w.-]+ goes on from them\n$", b"", said)
    assert said in ((b"\n", b"") if command == "run" else (b"",))
    assert b"Traceback" not in said
    if name == "SIGKILL":
        assert hidden(tmp_path) == left
        (elsewhere := tmp_path / "elsewhere").mkdir()
        cache = str(tmp_path / "cache")
        line = "import {}/arrays DIR/dump -m {}/tiny.gguf"
        done = Process(files, elsewhere, "-", "", line, XDG_CACHE_HOME=cache).process
        done.communicate(timeout=60)
        assert done.returncode == 0 and list(tmp_path.glob("cache/qwenref/making/*")) == []
    assert hidden(tmp_path) == []


def test_the_tokenizers_process_ends_with_a_killed_caller(files: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("naïve café " * 1_500_000)
    p = Process(files, tmp_path, "-", "", "run -m {}/tiny.gguf --backend reference -f DIR/long.txt")

    def tokenizes() -> bool:
        """Beyond its imports."""
        for q in Path("/proc").iterdir():
            try:
                mine = (
                    q.name.isdigit()
                    and int(q.name) != p.process.pid
                    and p.mark.encode() in (q / "environ").read_bytes()
                )
                if mine and "tools.prompt" in (q / "cmdline").read_text():
                    return int((q / "stat").read_text().rpartition(")")[2].split()[11]) > os.sysconf("SC_CLK_TCK")
            except OSError:
                pass
        return False

    soon(tokenizes)
    assert len(p.running()) == 2
    p.end(signal.SIGKILL)


def test_what_the_caller_ignores_is_ignored(files: Path, tmp_path: Path) -> None:
    """nohup, and a shell's background job."""
    for number in (signal.SIGHUP, signal.SIGINT):
        was = signal.signal(number, signal.SIG_IGN)
        try:
            p = Process(files, tmp_path, "tools.inspect_model:check", "stdin", "inspect {}/tiny.gguf --check")
        finally:
            signal.signal(number, was)
        p.hear(b"busy")
        p.process.send_signal(number)
        out, err = p.process.communicate(b"\n", timeout=60)
        assert (p.process.returncode, err) == (0, b"") and b"checked" in out


def itself(name: str, files: Path) -> list[str]:
    """A command that gets a signal from itself."""
    words = ["engine", "inspect", str(files / "tiny.gguf"), "--check"]
    told = f"import os, signal, sys; from qwenref.tools import inspect_model; sys.argv = {words!r}; "
    told += f"inspect_model.check = lambda c: os.kill(os.getpid(), signal.{name}); "
    return [sys.executable, "-c", told + "from qwenref.tools.main import main; sys.exit(main())"]


@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_a_shell_sees_the_usual_status(name: str, status: int, files: Path) -> None:
    command = shlex.join(itself(f"SIG{name}", files))
    done = subprocess.run(["bash", "-c", f"{command}; echo $?"], capture_output=True, check=False)
    assert done.stdout.decode().split() == [str(status)] and b"Traceback" not in done.stderr


def test_a_shells_loop_ends_with_the_command(files: Path) -> None:
    """Ctrl-C goes to both; the shell ends only if it sees that the command has died of it."""
    command = shlex.join([*BUSY, "tools.inspect_model:check", "native", "inspect", str(files / "tiny.gguf"), "--check"])
    loop = ["bash", "-c", f"for i in 1 2; do {command}; done; echo went on"]
    shell = subprocess.Popen(loop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert shell.stderr is not None and shell.stderr.readline() == b"busy\n"
    os.killpg(shell.pid, signal.SIGINT)
    assert shell.communicate(timeout=30) == (b"", b"") and shell.returncode == -signal.SIGINT


def test_the_first_process_of_a_container(files: Path, tmp_path: Path) -> None:
    """It is number 1 each time, and no signal's own action ends it: killed once, it must be able to write again."""
    inside = ["unshare", "-Urpf", "--mount-proc", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may make no container")
    where, words = MOVE, ["convert", str(files / "tiny.gguf"), str(tmp_path / "c.apr")]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = subprocess.Popen([*inside, *BUSY, where, "python", *words], stderr=subprocess.PIPE, env=env)
    assert first.stderr is not None and first.stderr.readline() == b"busy\n"
    first.kill()  # and with it, by --kill-child, number 1
    first.communicate()
    soon(lambda: not (tmp_path / "c.apr").exists() and len(hidden(tmp_path)) == 1)
    assert subprocess.run([*inside, *BUSY, "-", "", *words], env=env, capture_output=True, check=False).returncode == 0
    assert hidden(tmp_path) == [] and (tmp_path / "c.apr").exists()
    done = subprocess.run([*inside, *itself("SIGTERM", files)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (143, b"")


# ---- a file that is cut

CUTS = {
    "run": ("engine.load:check_precision", "run -m {}/cut.gguf --backend reference -p x -n 2"),
    "run on the CPU": ("engine.load:check_precision", "run -m {}/cut.gguf -p x -n 2"),
    "trace": (
        "engine.load:check_precision",
        "trace {}/cut.gguf --backend reference -p x --save-tensor all --save-tensor-dir DIR/d",
    ),
    "inspect": ("tools.inspect_model:check", "inspect {}/cut.gguf --check"),
    "diff": ("tools.diff_weights:tensor_rows", "diff --weights {}/cut.gguf {}/tiny.gguf"),
    "verify": ("judging:judge", "verify {}/dump {}/cut.gguf --html DIR/r.html"),
    "convert": ("engine.files.apr_writer:write_apr", "convert {}/cut.gguf DIR/again.apr"),
    "convert to a folder": ("engine.files.safetensors_writer:write", "convert {}/cut.gguf DIR/again/"),
    "import": ("tools.import_dump:written_down", "import {}/arrays DIR/dump -m {}/tiny.gguf"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="no other system says which file a fault was in")
@pytest.mark.parametrize("command", CUTS)
def test_a_file_that_is_cut_under_a_command_is_one_line(command: str, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for f in files.iterdir():
        (folder / f.name).symlink_to(f)
    file = folder / "cut.gguf"
    file.write_bytes((files / "tiny.gguf").read_bytes())
    size = 5 << 12
    if command == "import":
        (folder / "arrays").unlink()
        (folder / "arrays").mkdir()
        file, size = folder / "arrays" / "attn_norm.0.npy", 4096
        np.save(file, np.ones((300, model().config.hidden_size), np.float32))
    assert file.stat().st_size > 4 * size
    where, line = CUTS[command]
    cache = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")} if "CPU" in command else {}
    p = Process(folder, tmp_path, where, f"cut {file} {size}", line, **cache)
    out, err = p.process.communicate(timeout=300)
    assert (p.process.returncode, out) == (2, b""), (out, err)
    (said,) = err.decode().splitlines()
    assert said == (
        f"engine {line.split()[0]}: {file}: was cut to {size:,} bytes while it was being read; "
        "nothing of the result is kept"
    )
    soon(lambda: not p.running())
    assert sorted(f.name for f in tmp_path.iterdir() if f.name != "cache") == ["files"]


def test_a_file_that_is_written_to_is_told(files: Path, tmp_path: Path) -> None:
    """Also where the system does not: within a page what was cut off reads as zeros."""
    file = tmp_path / "cut.gguf"
    file.write_bytes((files / "tiny.gguf").read_bytes())
    p = Process(tmp_path, tmp_path, "engine.load:check_precision", f"cut {file} {file.stat().st_size - 4}",
                "run -m {}/cut.gguf --backend reference -p x -n 2")  # fmt: skip
    out, err = p.process.communicate(timeout=60)
    assert (p.process.returncode, out) == (2, b"")
    assert err.decode() == (f"engine run: {file}: was changed while it was being read; nothing of the result is kept\n")


def test_a_file_that_is_replaced_or_deleted_is_the_same_to_who_has_it_open(files: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for f in (file, other):
        f.write_bytes((files / "tiny.gguf").read_bytes())
    opened = open_checkpoint(file)
    other.replace(file)
    opened.check_unchanged()
    file.unlink()
    opened.check_unchanged()


# ---- a region of kernels that is told to stop


def _endless(first, last, seen, until):
    for i in range(first, last):
        set_i32(seen + 4 * i, 1)
        while _read(until) == 0:
            pass


endless = Kernel(_endless)


def _mark(first, last, seen):
    for i in range(first, last):
        set_i32(seen + 4 * i, 1)


mark = Kernel(_mark)


def test_a_region_ends_when_it_is_told_to_stop() -> None:
    """After the chunks that are in work: no other chunk is taken, nobody waits behind a barrier, no later job runs."""
    until = np.zeros(1, np.int64)
    first, second = np.zeros(1000, np.int32), np.zeros(1000, np.int32)
    jobs = [endless.job(1000, 1, at(first), at(until)), mark.job(1000, 1, at(second))]
    endless.compile(), mark.compile()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            team.run_now(*jobs)
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    try:
        thread.start()
        soon(first.any)
        team.stop()
        until[0] = 1
        thread.join(30)
        assert not thread.is_alive() and caught
        assert first.sum() <= os.cpu_count() and not second.any()
        with pytest.raises(KeyboardInterrupt):  # and nothing is computed from then on
            team.run_now(mark.job(1000, 1, at(second)))
        assert not second.any()
    finally:
        team.STOPPED[0] = 0
    team.run_now(mark.job(1000, 1, at(second)))
    assert second.all()
