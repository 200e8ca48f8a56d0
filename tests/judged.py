"""A command run inside this process: all that it writes is caught, what it takes is limited, and what it did is judged.

What every command promises, whatever it is given: an exit status that it documents; on stderr a few lines, of which the
last says why where the status is 2; nothing of Python's or a library's; no character that a terminal would obey; JSON
that any parser reads; nothing half-written; an answer soon, and in little memory.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from qwenref.tools.main import main

try:
    import resource
except ImportError:  # on Windows: no limits, all else is judged
    resource = None  # type: ignore[assignment]

SECONDS = 20.0  # of processor time, its children's too; a healthy tiny model takes 0.3, one where all is wrong 7
MEMORY = 256 << 20  # bytes held at once beyond what this process holds anyhow
ADDRESSES = 2 << 30  # bytes of address space beyond what it has: nothing can ask for more, be it ever so hidden
LINES = 20  # on stderr
WIDE = 4000  # characters of such a line

# C0 but line feed and tab, DEL, C1; what turns the direction of text, or breaks a line where a terminal does not.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NOTHING = b": nothing could be judged; the report says why\n"  # of engine verify, with status 2 and a report
# Hostile names hold this behind a line feed, or in a tag: no line and no element may be a file's.
FORGED = "FORGED"


class OutOfTime(BaseException):
    """The command has used up its processor time."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command did. crash: the traceback of what came out of `main`; warned: what was said through warnings."""

    argv: tuple[str, ...]
    status: int | None
    out: bytes
    err: bytes
    crash: str
    warned: tuple[str, ...]
    seconds: float
    memory: int


def run(argv: Sequence[str], stdin: bytes = b"") -> Done:
    """The command's `main`, with its streams caught below Python, where C libraries write too."""
    status: int | None = None
    crash = ""
    with caught(stdin) as streams, warned() as said, limited() as used:
        try:
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except OutOfTime:
            crash = "it takes too long\n" + traceback.format_exc()
        except BaseException:
            crash = traceback.format_exc()
    return Done(tuple(argv), status, streams[0], streams[1], crash, tuple(said), *used)


@contextmanager
def caught(stdin: bytes) -> Iterator[list[bytes]]:
    """Descriptors 1 and 2, and Python's streams on them, are temporary files; yields what is in them afterwards."""
    found: list[bytes] = []
    kept = sys.stdin, sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        descriptors = [os.dup(n) for n in (1, 2)]
        for n, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), n)
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        try:
            yield found
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(ValueError, OSError):
                    stream.close()
            sys.stdin, sys.stdout, sys.stderr = kept
            for n, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, n)
                os.close(descriptor)
            for file in (out, err):
                file.seek(0)
                found.append(file.read())


@contextmanager
def warned() -> Iterator[list[str]]:
    """All warnings are kept, also those that `main` would have ignored: they are a library's surprise at a value."""
    said: list[str] = []
    options = sys.warnoptions
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sys.warnoptions = ["always"]
        try:
            yield said
        finally:
            sys.warnoptions = options
            told = (f"{Path(w.filename).name}:{w.lineno}: {w.category.__name__}: {w.message}" for w in found)
            said += [line for line in told if "unclosed <socket" not in line]  # urllib's, when an answer is no HTTP


@contextmanager
def limited() -> Iterator[list[Any]]:
    """Bounds processor time and address space; yields (seconds, bytes) that were used."""
    used: list[Any] = []
    if resource is None:
        yield used
        used += [0.0, 0]
        return

    def expire(number: int, frame: object) -> None:
        raise OutOfTime

    before = memory("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if size := memory("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, limits[1]))
    handler = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)
    start = processor_time()
    try:
        yield used
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        used += [processor_time() - start, max(0, memory("VmHWM") - before)]


def processor_time() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def memory(field: str) -> int:
    """Bytes, by /proc/self/status; 0 where there is none."""
    with suppress(OSError), open("/proc/self/status") as status:
        return next((int(line.split()[1]) << 10 for line in status if line.startswith(field)), 0)
    return 0


# -- judging ----------------------------------------------------------------------------------------------------------

Tree = dict[str, str]


def tree(folder: Path) -> Tree:
    """Everything below a folder: its kind, and what is in it."""
    found = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)!a}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = sha256(path.read_bytes()).hexdigest()
    return found


def faults(
    done: Done, statuses: Sequence[int] = (0, 2), *, json_out: bool = False, own_text: bool = False
) -> list[str]:
    """What the command did that none may do, a line each.

    statuses: those that it documents. json_out: stdout is one JSON document. own_text: stdout is the model's own text,
    which a pipe gets exactly.
    """
    found = []
    if done.crash:
        found.append(f"crash: {done.crash.strip().splitlines()[-1]:.300}\n{done.crash}")
    elif done.status not in statuses:
        found.append(f"exit status {done.status}, which is none of {list(statuses)}")
    found += [f"warning: {line:.300}" for line in done.warned]
    if done.seconds > SECONDS:
        found.append(f"time: {done.seconds:.1f} s of processor time")
    if done.memory > MEMORY or b"not enough memory" in done.err:
        found.append(f"memory: {done.memory >> 20} MiB")
    found += of_stderr(done)
    found += of_stdout(done, json_out, own_text)
    return found


def of_stderr(done: Done) -> Iterator[str]:
    try:
        err = done.err.decode()
    except UnicodeDecodeError:
        yield f"stderr is not UTF-8: {done.err!r:.200}"
        return
    lines = err.split("\n")
    if lines.pop():
        yield f"stderr does not end with a line feed: {err!r:.200}"
    if len(lines) > LINES:
        yield f"stderr: {len(lines)} lines"
    if wide := [line for line in lines if len(line) > WIDE]:
        yield f"stderr: a line of {len(wide[0])} characters: {wide[0]!r:.200}"
    if odd := OBEYED.search(err):
        yield f"stderr: control character {odd[0]!a} in {err[max(0, odd.start() - 40) : odd.end() + 40]!r}"
    if not done.crash and any(word in err for word in ("Traceback (", "Warning:", "Exception ignored", "Error: ")):
        yield f"stderr: Python's own words: {err!r:.300}"
    said = [line for line in lines if re.match(r"engine( [a-z-]+)?: .", line)]
    if done.status == 2 and (len(said) != 1 or lines[-1] != said[0]):
        yield f"stderr: status 2, and not one line at its end that says why: {err!r:.300}"
    if any(line.lstrip().startswith(FORGED) for line in lines):
        yield f"stderr: a line that a file made up: {err!r:.300}"


def of_stdout(done: Done, json_out: bool, own_text: bool) -> Iterator[str]:
    if own_text:
        return
    if done.status == 2 and done.out and NOTHING not in done.err:
        yield f"stdout: an answer, though the status is 2: {done.out!r:.200}"
    try:
        out = done.out.decode()
    except UnicodeDecodeError:
        yield f"stdout is not UTF-8: {done.out!r:.200}"
        return
    if odd := OBEYED.search(out):
        yield f"stdout: control character {odd[0]!a} in {out[max(0, odd.start() - 40) : odd.end() + 40]!r}"
    if any(line.lstrip().startswith(FORGED) for line in out.split("\n")):
        yield f"stdout: a line that a file made up: {out!r:.300}"
    if json_out and done.status in (0, 1) and not done.crash:
        try:
            json.loads(out, parse_constant=no_number, object_pairs_hook=once)
        except ValueError as error:
            yield f"stdout: not JSON: {error}: {out!r:.200}"


def no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON's")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found
