"""A hub on this machine with the repositories that a test gives it: the endpoints that huggingface_hub asks, as
https://huggingface.co/docs/hub/api describes them, and a list of what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class SmallHub(ThreadingHTTPServer):
    """repos: by id, files by name; of each its commit, and what main is. gated: ids that ask for a log-in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.asked = 0
        self.commit = "a" * 40

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, folder: Path) -> None:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        self.repos.setdefault(repo, {}).update(files)


class Answers(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.say(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked += 1
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repo = found[1] if found else ""
        if found is None or repo not in hub.repos:
            self.say(404, b"", X_Error_Code="RepoNotFound")
        elif repo in hub.gated:
            self.say(403, b"", X_Error_Code="GatedRepo")
        elif (api[3] if api else file[2] if file else None) not in (None, "main", hub.commit):
            self.say(404, b"", X_Error_Code="RevisionNotFound")
        elif api and api[2] == "tree":
            self.json(
                [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in hub.repos[repo].items()]
            )
        elif api:
            self.json({"id": repo, "sha": hub.commit, "siblings": [{"rfilename": name} for name in hub.repos[repo]]})
        elif file:
            self.file(repo, file[3])

    def file(self, repo: str, name: str) -> None:
        body = self.server.repos[repo].get(name)
        if body is None:
            self.say(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=self.server.commit)
            return
        if self.command == "GET":
            self.server.fetched.append(name)
        self.say(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=self.server.commit)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    with SmallHub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.shutdown()
