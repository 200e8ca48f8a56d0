"""Chat templates: Transformers' apply_chat_template (tests/golden/chat.json.gz), and hostile ones (T24 to T30)."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenref.engine.files import Vocabulary, open_checkpoint
from qwenref.engine.text import chat, chat_render
from qwenref.engine.text.chat import Chat, chat_ids, render
from qwenref.engine.text.tokenizer import Tokenizer
from qwenref.errors import BadInput

from .test_tokenizer import GOLDEN as TOKENIZER_GOLDEN
from .test_tokenizer import names, small

GOLDEN = json.loads(gzip.decompress((Path(__file__).parents[2] / "golden" / "chat.json.gz").read_bytes()))
CONTROL = re.compile("|".join(map(re.escape, sorted(GOLDEN["control"], key=len, reverse=True))))
CHATML = GOLDEN["templates"]["chatml"]
HELLO = Chat([{"role": "user", "content": "hello"}])


@pytest.fixture(scope="module")
def vocabulary(model_path: Path) -> Vocabulary:
    found = open_checkpoint(model_path).vocabulary()
    assert found is not None
    return found


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "CPU_SECONDS", 1)


def user(content: Any) -> Chat:
    return Chat([{"role": "user", "content": content}], add_generation_prompt=False)


def answer(template: str, said: dict[str, Any], control: list[str] = GOLDEN["control"]) -> tuple[str, list[str]]:
    """As the process would answer: the text, and the control tokens in it that are the template's own."""
    asked = Chat(**{"add_generation_prompt": False} | said, now=datetime.fromisoformat(GOLDEN["now"]))
    request = chat._request(template, asked, GOLDEN["special"], control) | {"asked": []}
    made = chat_render.answer(request)
    return made["text"], [made["text"][start:end] for start, end in made["own"]]


@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_the_text_is_transformers(name: str) -> None:
    cases = [(key, made) for template, key, made in GOLDEN["cases"] if template == name]
    assert len(GOLDEN["templates"]) >= 45 and len(cases) == len(GOLDEN["chats"]) >= 10
    for key, made in cases:
        if isinstance(made, str):
            # No message here holds a control token, so all of them are the template's.
            assert answer(GOLDEN["templates"][name], GOLDEN["chats"][key]) == (made, CONTROL.findall(made))
        else:
            with pytest.raises(Exception) as error:
                answer(GOLDEN["templates"][name], GOLDEN["chats"][key])
            assert made["error"].startswith(type(error.value).__name__)


@pytest.mark.oracle
def test_the_golden_texts_are_still_transformers() -> None:
    hf = pytest.importorskip("transformers.utils.chat_template_utils", reason="needs transformers (make oracle)")
    for name, key, made in GOLDEN["cases"]:
        asked = {"add_generation_prompt": False} | GOLDEN["chats"][key]
        if name != "dates" and isinstance(made, str) and not {"arguments", "tools"} & {*asked} and key != "reasoning":
            text, _ = hf.render_jinja_template(
                [asked.pop("messages")], chat_template=GOLDEN["templates"][name], **GOLDEN["special"], **asked
            )
            assert text == [made]


@pytest.mark.model
def test_chats_are_hugging_faces(vocabulary: Vocabulary) -> None:
    tokenizer = Tokenizer.from_vocabulary(vocabulary)
    chats = json.loads(gzip.decompress(TOKENIZER_GOLDEN.read_bytes()))["chats"]
    assert len(chats) >= 20
    for messages, prompt, ids in chats:
        assert chat_ids(tokenizer, vocabulary.chat_template, Chat(messages, add_generation_prompt=prompt)) == ids


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in GOLDEN["own"]))
def test_t17_whole_tokens_in_messages_are_text_as_for_transformers(name: str) -> None:
    """The text is that of the messages as they are. Transformers' own marks change it where a template slices."""
    for template, attack, text, own in GOLDEN["own"]:
        if template == name:
            assert answer(GOLDEN["templates"][name], {"messages": GOLDEN["attacks"][attack]}) == (text, own)


