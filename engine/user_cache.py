"""Where the user's own cache lies: pulled models and compiled kernels are kept below it."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """$XDG_CACHE_HOME/qwenref, else ~/.cache/qwenref; None for a user without a home, as in many a container.

    A relative $XDG_CACHE_HOME counts as unset (XDG Base Directory Specification 0.8).
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "qwenref"
    except RuntimeError:  # neither $HOME nor an entry of the user's
        return None
