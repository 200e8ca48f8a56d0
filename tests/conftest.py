"""Fixtures that more than one test file needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says more of the machine's load
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist's workers share the cores: each computes with its part of them. No result depends on the count."""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        import numba

        numba.set_num_threads(max(1, numba.config.NUMBA_NUM_THREADS // workers))


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
