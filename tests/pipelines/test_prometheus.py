"""What Prometheus is told: at `/metrics` it is what the manifests say, and the board draws what is told."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from made import write_pairs
from PIL import Image

from rwkvfusion.infra.storage import Store
from rwkvfusion.pipelines import prometheus
from rwkvfusion.pipelines.prepare.progress import COMMIT
from rwkvfusion.pipelines.prometheus import SERIES, Series
from rwkvfusion.stages.dataset.manifest import read_manifests

BOARD = Path(__file__).resolve().parents[2] / "infra" / "deploy" / "grafana.json"

_JOB = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import ray
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.stages.guidance.stage import Stage, StageConfig, fingerprints

class DiesOnce(Stage[StageConfig]):
    name, version = "dies", 1
    requires = frozenset({"images"})
    provides = frozenset({"caption"})

    def process(self, samples):
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [sample.replace(caption="x") for sample in samples]

values, died = json.loads(sys.argv[1]), Path(sys.argv[2])
port = int(sys.argv[3])
ray.init(address="local", num_cpus=6, include_dashboard=False, _metrics_export_port=port, log_to_driver=False)
stages = (DiesOnce(StageConfig()),)
job = replace(plan_job(PrepareRecipe.model_validate(values)), stages=stages, fingerprints=fingerprints(stages, ""))
prepare(job, say=lambda _: None)
sys.stdin.read()
"""


@pytest.mark.slow
def test_what_is_shown_is_what_the_manifests_say(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray shows nothing without ray[default]")
    raw = write_pairs(tmp_path / "raw", [f"{i:05d}D" for i in range(8)])
    Image.new("L", (50, 40)).save(raw / "train" / "ir" / "00004D.png")
    recipe = {
        "source": {"layout": "msrs", "root": str(raw)}, "output": str(tmp_path / "out"), "shard": {"pairs": 3},
        "masks": "none", "quarantine": {"max_fraction": 0.5},
    }  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun, since, seen = time.time(), time.monotonic(), {}
    with subprocess.Popen(
        [sys.executable, "-c", _JOB, json.dumps(recipe), str(tmp_path / "died"), str(port)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_metrics_report_interval_ms": "1000"},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as job:  # fmt: skip
        try:
            while not (expected := _expected(tmp_path / "out" / "msrs")) or not expected.items() <= seen.items():
                assert time.monotonic() - since < 240, f"{seen} lacks of {expected}"
                assert job.poll() is None, job.returncode
                # What does not count is gone soon after the job; the last of it is what is looked at.
                seen |= _scraped(port)
                time.sleep(0.2)
        finally:
            job.communicate("")
    assert seen[_key(prometheus.LEFT)] == 0
    assert seen[_key(prometheus.RETRIES, stage="dies")] == 1
    for stage in ("source", "dies", COMMIT):
        assert begun < seen[_key(prometheus.PROGRESS, stage=stage)] < time.time()


def _expected(dataset: Path) -> dict[str, float]:
    """What is counted, by the manifests of all three shards; nothing until they are there."""
    manifests = read_manifests(Store(str(dataset)), skip_damaged=True)
    if len(manifests) < 3:
        return {}
    sums = Counter({_key(prometheus.COMMITTED): sum(len(manifest.keys) for manifest in manifests)})
    for manifest in manifests:
        sums.update(_key(prometheus.QUARANTINED, stage=q.stage, kind=q.kind) for q in manifest.quarantined)
        for record in manifest.stages:
            sums[_key(prometheus.PAIRS, stage=record.stage)] += record.made
            sums[_key(prometheus.SECONDS, stage=record.stage)] += record.seconds
    return {key: round(value, 6) for key, value in sums.items()}


def _key(series: Series, **labels: str) -> str:
    return f"{series.shown} {sorted({'dataset': 'msrs', **labels}.items())}"


def _scraped(port: int) -> dict[str, float]:
    """What the node shows of ours, summed over its processes."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    by_name = {series.shown: series for series in SERIES}
    sums = Counter[str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (series := by_name.get(sample.name)) is not None:
                sums[_key(series, **{label: sample.labels[label] for label in series.labels})] += sample.value
    return {key: round(value, 6) for key, value in sums.items()}


def test_the_board_draws_what_is_told() -> None:
    board = json.loads(BOARD.read_text())
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    drawn = [name for target in targets for name in re.findall(r"\bray_rwkvfusion_\w+", target["expr"])]
    assert {*drawn} == {series.shown for series in SERIES}
    by_name = {series.shown: series for series in SERIES}
    for target in targets:
        # Every label that an expression selects, sums or names by is one that its series has.
        of = [by_name[name] for name in re.findall(r"\bray_rwkvfusion_\w+", target["expr"])]
        words = {*re.findall(r"(\w+)=~?\"", target["expr"]), *re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))}
        words |= {word for listed in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for word in listed.split(", ")}
        assert all(words <= {*series.labels} for series in of), target
        # A counter has no meaning but in how fast it grows.
        for series in of:
            grows = re.search(rf"(rate|increase)\({series.shown}\b", target["expr"]) is not None
            assert grows == series.counts, target
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len({*places}) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
