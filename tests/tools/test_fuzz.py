"""Every command on files that are wrong in every way: an answer, or one line and status 2 (tests/judged.py says what).

Hypothesis draws the seeds of the cases, the same ones each time. By hand, as long as one likes, shared by the targets:

    QWENREF_FUZZ_SECONDS=3600 pytest -q tests/tools/test_fuzz.py
    QWENREF_FUZZ_SECONDS=600 QWENREF_FUZZ_SEED=7 pytest -q tests/tools/test_fuzz.py -k 'verify or import'

It goes on after a fault, and names each kind once in the end. One case again, by what the message begins with:

    python -c "from qwenref.tests.tools.test_fuzz import judge; judge('verify', '7/123')"
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qwenref.engine.models.heads import KINDS, POOLINGS
from qwenref.tools.convert import QUANTIZE
from qwenref.tools.main import parser_for
from qwenref.trace.stages import NAMES as STAGES

from .. import hostile_dumps as dumps
from .. import hostile_models as models
from .. import hostile_sources as sources
from ..hostile_hub import hostile_hub
from ..judged import FORGED, NOTHING, faults, run, tree
from ..mutations import NAMES, WHOLE, in_bytes, json_file, not_utf8

SECONDS = float(os.environ.get("QWENREF_FUZZ_SECONDS", "0"))
SEED = os.environ.get("QWENREF_FUZZ_SEED", "0")


@dataclass
class Case:
    """A command line, and what may come of it.

    output: what the command writes, if it is done; keeps: also if it is not; json: it answers in JSON; own_text:
    with the model's text.
    """

    argv: list[str]
    statuses: tuple[int, ...] = (0, 2)
    output: Path | None = None
    json: bool = False
    own_text: bool = False
    stdin: bytes = b""
    keeps: bool = False
    arrange: Callable[[pytest.MonkeyPatch], None] = lambda patch: None


Target = Callable[[Random, Path], Case]
TARGETS: dict[str, tuple[Target, int]] = {}  # name: what makes a case, how many cases there are of it by default


def target(count: int, *kinds: str) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Registers what makes cases; once for each kind of file, if it is given kinds."""

    def add(make: Callable[..., Case]) -> Callable[..., Case]:
        for kind in kinds:
            TARGETS[f"{make.__name__}-{kind}"] = (lambda r, at, kind=kind: make(r, at, kind)), count
        if not kinds:
            TARGETS[make.__name__] = make, count
        return make

    return add


MODELS = tuple(models.CONTAINERS)


def any_model(r: Random, at: Path, kind: str, opens: float = 0.1) -> Path:
    """opens: how many of them have nothing odd but values, so that what computes sees them."""
    formats = r.choice(("F32", "F32", "Q8_0", "F16"))
    if formats == "Q8_0" and kind == "folder":
        formats = "F16"
    return models.CONTAINERS[kind](r, at / f"m.{kind}", formats, r.random() < opens)


def flags(r: Random, *some: str) -> list[str]:
    return [flag for flag in some if r.random() < 0.4]


# -- the commands -----------------------------------------------------------------------------------------------------


@target(300, *MODELS)
def inspect(r: Random, at: Path, kind: str) -> Case:
    argv = ["inspect", str(any_model(r, at, kind)), *flags(r, "--check", "--tensors", "--json")]
    return Case(argv, json="--json" in argv)


@target(60)
def inspect_unknown(r: Random, at: Path) -> Case:
    return Case(["inspect", str(models.unknown(r, at / "m"))])


@target(220, *MODELS)
def convert(r: Random, at: Path, kind: str) -> Case:
    source = any_model(r, at, kind)
    output = at / r.choice(("out.gguf", "out.apr", "out"))
    argv = ["convert", str(source), str(output)]
    if r.random() < 0.25:
        argv += ["--quantize", r.choice(QUANTIZE)]
    if r.random() < 0.1:
        argv.append("--raw-ggml-codes")
    if r.random() < 0.3:  # over what is there
        shutil.copytree(models.seeds() / "m", output) if output.suffix == "" else shutil.copy(
            models.seeds() / f"m{output.suffix}", output
        )
        argv += flags(r, "--force")
    return Case(argv, output=output)


