"""make gpu: what only a card can show. Parity with the CPU and throughput, of synthetic models of real shapes.

Each section (gpu_sections.py) is a process of its own: what kills one, or takes too long, leaves the others and
its own rows so far. Results are printed as they come and kept in --json; last come the tables of docs/gpu.md. Exit
status 1: something differs; 2: there is no card to use.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...child import own_process

SECTIONS = ("card", "products", "speed", "parity", "verify")

# Section -> its table's title and columns.
HEADS = {
    "card": ("Card", "what", "value"),
    "products": (
        "Products of one token, 152064 x 3584",
        *("format", "precision", "worst error / bound", "us", "GB/s", "of read bandwidth", "target"),
    ),
    "speed": (
        "Throughput",
        *("model", "precision", "prompt of 512, tokens/s", "decode, tokens/s", "weights", "of read bandwidth"),
        "targets",
    ),
    "parity": (
        "Parity, f32: RMS of the difference over RMS, every stage of every pass",
        *("model", "against", "passes", "stages", "worst", "where", "same token", "recorded = traced", "target"),
    ),
    "verify": ("engine verify of the card's dumps", "model", "precision", "exit status", "last line"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}, a comma list")
    parser.add_argument("--models", default="0.5B,7B", help="whose shapes speed, parity and verify take")
    parser.add_argument("--layers", type=int, help="layers of the 7B's shape in parity and verify (default: all 28)")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of parity (default: 32)")
    parser.add_argument("--prompt", type=int, default=24, help="tokens of parity's prompt (default: 24)")
    parser.add_argument("--against", default="cpu", choices=("cpu", "reference"), help="parity with this backend")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where results go (default: gpu.json)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that a section may take (default: 3600)")
    args = parser.parse_args()
    sections = [s for s in SECTIONS if s in args.sections.split(",")]
    if not sections or not set(args.sections.split(",")) <= set(SECTIONS):
        parser.error(f"--sections takes some of {', '.join(SECTIONS)}")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="qwenref-gpu-") as folder:
        for section in sections:
            command = own_process(f"{__package__}.gpu_sections", section, "--folder", folder)
            for name in ("models", "layers", "steps", "prompt", "against"):
                if getattr(args, name) is not None:
                    command += [f"--{name}", str(getattr(args, name))]
            results[section] = run_section(command, section, Path(folder) / f"{section}.json", args.limit)
            args.json.write_text(json.dumps(results, indent=1) + "\n")
            if results[section]["status"] == 2:
                return 2
    for section, result in results.items():
        print(f"\n{markdown(section, result['rows'])}")
    wrong = [line for result in results.values() for line in result["wrong"]]
    seconds = sum(result["seconds"] for result in results.values())
    print(f"\n{seconds:.0f} s; " + (f"WRONG: {'; '.join(wrong)}" if wrong else "nothing differs"))
    return 1 if wrong else 0


def run_section(command: Sequence[str], section: str, file: Path, limit: float) -> dict[str, Any]:
    """rows, wrong, status and seconds of a section's process, which writes the first two to `file` as they come."""
    started, status, why = time.perf_counter(), -1, f"stopped after {limit:.0f} s"
    try:
        status = subprocess.run([*command, "--json", str(file)], timeout=limit, check=False).returncode
        why = f"ended with status {status}"
    except subprocess.TimeoutExpired:
        pass
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": [], "wrong": []}
    if status not in (0, 1):
        found["wrong"].append(f"{section}: {why}")
    return found | {"status": status, "seconds": time.perf_counter() - started}


def markdown(section: str, rows: list[list[str]]) -> str:
    title, *columns = HEADS[section]
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return "\n".join([f"### {title}", "", lines[0], "|" + "---|" * len(columns), *lines[1:]])


if __name__ == "__main__":
    sys.exit(main())
