"""Chat: messages -> ids, by the model file's own Jinja template.

A template is a stranger's program. It runs in a process of its own (chat_render.py), where the system bounds its time
and memory; what comes back is JSON, of which nothing is trusted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput

if TYPE_CHECKING:  # NumPy comes with it; a Renderer is started before
    from .tokenizer import Tokenizer

PROGRAM = Path(__file__).with_name("chat_render.py")
CPU_SECONDS = 2
WALL_SECONDS = 30.0  # where the machine is busy with other things, or knows no limit of processor time
MEMORY = 256 << 20  # bytes of address space, of which Python and Jinja take 40 million; and for each byte of a request:
MEMORY_PER_BYTE = 64
ANSWER = 8 << 20  # bytes; and for each byte of a request:
ANSWER_PER_BYTE = 16

# Names that Transformers 5 takes a message's reasoning from; templates read the first, those of gpt-oss the second.
REASONING = ("reasoning_content", "thinking", "reasoning")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is given, as by Hugging Face's apply_chat_template.

    messages: role, content, tool_calls ...; tools: JSON schemas; documents: to answer from; arguments: further
    variables (enable_thinking), which the template must know; now: the time that strftime_now tells, None the present.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    now: datetime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.messages, list) or not self.messages:
            raise BadInput("messages: a list of at least one is needed")
        for n, message in enumerate(self.messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise BadInput(f"messages: entry {n} is no object with a role (user, assistant, system, tool)")
        for name, given in (("tools", self.tools), ("documents", self.documents)):
            if given is not None and not (isinstance(given, list) and all(isinstance(g, dict) for g in given)):
                raise BadInput(f"{name}: a list of objects is needed")


class Renderer:
    """A process that renders one template once. A context: the process ends with it.

    It starts at once and gets ready beside its caller: in 0.1 s, most of which is Jinja's import.
    """

    def __init__(self) -> None:
        # -I -S: the standard library, and the two folders; nothing of the user's folder, environment or site.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), *dict.fromkeys(map(_folder_of, ("jinja2", "markupsafe")))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ},
        )

    def ask(self, request: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """What chat_render.py answers: the text, and where in it the template's own control tokens stand.

        Raises BadInput, one line, for all that can be wrong with a template or happen to its process.
        """
        sent = _json(request)
        most = ANSWER + ANSWER_PER_BYTE * len(sent)
        limits = {"seconds": CPU_SECONDS, "memory": MEMORY + MEMORY_PER_BYTE * len(sent), "most": most}
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        clock = threading.Timer(WALL_SECONDS, expire)
        clock.daemon = True
        clock.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with suppress(BrokenPipeError), self._process.stdin as pipe:  # its status says why it is gone
                pipe.write(_json(limits)[:-1] + b", " + sent[1:])
            got = self._process.stdout.read(most + 1)
        finally:
            clock.cancel()
            self._process.kill()
            status = self._process.wait()
        if len(got) > most:
            raise BadInput(f"chat template: it writes more than {most >> 20} MB")
        if got:
            return _answer(got)
        if expired.is_set():
            raise BadInput(f"chat template: it takes longer than {WALL_SECONDS:g} s")
        if hasattr(signal, "SIGXCPU") and status == -signal.SIGXCPU:
            raise BadInput(f"chat template: it takes more than {CPU_SECONDS} s of processor time")
        raise BadInput(f"chat template: its process ended with status {status}")

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def render(template: str | None, chat: Chat, special: Mapping[str, str] | None = None) -> str:
    """The conversation as the template writes it. special: bos_token and the like, by Transformers' names.

    Raises BadInput: no template, no messages, a template that is wrong, refuses them, or wants too much.
    """
    request = _request(template, chat, special or {}, [])
    with Renderer() as renderer:
        return renderer.ask(request)[0]


def chat_ids(tokenizer: Tokenizer, template: str | None, chat: Chat, renderer: Renderer | None = None) -> list[int]:
    """Ids of a conversation. Control tokens come from the template only: <|im_end|> in a message is text.

    Equal to Hugging Face's apply_chat_template where no message holds a control token (there it counts as one).
    A token is the template's if that wrote its first and its last character (chat_render.py: own_tokens). Raises
    BadInput as `render` does, and where that cannot be told of a token.
    """
    ids = {"bos": tokenizer.bos_id, "eos": next(iter(tokenizer.eos_ids), None), "pad": tokenizer.pad_id}
    special = {f"{name}_token": tokenizer.name(id) for name, id in ids.items() if id is not None}
    request = _request(template, chat, special, [*tokenizer.control])
    with renderer or Renderer() as process:
        text, own = process.ask(request)
    made, done = list[int](), 0
    for start, end in own:
        if text[start:end] not in tokenizer.control:
            raise BadInput(STRANGE)
        made += [*tokenizer.encode(text[done:start], start=done == 0), tokenizer.control[text[start:end]]]
        done = end
    return made + tokenizer.encode(text[done:], start=done == 0)


def prompt_ids(
    tokenizer: Tokenizer, template: str | None, prompt: str | Chat, renderer: Renderer | None = None
) -> list[int]:
    """The ids of a prompt. Control tokens count in a raw one, not in a message."""
    if isinstance(prompt, str):
        return tokenizer.prompt_ids(prompt)
    return chat_ids(tokenizer, template, prompt, renderer)


def _request(template: str | None, chat: Chat, special: Mapping[str, str], control: list[str]) -> dict[str, Any]:
    """What chat_render.py is asked; messages, tools and variables as apply_chat_template brings them before Jinja."""
    if not template:
        raise BadInput("the model file has no chat template: give the prompt without --chat")
    said = {"messages": [_message(m) for m in chat.messages], "tools": chat.tools, "documents": chat.documents}
    return {
        "template": template,
        "said": dict(chat.arguments) | said,
        "fixed": {**special, "add_generation_prompt": chat.add_generation_prompt},
        "asked": [name for name in ("tools", "documents") if said[name] is not None] + [*chat.arguments],
        "control": control,
        "now": (chat.now or datetime.now()).isoformat(),
    }


def _message(message: Message) -> Message:
    """Without what is None, which templates would write; its reasoning under the names that templates read."""
    said = {key: value for key, value in message.items() if value is not None}
    reasoning = next((said[name] for name in REASONING if name in said), None)
    return said if reasoning is None else {"thinking": reasoning, **said, "reasoning_content": reasoning}


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        says = "half of a surrogate pair, which is no text"
    except RecursionError:
        says = "lists or objects nested too deeply"
    except (TypeError, ValueError) as error:
        says = f"what JSON cannot: {error}"
    raise BadInput(f"the chat or its template holds {says}")


STRANGE = "chat template: its process answers what it was not asked"


def _answer(got: bytes) -> tuple[str, list[tuple[int, int]]]:
    """The checked answer of a process that ran a stranger's program. Raises BadInput, with its error if it is one."""
    try:
        said = json.loads(got)
    except (ValueError, RecursionError):
        raise BadInput(STRANGE) from None
    match said:
        case {"error": str(why)}:
            line = " ".join(why.split())
            raise BadInput("chat template: " + "".join(c if c.isprintable() else "\ufffd" for c in line)[:300])
        case {"text": str(text), "own": list(own)} if all(isinstance(o, list) and len(o) == 2 for o in own):
            places = [place for pair in own for place in pair]
            if all(type(p) is int for p in places) and [0, *places, len(text)] == sorted([0, *places, len(text)]):
                return text, [(start, end) for start, end in own]
    raise BadInput(STRANGE)


def _folder_of(package: str) -> str:
    """Where a package is installed. It is not imported to know that; relative entries of the path do not count."""
    found = PathFinder.find_spec(package, [p for p in sys.path if os.path.isabs(p)])
    if found is None or not found.submodule_search_locations:
        raise BadInput(f"--chat needs {package}: pip install {package}")
    return os.path.dirname(found.submodule_search_locations[0])