@target(100, *MODELS)
def run_ids(r: Random, at: Path, kind: str) -> Case:
    argv = ["run", str(any_model(r, at, kind, 0.6)), "-n", "3"]
    argv += ["--backend", r.choice(("reference", "reference", "cpu"))]
    if r.random() < 0.1:
        (at / "ids").write_bytes(in_bytes(r, b"1,2,3\n"))
    argv.append(f"--tokens=@{at / 'ids'}" if (at / "ids").exists() else "--tokens=1,2,3")
    return sampled(r, argv)


def sampled(r: Random, argv: list[str]) -> Case:
    """With options of engine run."""
    for flag, values in (
        ("--temp", ("0.7", "1e-9", "1e-320", "1e308")),
        ("--top-p", ("0.9", "1e-9")),
        ("--top-k", "18"),
    ):
        if r.random() < 0.3:
            argv.append(f"{flag}={r.choice(values)}")
    argv += flags(r, "--json")
    return Case(argv, json="--json" in argv, own_text="--json" not in argv)


@target(3, *MODELS)
def run_text(r: Random, at: Path, kind: str) -> Case:
    """The tokenizer in a process of its own."""
    argv = ["run", str(any_model(r, at, kind)), "--backend", "reference", "-n", "2", *prompt(r, at)]
    return sampled(r, argv)


MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": "low <|im_end|>"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ tools }}"
    "{{ documents }}",
    "{{ messages",
    "{% for x in range(99999999) %}{% endfor %}",
    "{{ raise_exception('\x1b[2J\n" + FORGED + "') }}",
    "{{ raise_exception(undefined) }}",
    "{{ ''.__class__ }}",
    "{% include 'x' %}",
    "{{ 'a' * 10**10 }}",
    "{{ 1 // 0 }}",
    "{{ messages | tojson(indent=2) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "\ud800",
    "{{ {}[[]] }}",
    "{{ strftime_now('\x00') }}",
    "{{ messages[0].content.x.y }}",
    "{{ 9 ** 9 ** 9 }}",
    "(" * 5000,
    "{{" + "(" * 5000,
)


def prompt(r: Random, at: Path) -> list[str]:
    """The prompt by argument or file; as a chat with messages, tools, documents."""
    if r.random() < 0.4:
        (at / "prompt").write_bytes(in_bytes(r, b"lo th \xe2\x80\xae"))
        text = r.choice(("lo", "", "\udcff", "\x00\x1b[2J", "\u202e", "x" * 500, " " * 300, "<|im_end|>"))
        return r.choice((["-f", str(at / "prompt")], ["-p", text], ["-f", str(at)], ["-f", "nowhere"]))
    argv = ["--chat"]
    for flag, value in (("messages", MESSAGES), ("tools", TOOLS), ("documents", [{"title": "a", "text": "b"}])):
        if flag == "messages" or r.random() < 0.4:
            (at / flag).write_bytes(json_file(r, value) if r.random() < 0.8 else not_utf8(r))
            argv += [f"--{flag}", str(at / flag)]
    if r.random() < 0.3:
        argv += ["--template-arg", r.choice(("a=1", "a", "=1", "a=NaN", "a={", "tools=[]", "\x7f=1", 'x="\\ud800"'))]
    if r.random() < 0.2:
        argv += ["--date", r.choice(("2026-01-31", "", "0001-01-01", "9999-12-31T23:59", "x\n", "\u0662026-01-31"))]
    return argv


@target(40, *MODELS)
def trace_text(r: Random, at: Path, kind: str) -> Case:
    """The tokenizer in this process; templates in one of their own."""
    model = any_model(r, at, kind)
    if r.random() < 0.3:
        model = at / "t"
        shutil.copytree(models.seeds() / "m", model)
        (model / "chat_template.jinja").write_bytes(r.choice(TEMPLATES).encode("utf-8", "surrogatepass"))
    argv = ["trace", str(model), "--payload", "--backend", "reference", *prompt(r, at), *flags(r, "--json")]
    return Case(argv, json="--json" in argv)


