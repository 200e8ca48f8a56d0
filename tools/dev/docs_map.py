"""Makes docs/map.md: every file of code with what its docstring says first.

python -m qwenref.tools.dev.docs_map docs/map.md
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine", "quant", "trace", "tools", "tests")
HEAD = """# Every file

Made by `python -m qwenref.tools.dev.docs_map docs/map.md` from the files' own docstrings; a test holds it to them."""


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, up to the end of its first sentence."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    line = " ".join(text.split("\n\n")[0].split())
    stops = [at for at in range(len(line)) if line[at] == "." and line[at + 1 : at + 2] in ("", " ")]
    return line[: stops[0]] if stops else line


def files() -> list[Path]:
    """The files of code, those of a folder before those of its folders."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("*.py"))
    order = {name: i for i, name in enumerate(("", *FOLDERS))}

    def key(p: Path) -> tuple[int, list[tuple[bool, str]]]:
        parts = p.relative_to(ROOT).parts
        top = parts[0] if len(parts) > 1 else ""
        return order[top], [(i < len(parts) - 1, part) for i, part in enumerate(parts)]

    return sorted(found, key=key)


def render() -> str:
    """The page. A file without a docstring has no line but its name."""
    lines, folder = [HEAD], None
    for p in files():
        inside = p.relative_to(ROOT)
        if inside.parent != folder:
            folder = inside.parent
            lines.append(f"\n## {'/' if folder == Path() else f'{folder.as_posix()}/'}")
        lines.append(f"- `{inside.name}` {first_sentence(p)}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), "utf-8")
