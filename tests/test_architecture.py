"""The house rules that a program can check: import arrows, no shadowed standard library, every package ships."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from qwenref.engine.weights import Layer, Weights
from qwenref.tools.dev.docs_map import files, first_sentence, render

ROOT = Path(__file__).parents[1]
CODE = ("engine", "quant", "trace", "tools", "writers")
BASE = ("beside", "child", "cores", "errors")  # of the root: they import nothing, and everybody may import them
FRONT = (
    "cost",
    "facts",
    "hooks",
    "judging",
    "lens",
    "model",
    "tracing",
)  # the front door, and what it shares with tools
FOREIGN = {"torch", "transformers", "llama_cpp"}

# who -> what it may import of this project. The longest matching prefix of a file's path rules.
FILES = {"engine/files/mapped", "engine/files/safetensors_header", "engine/files/strict_json"}  # know no model
JUDGE = {"engine/kernels/reference", "engine/config", "engine/rope", "engine/weights"}
ARROWS: dict[str, set[str]] = {
    "quant": {"quant"},
    "trace": {"trace", "quant"},
    "trace/verify": {"trace", "quant"} | JUDGE,
    "trace/sources": {"trace", "quant"} | FILES,
    "engine/config": {"engine/config", "engine/models", "engine/rope", "quant"},
    "engine/rope": {"engine/config_keys", "engine/rope", "quant"},
    "engine/models": {"engine/config_keys", "engine/models", "quant"},
    "engine/weights": {"engine/config", "engine/rope", "quant"},
    "engine/user_cache": set(),
    "engine/kernels": {"engine/kernels", "engine/weights", "engine/config", "engine/user_cache", "quant"},
    "engine/files": {"engine/files", "engine/config", "engine/models", "engine/rope", "quant"},
    "engine": {"engine", "quant"},
    **{name: set() for name in BASE},
    "writers": set(),
    **{name: {"engine", "quant", "trace", "writers", *FRONT, ""} for name in FRONT},
    "tools": {"engine", "quant", "trace", "tools", *FRONT, ""},
}


def sources() -> list[Path]:
    """All but the root's own `__init__`, which imports the front door only when it is asked for it."""
    return [ROOT / f"{name}.py" for name in (*BASE, *FRONT)] + sorted(
        p for folder in CODE for p in (ROOT / folder).rglob("*.py")
    )


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module or path inside the project, is it at module level) of every import statement."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = path.relative_to(ROOT).parent
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or "", top
                continue
            base = package
            for _ in range(node.level - 1):
                base = base.parent
            stem = base / (node.module or "").replace(".", "/")
            for alias in node.names:
                target = stem / alias.name
                found = target if (ROOT / target).with_suffix(".py").is_file() else stem
                yield "./" + found.as_posix().removeprefix("."), top


def rule(path: str, table: dict[str, set[str]]) -> set[str]:
    return table[max((p for p in table if path.startswith(p)), key=len)]


def broken_arrows(path: Path) -> list[str]:
    inside = path.relative_to(ROOT).with_suffix("").as_posix()
    allowed = rule(inside, ARROWS) | set(BASE)
    wrong = []
    for name, top in imports(path):
        if name.startswith("./"):
            target = name[2:].strip("/")
            if not any(target == a or (a and target.startswith(a)) for a in allowed):
                wrong.append(f"{inside} imports {target or 'the package root'}")
        elif name.split(".")[0] == "qwenref":
            wrong.append(f"{inside} imports {name} absolutely")
        elif name.split(".")[0] in FOREIGN and (top or not inside.startswith("tools/")):
            wrong.append(f"{inside} imports {name}" + (" at module level" if top else ""))
    return wrong


def test_arrows() -> None:
    assert [w for p in sources() for w in broken_arrows(p)] == []