@target(90, *MODELS)
def trace(r: Random, at: Path, kind: str) -> Case:
    output = at / "dump"
    argv = [
        "trace",
        str(any_model(r, at, kind, 0.6)),
        "--backend",
        "reference",
        "--tokens",
        r.choice((dumps.TOKENS, "1", "271,272")),
    ]
    if r.random() < 0.7:
        argv += ["--save-tensor", r.choice(("all", "all", "attn_scores", ",".join(STAGES[:4]), "", *NAMES[:8]))]
        argv += ["--save-tensor-dir", str(output)]
        if r.random() < 0.2:
            shutil.copytree(dumps.healthy_dump()[0], output)
    if r.random() < 0.5:
        argv.append("--payload")
    for flag in ("--save-tensor-layers", "--positions"):
        if r.random() < 0.2:
            argv.append(
                f"{flag}={r.choice(('all', 'last', '0', '0..1', '1..0', '-1', '0,0', '9..9999999999', '', *NAMES[:8]))}"
            )
    if r.random() < 0.3:
        argv.append(f"--decode-steps={r.choice((0, 1, 2, 3, -1, 65535, 1 << 40, 10**30))}")
    argv += flags(r, "--json")
    return Case(argv, output=output, json="--json" in argv)


@target(24, *MODELS)
def embed(r: Random, at: Path, kind: str) -> Case:
    output = at / "v.npy"
    argv = ["embed", "-m", str(any_model(r, at, kind, 0.6)), *texts(r, at), *flags(r, "--raw", "--json")]
    if r.random() < 0.3:
        argv += ["--npy", str(output)]
        if r.random() < 0.3:
            output.write_bytes(b"before")
    if r.random() < 0.4:
        argv.append(f"--pooling={r.choice((*POOLINGS, *POOLINGS, *NAMES[:2]))}")
    return Case(argv, output=output, json="--json" in argv)


@target(40)
def score(r: Random, at: Path) -> Case:
    scoring = [name for name, kind in KINDS.items() if kind.scores is not None]
    model = models.hostile_folder(r, at / "m", opens=r.random() < 0.6, scores=r.choice(scoring))
    argv = ["score", "-m", str(model), *texts(r, at), *flags(r, "--json")]
    return Case(argv, json="--json" in argv)


def texts(r: Random, at: Path) -> list[str]:
    """One or several, mostly as ids: the tokenizer is others' case."""
    if r.random() < 0.2:
        (at / "lines").write_bytes(in_bytes(r, b"lo th\nlow\n"))
        return r.choice((["-f", str(at / "lines")], ["lo", r.choice(("", "\udcff", "\x1b[2J", "th"))]))
    ids = [dumps.TOKENS, "1", "3,3", "3", "1,2,3", "271", r.choice(("271,272", "", "1," * 300, "x"))]
    return [f"--tokens={r.choice(ids)}" for _ in range(r.choice((1, 1, 2)))] + ["--backend", "reference"]


@target(250)
def diff(r: Random, at: Path) -> Case:
    two = [
        dumps.hostile_dump(r, at / "a"),
        dumps.healthy_dump()[0] if r.random() < 0.7 else dumps.hostile_dump(r, at / "b"),
    ]
    return compared(r, two)


def compared(r: Random, two: list[Path]) -> Case:
    if r.random() < 0.5:
        two.reverse()
    argv = ["diff", *map(str, two)]
    if r.random() < 0.2:
        argv.append(f"--tolerance={r.choice(('0', '1e-3', 'nan', 'inf', '-1', '1e308', 'x', '1e-320'))}")
    if r.random() < 0.2:
        argv.append(f"--top={r.choice((0, 1, 5, -1, 10**6, 10**30))}")
    argv += r.choice(([], [], ["--json"], ["--csv"]))
    return Case(argv, (0, 1, 2), json="--json" in argv)