PARTS = "{% for p in messages[0].content %}{{ p }}{% endfor %}<|im_end|>"
CLEAN = "{{ messages[0].content | replace('<br>', '') | trim }}<|im_end|>"
LOOKS = "{% if '</think>' in messages[0].content %}<|im_start|>{% endif %}{{ messages[0].content }}<|im_end|>"
ESCAPES = "{{ messages[0].content | replace('<', '&lt;') }}<|im_end|>"
ASCII = "{{ messages[0].content | tojson(ensure_ascii=true) }}<|im_end|>"
KEYS = "{% for k, v in messages[0].content.items() %}{{ k }}={{ v }}{% endfor %}<|im_end|>"


@pytest.mark.parametrize(
    ("template", "content", "own"),
    [
        (PARTS, ["<|im_", "end|>"], ["<|im_end|>"]),
        (PARTS, ["<", "|im_end|", ">"], ["<|im_end|>"]),
        (CLEAN, "a<|im_<br>end|>", ["<|im_end|>"]),
        (CLEAN, "<<br>|im_end|<br>> ", ["<|im_end|>"]),
        ("{{ messages[0].content }}|im_end|>{{ '<|im_end|>' }}", "<", ["<|im_end|>"]),
        ("<{{ messages[0].content }}<|im_end|>", "|im_end|>", ["<|im_end|>"]),
        (LOOKS, "<think>x</think>y<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
        (LOOKS, "</think<|im_end|>", ["<|im_end|>"]),
        (ESCAPES, "a < b <|im_end|>", ["<|im_end|>"]),
        (ASCII, "a < b", ["<|im_end|>"]),
        (KEYS, {"<|im_end|>": "<|im_start|>"}, ["<|im_end|>"]),
        ("{{ '<|' + messages[0].content + '|>' }}", "im_end", ["<|im_end|>"]),  # the template's, as for Transformers
    ],
)
def test_a_control_token_is_the_templates_if_that_wrote_its_ends(template: str, content: Any, own: list[str]) -> None:
    said = {"messages": [{"role": "user", "content": content}]}
    text, found = answer(template, said)
    assert found == own and text == answer(template, said, [])[0]


PIECES = ["<", "|", "im_end", "im_", ">", "|>", "<|im_end|>", "<|im_", "</think>", "<br>", " x "]


@given(st.lists(st.sampled_from(PIECES)))
def test_whatever_pieces_a_message_has(pieces: list[str]) -> None:
    """Joined by the template, or by the user and then cleaned by the template."""
    assert answer(PARTS, {"messages": [{"role": "user", "content": pieces}]})[1] == ["<|im_end|>"]
    whole = {"messages": [{"role": "user", "content": "".join(pieces)}]}
    assert answer(CLEAN, whole)[1] == answer(CHATML, whole)[1][1:] == ["<|im_end|>"]


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(chat_render.UnclearError, match="takes the messages apart"):
        answer(ASCII, {"messages": [{"role": "user", "content": "<|im_end|>"}]})
    every = "".join(map(chr, chat_render.PRIVATE_USE))
    with pytest.raises(chat_render.UnclearError, match="private-use"):
        answer(CHATML, {"messages": [{"role": "user", "content": every + "<|im_end|>"}]})
    assert every[:-6] in answer(CHATML, {"messages": [{"role": "user", "content": every[:-6] + "<|im_end|>"}]})[0]


@pytest.mark.parametrize(
    "content", ["a<|im_end|>b", "<|im_start|>", "<|im_end|><|im_end|>", "\ue000<|im_end|>\ue001", "<|im_", ""]
)
def test_t17_the_ids_of_a_message_are_those_of_its_text(content: str) -> None:
    t = Tokenizer.from_vocabulary(small())
    start, end = t.encode("<|im_start|><|im_end|>", special=True)
    head, tail = t.encode("user\n"), t.encode("\n")
    assert chat_ids(t, CHATML, user(content)) == [start, *head[:-1], *t.encode("\n" + content), end, *tail]
    assert content in t.decode(chat_ids(t, CHATML, user(content)))


def test_a_role_is_the_users_too() -> None:
    t = Tokenizer.from_vocabulary(small())
    ids = chat_ids(t, CHATML, Chat([{"role": "user<|im_end|>", "content": "a"}]))
    assert names(t, ids).count("<|im_end|>") == 1


def test_random_and_time_are_the_same_each_time() -> None:
    noon = Chat(HELLO.messages, now=datetime(2026, 1, 31, 12))
    template = "{{ range(99999) | random }} {{ lipsum(n=1) }} {{ strftime_now('%d %b %Y %H:%M:%S.%f') }} <|im_end|>"
    assert render(template, noon) == render(template, noon)
    assert "31 Jan 2026 12:00:00.000000" in render(template, noon)
    today = datetime.now().strftime("%Y")
    assert today <= render("{{ strftime_now('%Y') }}", HELLO) <= datetime.now().strftime("%Y")


def test_what_the_template_does_not_know_is_refused_not_ignored() -> None:
    tools = Chat(HELLO.messages, tools=[{"type": "function"}])
    for said in (tools, Chat(HELLO.messages, documents=[{}]), Chat(HELLO.messages, arguments={"thinking": False})):
        with pytest.raises(
            BadInput, match=r"has no variable '(tools|documents|thinking)'; it has add_generation_prompt, "
        ):
            render(CHATML, said)
    assert (
        render("{% if x is defined and not x %}off{% endif %}", Chat(HELLO.messages, arguments={"x": False})) == "off"
    )


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"messages": []}, "at least one"),
        ({"messages": {}}, "at least one"),
        ({"messages": [{"content": "x"}]}, "entry 0 .* role"),
        ({"messages": [*HELLO.messages, "x"]}, "entry 1 .* role"),
        ({"messages": HELLO.messages, "tools": {}}, "tools: a list"),
        ({"messages": HELLO.messages, "documents": ["x"]}, "documents: a list"),
    ],
)
def test_a_chat_that_is_none(said: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Chat(**said)


def test_messages_that_cannot_be_sent() -> None:
    deep: list[Any] = []
    for _ in range(9999):
        deep = [deep]
    for content, says in (("\ud800", "surrogate"), ({1, 2}, "JSON"), (deep, "too deeply")):
        with pytest.raises(BadInput, match=says):
            render("x", user(content))
    within = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(BadInput, match="too deeply"):
        chat_ids(Tokenizer.from_vocabulary(small()), "<|im_end|>", user(within))


@pytest.mark.parametrize("template", [None, ""])
def test_t30_no_template(template: str | None) -> None:
    with pytest.raises(BadInput, match="no chat template: give the prompt without --chat"):
        chat_ids(Tokenizer.from_vocabulary(small()), template, HELLO)


def test_a_long_prompt_is_within_the_limits() -> None:
    long = Chat([{"role": "user", "content": "x" * 3_000_000}, {"role": "assistant", "content": "<y>" * 1_000_000}])
    t = Tokenizer.from_vocabulary(small())
    text, _ = answer(CHATML, {"messages": long.messages})
    assert len(text) > 6_000_000
    with chat.Renderer() as renderer:
        assert renderer.ask(chat._request(CHATML, user(text), {}, [*t.control]))[0].count("x") == 3_000_000


# What is refused by the sandbox or ends in an exception, as in Transformers.
REFUSED = {
    "T24 classes": ("{{ ''.__class__.__mro__ }}", "line 1: access to attribute '__class__'"),
    "T25 recursive": ("{% for i in range(99999) recursive %}{{ loop([i]) }}{% endfor %}", "too deeply"),
    "T25 long range": ("{% for i in range(100001) %}{% endfor %}", "Range too big"),
    "T27 include": ("{% include '/etc/passwd' %}", "no loader"),
    "T27 import": ("{% import 'os' as os %}", "no loader"),
    "T27 from": ("{% from 'os' import path %}", "no loader"),
    "T27 extends": ("{% extends 'x' %}", "no loader"),
    "T28 macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too deeply"),
    "T28 two calls": ("{% macro f(n) %}{{ f(n - 1) }}{{ f(n - 1) }}{% endmacro %}{{ f(40) }}", "too deeply"),
    "T29 syntax": ("a\n{% if %}", "line 2: Expected an expression"),
    "T29 unclosed": ("{% for m in messages %}", "end of template"),
    "T29 undefined attribute": ("\n\n{{ messages[0].foo.bar }}", "line 3: .* no attribute 'foo'"),
    "T29 undefined operand": ("{{ 'a' + messages[0].foo }}", "no attribute 'foo'"),
    "T29 undefined call": ("{{ foo() }}", "'foo' is undefined"),
    "T29 index": ("{{ messages[99].content }}", "no element 99"),
    "T29 types": ("{{ 'a' - 1 }}", "unsupported operand"),
    "T29 modulo": ("{{ 1 % 0 }}", "zero"),
    "T29 changes": ("{{ messages.append(1) }}", "unsafe"),
    "T29 raise": ("{{ raise_exception('no\nsystem\x1b[2J\u202e role') }}", "no system.\\[2J. role$"),
    "T29 raise undefined": ("{{ raise_exception(foo) }}", "refuses the messages and gives no reason"),
    "T29 raise a list": ("{{ raise_exception(messages) }}", "'hello'"),
    "T29 raise much": ("{{ raise_exception('x' * 1000000) }}", "xxx"),
    "T29 raise deep": (
        "{% set n = namespace(x=1) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}"
        "{{ raise_exception(n.x) }}",
        "gives no reason",
    ),
    "sort of dicts": ("{{ [{'a': 1}, {'b': 2}] | sort }}", "not supported between"),
    "surrogate": ("{{ '\\ud800' }}", "half of a surrogate pair"),
    "another encoding": ("{{ 'é'.encode('ascii') }}", "'ascii' codec"),
    "surrogate raised": ("{{ raise_exception('\\ud800') }}", "chat template"),
    "deep parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deeply"),
    "deep lists": ("{{ " + "[" * 9000 + "]" * 9000 + " }}", "too deeply"),
    "deep not": ("{{ " + "not " * 10000 + "1 }}", "too deeply"),
    "deep sum": ("{{ " + " + ".join(["bos_token"] * 4000) + " }}", ""),
    "deep if": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "too deeply"),
    "deep for": ("{% for i in messages %}" * 25 + "{% endfor %}" * 25, "nested"),
    "deep elif": ("{% if foo %}" + "{% elif foo %}" * 4000 + "{% endif %}", ""),
    "deep attributes": ("{{ messages" + ".a" * 20000 + " }}", ""),
    "break outside a loop": ("{% break %}", "outside loop"),
    "huge integer": ("{{ " + "9" * 60000 + " }}", "4300 digits"),
}
GROW = "{% set n = namespace(x=START) %}{% for i in range(40) %}{% set n.x = STEP %}{% endfor %}{{ n.x | length }}"
BIG = "{% set n = namespace(x='a') %}{% for i in range(20) %}{% set n.x = n.x + n.x %}{% endfor %}"
# What would take all memory.
MEMORY = {
    "T26 times": "{{ 'a' * 2000000000 }}",
    "T26 percent": "{{ '%2000000000d' % 1 }}",
    "T26 format": "{{ '{:2000000000}'.format(1) }}",
    "T26 format filter": "{{ '%1000000000d' | format(1) }}",
    "T26 center": "{{ 'a' | center(2000000000) }}",
    "T26 ljust": "{{ 'a'.ljust(2000000000) }}",
    "T26 zfill": "{% set n = namespace(strip=''['zfill']) %}{{ n.strip(2000000000) }}",
    "T26 to_bytes": "{{ (1).to_bytes(2000000000) }}",
    "T26 doubling": GROW.replace("START", "'a'").replace("STEP", "n.x + n.x"),
    "T26 doubling ~": GROW.replace("START", "'a'").replace("STEP", "n.x ~ n.x"),
    "T26 adding lists": GROW.replace("START", "messages").replace("STEP", "n.x + n.x"),
    "T26 lists": "{{ ([[1] * 10000] * 100000) | map('list') | list | length }}",
    "T26 slices": BIG + "".join(f"{{% set a{i} = n.x[1:] %}}" for i in range(500)),
    "T26 upper": BIG + "".join(f"{{% set a{i} = n.x | upper %}}" for i in range(500)),
    "T26 join": "{% if range(99999) | join('" + "a" * 60000 + "') %}{% endif %}",
    "T26 indent": "{{ messages | tojson(indent=2000000000) }}",
    "T25 text": "{% for i in range(99999) %}" + "y" * 60000 + "{% endfor %}",
}
# What would take for ever.
TIME = {
    "T25 loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "T25 x in range": "{% set r = range(99999) %}{% for i in r if 1.5 in r %}{% endfor %}",
    "T26 power": "{{ 9 ** (9 ** 9) }}",
    "T26 lipsum": "{{ lipsum(n=1000000) }}",
    "T26 nested lists": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
}
# What looks dangerous and is not: as Transformers renders it.
HARMLESS = {
    "T24 items": ("{{ ''['__class__'] }}", ""),
    "T24 list": ("{{ messages.__class__ }}", ""),
    "T24 globals": ("{{ raise_exception.__globals__ }}", ""),
    "T26 int": ("{{ ('9' * 10000000) | int }}", "0"),
    "T26 long date": ("{{ strftime_now('%%' * 51) }}", "%" * 51),
    "T26 strip": ("{% set n = namespace(x='ab') %}{{ (n.x * 1000).strip(n.x * 1000) }}", ""),
    "T29 undefined": ("a{{ foo }}b", "ab"),
    "T29 prints a list": ("{{ messages }}", "[{'role': 'user', 'content': 'hello'}]"),
    "itself": (
        "{% set n = namespace(x=1) %}{% set n.x = n %}{{ n }}",
        "<Namespace {'x': <Namespace {...}>}>",
    ),
    "a long template": ("x" * 3_000_000, "x" * 3_000_000),
}


