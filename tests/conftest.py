"""Shared by the tests: one local Ray, and the real data where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the repository; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip("no real data beside the repository")
    return DATA


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need it: starting one takes seconds."""
    from rwkvfusion.pipelines.cluster import connect

    with connect(cpus=10):
        yield