@target(250)
def diff_files(r: Random, at: Path) -> Case:
    bad, good = dumps.hostile_stagefile(r, at / "a")
    return compared(r, [bad, good if r.random() < 0.8 else dumps.hostile_stagefile(r, at / "b")[0]])


@target(150, *MODELS)
def diff_weights(r: Random, at: Path, kind: str) -> Case:
    case = compared(r, [any_model(r, at, kind, 0.6), models.healthy(r)])
    case.argv.append("--weights")
    return case


@target(260)
def verify(r: Random, at: Path) -> Case:
    argv = ["verify", str(dumps.hostile_dump(r, at / "d")), str(models.healthy(r))]
    return verified(r, at, argv)


def verified(r: Random, at: Path, argv: list[str]) -> Case:
    output = at / r.choice(("report.html", "a&b.html"))
    argv += flags(r, "--json")
    if r.random() < 0.3:
        argv += ["--html", str(output)]
        if r.random() < 0.3:
            output.write_text("before")
    return Case(argv, (0, 1, 2), output=output, json="--json" in argv)


@target(60)
def show(r: Random, at: Path) -> Case:
    output = at / r.choice(("a.npy", "a.html"))
    argv = ["show", str(dumps.hostile_dump(r, at / "d")), r.choice(STAGES), *r.choice(([], ["0"], ["1"], ["0..2"]))]
    if r.random() < 0.3:
        argv += ["-m", str(models.healthy(r))]
    if r.random() < 0.3:
        argv = [*argv[:2], "--lens", "-m", str(models.healthy(r))]
    for flag in ("--rows", "--columns", "--head", "--step", "--top"):
        if r.random() < 0.15:
            argv.append(f"{flag}={r.choice((':', '0', '1:3', '-1', '2..9', '', '9' * 30, *NAMES[:8]))}")
    if r.random() < 0.3:
        argv += [f"--{output.suffix[1:]}", str(output)]
        if r.random() < 0.3:
            output.write_text("before")
    argv += flags(r, "--json")
    return Case(argv, output=output, json="--json" in argv)


@target(40, *MODELS)
def verify_model(r: Random, at: Path, kind: str) -> Case:
    """A healthy dump, or one that is not, by a model that is not."""
    dump = dumps.healthy_dump()[0] if r.random() < 0.7 else dumps.hostile_dump(r, at / "d")
    two = [str(any_model(r, at, kind, 0.6)), str(models.healthy(r))]
    argv = ["verify", str(dump), "-m", two[0]]
    if r.random() < 0.3:
        argv = ["verify", str(dump), "-m", two[1], "--against", two[0]]
    return verified(r, at, argv)


@target(700)
def import_(r: Random, at: Path) -> Case:
    folder, more = dumps.hostile_arrays(r, at / "arrays")
    output = at / "dump"
    return Case(["import", str(folder), str(output), "-m", str(models.healthy(r)), *more], output=output)


@target(30, *sources.SOURCES)
def source(r: Random, at: Path, kind: str) -> Case:
    """A dump of another tool, imported, judged, compared, or explained by its names."""
    path, model = sources.SOURCES[kind](r, at / "arrays"), str(models.healthy(r))
    more, output = sources.flags(r), at / "dump"
    which = r.randrange(8)
    if which < 4:
        return Case(["import", str(path), str(output), "-m", model, *more], output=output)
    if which == 4:
        return Case(["import", str(path), "--explain", "-m", model, *more])
    if which == 5:
        return Case(["diff", str(path), str(dumps.healthy_dump()[0]), "-m", model, *more], (0, 1, 2))
    argv = ["verify", str(path), "-m", model, *more, *flags(r, "--json")]
    return Case(argv, (0, 1, 2), json="--json" in argv)


@target(25, *MODELS)
def bench(r: Random, at: Path, kind: str) -> Case:
    """Only what is refused: figures of a tiny model take as long as of a large one."""
    argv = ["bench", str(any_model(r, at, kind)), "-p", "0"]
    for flag in ("-n", "-t", "-r"):
        if r.random() < 0.3:
            argv.append(f"{flag}{r.choice((0, 1, *WHOLE[:-1], 'x', '1,x', ''))}")
    if r.random() < 0.3:
        argv += ["--precision", r.choice(("f32", "f64", "", "x", "int8,int8", "\x7f"))]
    return Case(argv + flags(r, "--json"), (2,))


