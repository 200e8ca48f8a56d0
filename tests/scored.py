"""What the judge says of healthy dumps, counted for the tables at the end of a run (conftest.py), and asserted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from qwenref.trace.verify.finding import EXACT, REPRODUCED, VERDICTS, Verification

Score = Callable[..., None]


def count(v: Verification, table: str, row: str, score: Score, **more: int) -> None:
    """One dump more, its stages by verdict. more: other counts of it."""
    counted = Counter(f.verdict for f in v.findings)
    score(
        table, row, dumps=1, **more, stages=len(v.findings),
        **{verdict.replace(" ", "_"): counted[verdict] for verdict in VERDICTS},
    )  # fmt: skip


def healthy(v: Verification, table: str, row: str, score: Score) -> None:
    """Counts them; every one of them must be explained."""
    count(v, table, row, score)
    assert {f.verdict for f in v.findings} <= {EXACT, REPRODUCED}, [
        (f.phase, f.layer, f.stage, f.verdict, f.outside, f.worst)
        for f in v.findings
        if f.verdict not in (EXACT, REPRODUCED)
    ]