@pytest.mark.parametrize(
    ("inside", "statement"),
    [
        ("quant/x.py", "from ..engine import config"),
        ("errors.py", "from .quant import tensor"),
        ("trace/x.py", "from ..engine.kernels import reference"),
        ("engine/x.py", "from ..trace.store import Dump"),
        ("engine/kernels/x.py", "from ..files import Checkpoint"),
        ("engine/files/x.py", "from ..forward import forward"),
        ("engine/models/x.py", "from ..config import Config"),
        ("engine/x.py", "from ..tools import load"),
        ("model.py", "from .tools.terminal import one_line"),
        ("engine/x.py", "from ..model import Model"),
        ("trace/x.py", "from .. import facts"),
        ("tools/x.py", "import torch"),
        ("engine/x.py", "def f():\n    import torch"),
        ("engine/x.py", "import qwenref.quant"),
    ],
)
def test_a_broken_arrow_is_seen(inside: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for p in sources():
        (tmp_path / p.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / p.relative_to(ROOT)).touch()
    (tmp_path / inside).write_text(statement)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert broken_arrows(tmp_path / inside)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by whatever way round: the strongly connected components (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(v: str) -> None:
        order[v] = low[v] = len(order)
        stack.append(v)
        for w in arrows.get(v, ()):
            if w not in order:
                visit(w)
            if w in stack:
                low[v] = min(low[v], low[w])
        if low[v] == order[v]:
            found.append(sorted(stack[stack.index(v) :]))
            del stack[stack.index(v) :]

    for v in arrows:
        if v not in order:
            visit(v)
    return [c for c in found if len(c) > 1]


def arrows_between_files() -> dict[str, set[str]]:
    """Every import of one file of this project by another, inside functions and for type checkers too."""

    def file(name: str) -> str:
        return f"{name}/__init__" if (ROOT / name / "__init__.py").is_file() else name

    files = [p.relative_to(ROOT).with_suffix("").as_posix() for p in sources()]
    return {
        path: {file(name[2:]) for name, _ in imports(ROOT / f"{path}.py") if name.startswith("./")} & set(files)
        for path in files
    }


def test_no_circles() -> None:
    assert circles(arrows_between_files()) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == [["a", "b", "c"]]


def test_numba_is_never_imported_before_its_settings() -> None:
    """engine/kernels sets it up, so whoever imports it outside imports that first, at the head of the file."""
    users = [p for p in sources() if any(name.split(".")[0] == "numba" for name, _ in imports(p))]
    outside = [p for p in users if not p.is_relative_to(ROOT / "engine" / "kernels")]
    sets_up = {p for p in outside for name, top in imports(p) if top and name.startswith("./engine/kernels")}
    assert set(outside) - sets_up == set()
    assert len(outside) < len(users)


def remembered(source: str) -> list[str]:
    """What a module would keep from call to call in itself: context variables, globals, containers that start empty."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Global) or (isinstance(node, ast.ImportFrom) and node.module == "contextvars"):
            found.append(ast.unparse(node))
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        empty = value is not None and ast.unparse(value) in {"[]", "{}"}
        made = isinstance(value, ast.Call) and ast.unparse(value.func) in {
            "dict",
            "list",
            "set",
            "defaultdict",
            "deque",
        }
        if empty or made:
            found.append(ast.unparse(node))
    return found


def test_a_backend_remembers_nothing_in_its_modules() -> None:
    """Two models live in one process: what is remembered lies in the object that `backend` makes for each."""
    assert {p: r for p in (ROOT / "engine" / "kernels").rglob("*.py") if (r := remembered(p.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    ["from contextvars import ContextVar", "def f():\n    global x", "spare: Pool = defaultdict(list)", "kept = []"],
)
def test_what_a_module_remembers_is_seen(source: str) -> None:
    assert remembered(source)


def test_every_package_ships() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(("qwenref", *p.parent.relative_to(ROOT).parts)) for p in sources()}
    assert listed == folders


def test_the_root_holds_the_front_door_only() -> None:
    assert {p.stem for p in ROOT.glob("*.py")} == {"__init__", "__main__", *BASE, *FRONT}


def test_no_standard_library_module_is_shadowed() -> None:
    """Neither from the checkout (first on the path for `-m` and `-c`) nor by a tool run as a script."""
    out = subprocess.run(
        [sys.executable, "-c", "import trace; print(trace.__file__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(out.stdout.strip()).is_relative_to(ROOT)
    assert [p for p in (ROOT / "tools").glob("*.py") if p.stem in sys.stdlib_module_names] == []
    assert [f for f in CODE if (ROOT / f / "__init__.py").exists()] == []


def test_no_catch_all_modules() -> None:
    assert [p for p in sources() if p.stem in {"utils", "util", "common", "helpers", "helper", "misc", "core"}] == []


def test_the_page_stays_a_page() -> None:
    text = (ROOT / "engine" / "forward.py").read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 60
    assert sum(isinstance(n, ast.FunctionDef) for n in ast.walk(tree)) == 1
    assert not any(isinstance(n, ast.IfExp | ast.ClassDef | ast.Match) for n in ast.walk(tree))
    optional = {f.name for node in (Layer, Weights) for f in fields(node) if f.default is None}
    asked = [ast.unparse(n.test) for n in ast.walk(tree) if isinstance(n, ast.If)]
    pieces = {a.removesuffix(" is not None").removeprefix("layer.").removeprefix("w.") for a in asked}
    assert pieces <= optional, "a piece, never a name"
    assert not any(n.orelse for n in ast.walk(tree) if isinstance(n, ast.If))


def test_the_map_of_files_is_true() -> None:
    """python -m qwenref.tools.dev.docs_map docs/map.md"""
    assert (ROOT / "docs" / "map.md").read_text("utf-8") == render()
    assert [p for p in files() if not first_sentence(p) and p.parts[-2:] != ("tests", "__init__.py")] == []


def test_the_readme_is_a_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