ODD_NUMBERS = (
    "0",
    "1",
    "2",
    "0.5",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e-320",
    "1e400",
    "",
    "x",
    "\x7f",
    "9" * 30,
    "9" * 5000,
)
ODD_TEXTS = tuple(name for name in NAMES if "\0" not in name)
# What is written is named so that it stays where it is.
ODD_PATHS = tuple(name for name in ODD_TEXTS if "/" not in name and name != "CON")
WRITTEN = ("directory", "destination", "html", "npy", "save_tensor_dir")


def actions_of(command: str) -> list[argparse.Action]:
    """What a command's parser takes."""
    commands = next(a for a in parser_for(command)._actions if isinstance(a, argparse._SubParsersAction))
    return list(commands.choices[command]._actions)


@target(700)
def options(r: Random, at: Path) -> Case:
    """Every option of every command with odd values, on files that are well."""
    model, dump, out = str(models.healthy(r)), str(dumps.healthy_dump()[0]), "out"
    command, argv = r.choice(
        (
            ("run", ["-m", model, "--tokens=1,2,3", "-n2", "--backend=reference"]),
            (
                "trace",
                [
                    "-m",
                    model,
                    "--tokens=1,2,3",
                    "--save-tensor=attn_norm",
                    f"--save-tensor-dir={out}",
                    "--backend=reference",
                ],
            ),
            ("trace", ["-m", model, "--tokens=1,2,3", "--payload", "--backend=reference"]),
            ("embed", ["-m", model, "--tokens=1,2,3", "--backend=reference"]),
            ("score", ["-m", model, "--tokens=1,2,3", "--backend=reference"]),
            ("inspect", [model]),
            ("convert", [model, f"{out}.gguf"]),
            ("diff", [dump, dump]),
            ("diff", [model, str(models.healthy(r)), "--weights"]),
            ("show", [dump, "attn_norm", "0", "-m", model]),
            ("show", [model, "attn_norm", "0", "--tokens=1,2,3", "--backend=reference"]),
            ("verify", [f"{dump}/layer-0", "-m", model]),
            ("import", [dump, out, "-m", model]),
            ("bench", ["-m", model, "-p0"]),
            ("pull", []),
        )
    )
    actions = [a for a in actions_of(command) if a.dest not in ("help", "model", "threads")]
    for _ in range(r.choice((1, 1, 2, 3))):
        action = r.choice(actions)
        value = r.choice(
            ODD_PATHS if action.dest in WRITTEN else (*ODD_TEXTS, *ODD_NUMBERS, "all", "last", "0..1", dump, model)
        )
        if not action.option_strings:
            argv = [value if n == 0 else word for n, word in enumerate(argv)] if command != "pull" else [value]
        else:
            flag = r.choice(action.option_strings)
            argv.append(flag if action.nargs == 0 else f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}")
    if r.random() < 0.05:
        argv.append(r.choice(("--new", "-", "--", "x", "-m", "--json=1", "\x1b[2J", "--\u202e")))
    if any(word.startswith(("-h", "--h")) for word in argv) and "--html" not in " ".join(argv):
        argv = ["--new"]
    return Case([command, *argv], (0, 1, 2), at / "here", "--json" in argv, command == "run" and "--json" not in argv)


@target(120)
def pull(r: Random, at: Path) -> Case:
    """What it has so far stays, to go on from."""
    arrange = hostile_hub(r, at / "store")
    return Case(["pull", "tiny"], arrange=arrange, output=at / "store", keeps=True)


