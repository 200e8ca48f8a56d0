"""How many cores there are for us."""

from __future__ import annotations

import os

SHARE = "QWENREF_CORES"  # a variable: at most so many of them, where several processes share a machine


def cores() -> int:
    """How many this process may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(SHARE, "")[:9]
    return min(there, int(share)) if share.isascii() and share.isdigit() and int(share) else there
