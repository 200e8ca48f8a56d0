"""Renders one chat template: the program of a process of its own, which chat.py starts. JSON in, JSON out.

A template is a stranger's program. Here it may do all that it may do in Hugging Face Transformers, in the same Jinja
sandbox; what no sandbox bounds, the system does: processor time, memory, files, processes (`limit`).
Nothing of this project is imported, so that the process is up while its caller still reads the vocabulary.
"""

from __future__ import annotations

import codecs
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

if __name__ == "__main__":  # started with the standard library alone (-I -S); the caller names the folders of Jinja
    sys.path += sys.argv[1:]

# What Jinja and Python import when it is first needed is imported now: later no file opens.
import pprint  # noqa: F401
import textwrap  # noqa: F401

import jinja2
import jinja2.constants
import jinja2.debug
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # not on Windows: the caller's limits of time and output remain
    resource = None  # type: ignore[assignment]

for codec in ("ascii", "latin-1", "unicode-escape"):  # the last reads every quoted string of a template
    codecs.lookup(codec)

PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))  # Unicode 15, section 23.5


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says, for whoever trains on it. Here its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's, without attributes that begin with an underscore."""

    def __init__(*args: Any, **attributes: Any) -> None:  # as Jinja's: an attribute may be called self
        for name in dict(*args[1:], **attributes):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r} begins with an underscore")


class Dict:
    """What templates know as `dict`: it makes dicts, and has nothing of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """Jinja as Transformers 5 sets it up for chat templates (transformers/utils/chat_template_utils.py).

    now: the time that strftime_now tells.
    """

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        return now.strftime(format)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = tojson
    env.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return env


class UnclearError(Exception):
    """Which control tokens are the template's own cannot be told."""


def own_tokens(
    render: Callable[[Any], str], said: Any, control: list[str], literals: Iterable[str]
) -> tuple[str, list[list[int]]]:
    """(what is rendered of what the user said, [start, end] of each control token in it that the template wrote).

    The user's text is rendered a second time with the characters that begin and end control tokens exchanged for
    private-use ones. Where that, exchanged back, is the first text, a control token still whole in it is the
    template's, whatever it has cut, trimmed or joined. literals: strings of the template's; those that it may look
    for in a message (</think>) stay as they are, so that it finds them.
    Where a template looks at single characters (escape, a sort, '<' in content), the texts differ. Then the tokens of
    the second still are all that it writes itself: if the first text has the same, or has with only the user's whole
    control tokens broken, these are they. Raises UnclearError.
    """
    text = render(said)
    token = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
    if not token.search(text):
        return text, []
    ends = sorted({c for t in control for c in (t[0], t[-1])})
    everything = "\0".join((text, *control, *_texts(said)))
    signs = [chr(c) for c in PRIVATE_USE if chr(c) not in everything][: len(ends)]
    if len(signs) < len(ends):
        raise UnclearError("the messages hold every private-use character, of which some are needed to tell")
    there = str.maketrans(dict(zip(ends, signs, strict=True)))
    back = str.maketrans(dict(zip(signs, ends, strict=True)))
    sought = [s for s in literals if s in everything and any(c in s for c in ends)]
    kept = re.compile(
        "|".join(re.escape(s) for s in sorted(sought, key=len, reverse=True) if not any(_touch(s, t) for t in control))
        or "(?!)"
    )

    def exchange(part: str) -> str:
        done, at = [], 0
        for found in kept.finditer(part):
            done += [part[at : found.start()].translate(there), found[0]]
            at = found.end()
        return "".join(done) + part[at:].translate(there)

    def places(where: str) -> list[list[int]]:
        return [[*found.span()] for found in token.finditer(where)]

    changed = _each(exchange, said)
    marked = text if changed == said else render(changed)
    if marked.translate(back) == text:
        return text, places(marked)
    if token.findall(text) == token.findall(marked):
        return text, places(text)
    broken = render(_each(lambda part: token.sub(lambda m: m[0][0].translate(there) + m[0][1:], part), said))
    if broken.translate(back) == text and token.findall(broken) == token.findall(marked):
        return text, places(broken)
    raise UnclearError("it takes the messages apart: a control token in them could not be told from its own")