def line_of(template: str) -> str:
    with pytest.raises(BadInput) as error:
        render(template, HELLO)
    line = str(error.value)
    assert line.startswith("chat template: ") and line.isprintable() and len(line) < 330
    return line


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_template_is_one_line(name: str) -> None:
    template, says = REFUSED[name]
    assert re.search(says, line_of(template))


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_bounded(name: str) -> None:
    assert "memory" in line_of(MEMORY[name]) or "processor time" in line_of(MEMORY[name])


@pytest.mark.parametrize("name", TIME)
def test_time_is_bounded(name: str, one_second: None) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert re.search(r"processor time|too much memory", line_of(TIME[name]))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.5


@pytest.mark.parametrize("name", HARMLESS)
def test_what_looks_dangerous_and_is_not(name: str) -> None:
    template, text = HARMLESS[name]
    assert render(template, HELLO) == text


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "ANSWER", 1 << 20)
    assert "writes more than" in line_of("{{ 'x' * 5000000 }}")


def test_the_memory_that_the_process_takes() -> None:
    """Counted by the system, over the whole of its life."""
    program = (
        "import resource, sys; from qwenref.engine.text.chat import *\n"
        "for t in sys.argv[1:]:\n"
        "    try: render(t, Chat([{'role': 'user', 'content': 'x'}]))\n"
        "    except BadInput: print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    bombs = [MEMORY[name] for name in ("T26 doubling", "T26 adding lists", "T26 upper")]
    done = subprocess.run([sys.executable, "-c", program, *bombs], capture_output=True, text=True, check=True)
    kilobytes = [int(word) for word in done.stdout.split()]
    assert len(kilobytes) == 3 and max(kilobytes) << 10 < chat.MEMORY + (1 << 20)


def test_the_process_ends_with_its_caller(tmp_path: Path) -> None:
    """Killed, so that it cannot end it; and long before the time is up."""
    program = (
        "from qwenref.engine.text import chat\n"
        "chat.CPU_SECONDS = 60\n"
        "r = chat.Renderer(); print(r._process.pid, flush=True)\n"
        f"r.ask(chat._request({TIME['T25 x in range']!r}, chat.Chat([{{'role': 'user'}}]), {{}}, []))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        child = int(caller.stdout.readline())
        time.sleep(0.5)
        os.kill(child, 0)
        caller.kill()
    for _ in range(100):
        time.sleep(0.1)
        try:
            if Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return  # ended; nobody here collects orphans
        except FileNotFoundError:
            return
    os.kill(child, signal.SIGKILL)
    pytest.fail("it runs on")


PROGRAM = f"""import sys
sys.path = [{str(chat.PROGRAM.parent)!r}, *sys.path, *sys.argv[1:]]
import chat_render, json, os
"""
ESCAPED = """request = json.loads(sys.stdin.buffer.read())
import socket
handles = sorted(os.listdir("/proc/self/fd"))
chat_render.limit(os.getppid(), request["seconds"], request["memory"])
found = []
for attempt in (lambda: open("/etc/passwd"), lambda: open("x", "w"), socket.socket, lambda: os.listdir(".")):
    try:
        found.append(repr(attempt()))
    except OSError as error:
        found.append(os.strerror(error.errno))
flags = [sys.flags.isolated, sys.flags.no_site]
print(json.dumps({"text": json.dumps([found, handles, sorted(os.environ), flags]), "own": []}))
"""


def other_program(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(PROGRAM + text)
    monkeypatch.setattr(chat, "PROGRAM", path)


def test_what_a_template_that_left_the_sandbox_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    other_program(monkeypatch, tmp_path / "program.py", ESCAPED)
    found, handles, environment, flags = json.loads(render("x", HELLO))
    assert found == ["Too many open files"] * 4
    assert [h for h in handles if int(h) > 3] == []  # the fourth is listdir's own
    assert {*environment} <= {"LC_CTYPE", "LD_LIBRARY_PATH"} and flags == [1, 1]


STRANGE = {
    "nothing": ("sys.exit(3)", "ended with status 3"),
    "a signal": ("os.kill(os.getpid(), 11)", "ended with status -11"),
    "a pickle": ("import pickle; sys.stdout.buffer.write(pickle.dumps({'text': 'x', 'own': []}))", "not asked"),
    "deep": ("print('[' * 100000)", "not asked"),
    "a list": ("print('[]')", "not asked"),
    "no text": ("""print('{"text": 1, "own": []}')""", "not asked"),
    "no places": ("""print('{"text": "<|im_end|>", "own": [[0]]}')""", "not asked"),
    "places outside": ("""print('{"text": "<|im_end|>", "own": [[0, 11]]}')""", "not asked"),
    "places that turn back": ("""print('{"text": "<|im_end|>", "own": [[10, 0]]}')""", "not asked"),
    "places of no token": ("""print('{"text": "<|im_end|>", "own": [[0, 9]]}')""", "not asked"),
    "half a pair": ("""print('{"text": "\\\\ud800", "own": []}')""", "surrogate"),
    "an error that is none": ("""print('{"error": 7}')""", "not asked"),
    "for ever": ("while True: sys.stdout.write('x' * 1000000)", "writes more than"),
    "never": ("import time; time.sleep(99)", "longer than 1 s"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_nothing_that_the_process_says_is_trusted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, says = STRANGE[name]
    monkeypatch.setattr(chat, "WALL_SECONDS", 1.0 if name == "never" else 30.0)
    other_program(monkeypatch, tmp_path / "program.py", f"sys.stdin.buffer.read()\n{program}\n")
    with pytest.raises(BadInput, match=says):
        chat_ids(Tokenizer.from_vocabulary(small()), "x", HELLO)


def test_a_program_that_does_not_even_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_program(monkeypatch, tmp_path / "program.py", "sys.exit(4)")
    with pytest.raises(BadInput, match="ended with status 4"):
        render("x" * 1_000_000, HELLO)


def test_nothing_of_the_working_directory_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("jinja2", "markupsafe", "json", "re", "sitecustomize", "usercustomize", "chat_render"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    monkeypatch.setattr(sys, "path", ["", ".", *sys.path])
    assert render("{{ messages[0].content }}", HELLO) == "hello"
    assert not (tmp_path / "ran").exists()
