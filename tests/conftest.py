"""Shared by the tests: one local Ray, and the real data where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import shared_mlflow
from hypothesis import settings
from seaweed import S3, serve
from shared_mlflow import SharedMlflow
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# What tests load is not kept for the user of this machine.
_CACHE = TemporaryDirectory(prefix="rwkvfusion-tests-cache-")
os.environ["RWKVFUSION_CACHE"] = _CACHE.name

# A package of its own, which is not installed here: see test_extension.py.
collect_ignore = ["example_package"]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Two processes run the suite: tests of a file stay together, and all files that need Ray share one Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "ray" if "local_ray" in (self.config.rootpath / file).read_text() else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


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


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`--set` values for the four models, random-initialised and small."""
    import tiny
    import tiny_sam_t5

    root = tmp_path_factory.mktemp("models")
    tiny.florence(root / "florence")
    tiny.grounding_dino(root / "dino")
    tiny_sam_t5.sam(root / "sam.pth")
    tiny_sam_t5.t5(root / "t5")
    return {
        "caption.model": str(root / "florence"),
        "caption.max_tokens": "12",
        "caption.beams": "1",
        "detect.model": str(root / "dino"),
        # Random weights are sure of nothing.
        "detect.box_threshold": "0.0",
        "detect.max_boxes": "2",
        "segment.checkpoint": str(root / "sam.pth"),
        "merge.min_predicted_iou": "0",
        "merge.min_stability": "0",
        "merge.max_area": "1",
        "text.model": str(root / "t5"),
    }


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server; processes started with its `environment` find it."""
    with serve(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty prefix on the server, which this process reaches too while the test runs."""
    import s3fs

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"{s3.url}/{uuid4().hex[:12]}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def mlflow_server(s3: S3) -> Iterator[SharedMlflow]:
    """MLflow's own server before PostgreSQL, its artifacts on S3; what is in it stays for the next test.

    Skips where there is no PostgreSQL; tests that need it are slow.
    """
    if (reason := shared_mlflow.lacking()) is not None:
        pytest.skip(reason)
    with TemporaryDirectory(prefix="shared-mlflow-") as scratch:
        # PostgreSQL runs as another than root.
        Path(scratch).chmod(0o711)
        with shared_mlflow.serve(Path(scratch), s3) as server:
            yield server