def _each(change: Callable[[str], str], value: Any) -> Any:
    """The value with every text in it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each(change, v) for v in value]
    return {change(k): _each(change, v) for k, v in value.items()} if isinstance(value, dict) else value


def _texts(value: Any) -> Iterator[str]:
    """Every text in the value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value if isinstance(value, list) else (*value, *value.values()):
            yield from _texts(part)


def _touch(a: str, b: str) -> bool:
    """Can two strings share characters of a text?"""
    shorter = min(len(a), len(b))
    return a in b or b in a or any(a[-n:] == b[:n] or a[:n] == b[-n:] for n in range(1, shorter))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """{"text", "own"} as `own_tokens` returns them. Raises whatever a stranger's program may raise.

    request: template; said: the variables that the user gave; fixed: the others; asked: those of the user's that the
    template must know; control: all control tokens; now: ISO 8601.
    """
    env = environment(datetime.fromisoformat(request["now"]))
    program = env.from_string(request["template"])

    def render(said: dict[str, Any]) -> str:
        random.seed(0)  # `random` and `lipsum`: the same text each time
        return program.render(request["fixed"] | said)

    def literals() -> Iterator[str]:
        for constant in env.parse(request["template"]).find_all(nodes.Const):
            if isinstance(constant.value, str) and constant.value:
                yield constant.value

    known = meta.find_undeclared_variables(env.parse(request["template"])) if request["asked"] else set()
    if unknown := [name for name in request["asked"] if name not in known]:
        raise ValueError(f"it has no variable {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}")
    text, own = own_tokens(render, request["said"], request["control"], literals())
    text.encode()  # a lone surrogate is no text
    return {"text": text, "own": own}


def why(error: Exception) -> str:
    """What an exception says, whatever a template has put into it, and in which line of the template."""
    line, step = None, error.__traceback__
    while step:
        if step.tb_frame.f_code.co_filename == "<template>":
            line = step.tb_lineno
        step = step.tb_next
    if isinstance(error, MemoryError):
        says = "it takes too much memory"
    elif isinstance(error, RecursionError):
        says = "nested too deeply"
    elif isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        says = "half of a surrogate pair is no text"
    elif isinstance(error, jinja2.TemplateSyntaxError):
        says, line = error.message or "", error.lineno
    elif isinstance(error, SyntaxError):  # of the Python that Jinja makes of it, at a line of that
        says = error.msg
    else:
        try:
            says = str(error)
        except Exception:  # of an object that the template made
            says = ""
        says = says.strip() or f"it refuses the messages and gives no reason ({type(error).__name__})"
    return (f"line {line}: " if line else "") + says[:1000]


def limit(parent: int, seconds: int, memory: int) -> None:
    """From here on this process opens nothing, starts nothing, and ends with its parent or when it has had its time.

    seconds: of the processor; memory: bytes of address space.
    """
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, lambda *_: os.getppid() == parent or os._exit(1))
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + seconds
    limits = {"AS": memory, "CPU": end, "CORE": 0, "FSIZE": 0, "NOFILE": 0, "NPROC": 0}
    for kind, most in limits.items():
        number = getattr(resource, f"RLIMIT_{kind}")
        ceiling = resource.getrlimit(number)[1]
        soft = most if ceiling == resource.RLIM_INFINITY else min(most, ceiling)
        try:
            resource.setrlimit(number, (soft, ceiling if kind == "CPU" else soft))  # SIGXCPU at the soft, which tells
        except ValueError:  # macOS has RLIMIT_AS and refuses it
            if sys.platform != "darwin":
                raise


def serve() -> None:
    """A request on stdin, an answer on stdout: {"text", "own"} or {"error"}, UTF-8."""
    for gone in ("SIGINT", "SIGPIPE", "SIGXCPU"):  # the caller says what an interruption means
        if hasattr(signal, gone):
            signal.signal(getattr(signal, gone), signal.SIG_DFL)
    parent = os.getppid()
    request = json.loads(sys.stdin.buffer.read())
    limit(parent, request["seconds"], request["memory"])
    try:
        said = json.dumps(answer(request), ensure_ascii=False).encode()
        if len(said) > request["most"]:
            raise ValueError(f"it writes more than {request['most'] >> 20} MB")
    except Exception as error:
        said = json.dumps({"error": why(error)}).encode()
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing of the template's runs on, not even what Python does at the end


if __name__ == "__main__":
    serve()
