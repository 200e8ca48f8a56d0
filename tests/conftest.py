"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The 0.5B model: $QWENREF_TEST_MODEL, or what `engine pull` put into its place."""
    from qwenref.quant.errors import BadInput
    from qwenref.tools.models import resolve

    if named := os.environ.get("QWENREF_TEST_MODEL"):
        return Path(named)
    try:
        return resolve(None)
    except BadInput as error:
        pytest.skip(f"the 0.5B model is not here: {error}")