@target(2)
def doctor(r: Random, at: Path) -> Case:
    """In an odd environment; its self-test computes for a second."""
    names = ("HF_ENDPOINT", "XDG_DATA_HOME", "OMP_NUM_THREADS", "QWENREF_NEW", "NUMBA_NEW")
    said = {name: r.choice(ODD_TEXTS) for name in names} | {"QWENREF_MODELS": str(at / r.choice(ODD_PATHS))}

    def arrange(patch: pytest.MonkeyPatch) -> None:
        for name, value in said.items():
            patch.setenv(name, value)

    argv = ["doctor", *flags(r, "--json")]
    return Case(argv, (0, 1), json="--json" in argv, arrange=arrange)


# -- what each case must come to --------------------------------------------------------------------------------------


def judge(name: str, seed: object) -> None:
    """Makes a case and runs its command; raises AssertionError with all that is wrong about what it did."""
    at, r = Path(mkdtemp(prefix="qwenref-fuzz-")), Random(f"{name}/{seed}")
    try:
        with standing_in(at), pytest.MonkeyPatch.context() as patch:
            case = TARGETS[name][0](r, at)
            before = tree(at)
            case.arrange(patch)
            done = run(case.argv, case.stdin)
            answered = done.status != 2 or NOTHING in done.err or case.keeps
            found = faults(done, case.statuses, json_out=case.json, own_text=case.own_text)
            found += changes(before, tree(at), at, case, answered)
        words = " ".join(map(ascii, case.argv))
        assert not found, f"judge({name!r}, {seed!r}): engine {words:.1000}\n" + "\n".join(found)
    finally:
        shutil.rmtree(at, ignore_errors=True)


@contextmanager
def standing_in(folder: Path):
    """In an empty folder below this one: what is written by a relative name shows."""
    here = os.getcwd()
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    try:
        yield
    finally:
        os.chdir(here)


def changes(before: dict[str, str], after: dict[str, str], at: Path, case: Case, answered: bool) -> list[str]:
    """What may not have changed: nothing where there was no answer; else nothing but what the command was to write."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if case.output is not None and answered:
        own = case.output.relative_to(at).as_posix()
        changed = {name for name in changed if name != own and not name.startswith(f"{own}/")}
    found = [f"{name!a} was {'written' if name in after else 'removed'}" for name in sorted(changed)]
    found += [f"{name!a} was left behind" for name in after if "qwenref-" in Path(name).name]
    if case.output is not None and case.output.suffix == ".html" and case.output.is_file():
        page = case.output.read_text("utf-8")
        if f"<b>{FORGED}" in page or "<script>alert" in page:
            found.append("the page has an element that a file made up")
    return found


def kind_of(error: BaseException) -> str:
    """What makes two failures the same: the target's command, and what is wrong, without names and numbers."""
    text = str(error)
    frames = re.findall(r'File "[^"]*/((?:engine|trace|tools|quant)/[^"]+)", line (\d+)', text)
    first = text.split("\n")[1:2]
    return (f"{frames[-1][0]}:{frames[-1][1]} " if frames else "") + re.sub(
        r"/\S*|\d+|'[^']*'|\"[^\"]*\"", "_", "".join(first)
    )[:120]


def hunt(name: str, seconds: float, found: dict[str, str]) -> int:
    """Cases by seeds, for so long; the first failure of each kind goes into `found`. Returns their number."""
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        try:
            judge(name, f"{SEED}/{n}")
        except AssertionError as error:
            found.setdefault(kind_of(error), str(error))
        n += 1
    return n


@pytest.mark.parametrize("name", TARGETS)
def test_commands_on_hostile_files(name: str, score: Callable[..., None]) -> None:
    dumps.healthy_dump()  # what is made once is not a case's time
    count = TARGETS[name][1]
    if SECONDS:
        found: dict[str, str] = {}
        cases = hunt(name, SECONDS * count / sum(n for _, n in TARGETS.values()), found)
        score("fuzzing", name, cases=cases, kinds=len(found))
        assert not found, f"{len(found)} kinds of faults in {cases} cases\n\n" + "\n\n".join(found.values())
        return

    # Seeds: what draws each choice by itself (st.randoms) meets a third as many of the commands' answers.
    @settings(max_examples=(count + 1) // 2, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(seed=st.integers(0, 1 << 64))
    def case(seed: int) -> None:
        judge(name, seed)

    case()
