"""The benchmark behind `make bench-scale`: planning many pairs, and opening a dataset of many shards.

The store is simulated: it lists names of pictures that are nowhere, keeps what is written, and counts requests as S3
would be sent them, 1000 names a page. Seconds are of the processor, so that other work on the machine counts little.
Each figure is taken in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.spec import AbstractFileSystem

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import PAGE, Store, sha256
from rwkvfusion.pipelines.console import say
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.dataset.manifest import (
    INDEX,
    PICTURE_HASHES,
    PLAN,
    Manifest,
    PlannedShard,
    PlannedShards,
    StageRecord,
    index_manifests,
    write_manifest,
)
from rwkvfusion.stages.dataset.sample import SCHEMA_VERSION

PAIRS = (10_000, 100_000, 1_000_000)
PER_SHARD = 10
"""Pairs of a shard where datasets are opened: so a million are 100,000 shards."""
PROTOCOL = "simulated"
_FIGURES = re.compile(r"(<!-- figures -->\n).*(<!-- end -->)", re.DOTALL)


class SimulatedStore(AbstractFileSystem):
    """Objects in memory, and below `source` the pictures of `pairs` pairs, of layout msrs, that are all alike."""

    protocol = PROTOCOL
    pairs: ClassVar[int] = 0
    requests: ClassVar[Counter[str]] = Counter()
    objects: ClassVar[defaultdict[str, dict[str, tuple[bytes, str]]]] = defaultdict(dict)
    """By folder and name: contents, and their ETag."""
    picture: ClassVar[bytes] = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
    entry: ClassVar[dict[str, Any]] = {"size": len(picture), "ETag": '"of the one picture"'}

    @classmethod
    def clear(cls, pairs: int) -> None:
        cls.pairs, cls.requests, cls.objects = pairs, Counter(), defaultdict(dict)

    def isdir(self, path: str) -> bool:
        self.requests["LIST"] += 1
        return path == "source" or any(folder == path or folder.startswith(f"{path}/") for folder in self.objects)

    def exists(self, path: str, **more: Any) -> bool:
        self.requests["HEAD"] += 1
        return path.rpartition("/")[2] in self.objects[path.rpartition("/")[0]]

    def find(self, path: str, detail: bool = False, **more: Any) -> Any:
        self._count_pages(2 * self.pairs)
        listing = _Listing(path)
        return listing if detail else [*listing]

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[dict[str, Any]]:
        listed = self.objects[path]
        self._count_pages(len(listed))
        return [
            {"name": f"{path}/{name}", "type": "file", "size": len(data), "ETag": tag}
            for name, (data, tag) in listed.items()
        ]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        self.requests["GET"] += 1
        if path.startswith("source/"):
            return self.picture
        folder, _, name = path.rpartition("/")
        if name not in self.objects[folder]:
            raise FileNotFoundError(path)
        return self.objects[folder][name][0][start:end]

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        self.requests["PUT"] += 1
        folder, _, name = path.rpartition("/")
        self.objects[folder][name] = value, md5(value, usedforsecurity=False).hexdigest()

    def rm_file(self, path: str) -> None:
        self.requests["DELETE"] += 1
        folder, _, name = path.rpartition("/")
        self.objects[folder].pop(name, None)

    def _count_pages(self, count: int) -> None:
        self.requests["LIST"] += max(-(-count // PAGE), 1)


class _Listing(Mapping[str, Any]):
    """The pictures with what a listing says of each, which is not kept, as pages of S3 are not."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __len__(self) -> int:
        return 2 * SimulatedStore.pairs

    def __iter__(self) -> Iterator[str]:
        return (f"{self._path}/train/{role}/{i:08d}.png" for role in ("ir", "vi") for i in range(SimulatedStore.pairs))

    def __getitem__(self, name: str) -> dict[str, Any]:
        return SimulatedStore.entry


fsspec.register_implementation(PROTOCOL, SimulatedStore)


def plan(pairs: int, holdout: bool = False) -> Job:
    """Plan `pairs` simulated pairs as `prepare --dry-run` does."""
    return plan_job(simulate(pairs, holdout))


def simulate(pairs: int, holdout: bool = False) -> PrepareRecipe:
    """Store `pairs` pairs; a recipe that makes a dataset of them with the built-in guidance.

    With a holdout, of pictures whose hashes are kept from before; every tenth is a near-duplicate of another.
    """
    SimulatedStore.clear(pairs)
    source: dict[str, Any] = {"layout": "msrs", "root": f"{PROTOCOL}://source"}
    if holdout:
        source["holdout"] = {"val": 0.1}
        _keep_hashes(pairs)
        SimulatedStore.requests.clear()
    return PrepareRecipe.model_validate({"source": source, "output": f"{PROTOCOL}://out"})


def _keep_hashes(pairs: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**64, pairs, np.uint64)
    values[::10] = values[1::10] ^ np.uint64(0b101)
    entry = SimulatedStore.entry
    kept = pa.table(
        {
            "name": pa.array((f"train/vi/{i:08d}.png" for i in range(pairs)), pa.string()),
            "version": pa.repeat(f"{entry['size']} {entry['ETag']}", pairs),
            "hash": values,
        },
        metadata={"source": f"{PROTOCOL}://source"},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, kept.schema) as writer:
        writer.write_table(kept)
    folder = Store(f"{PROTOCOL}://out/msrs")
    folder.write(PICTURE_HASHES, sink.getvalue().to_pybytes())
    folder.write(PLAN, b"{}")


def write_shards(pairs: int) -> Store:
    """The proofs of a whole dataset of `pairs` pairs, and its plan; no tars, which nobody looks at to open it."""
    job = plan(1)
    stages = tuple(
        StageRecord(stage=stage.name, identity=stage.identity(), fingerprint=print_, seconds=1.5, made=PER_SHARD)
        for stage, print_ in zip(job.stages, job.fingerprints, strict=True)
    )
    SimulatedStore.clear(pairs)
    store = Store(f"{PROTOCOL}://dataset")
    planned = {}
    for number in range(pairs // PER_SHARD):
        digest = sha256(str(number).encode())
        keys = tuple(f"{pair:08d}" for pair in range(number * PER_SHARD, (number + 1) * PER_SHARD))
        manifest = Manifest(
            shard=f"train-{number:06d}", dataset="msrs", task="vif", sha256=digest, size=10**7, keys=keys,
            quarantined=(), plan=digest, fingerprint=job.fingerprint, stages=stages, schema_version=SCHEMA_VERSION,
            package_version="0", commit=None, members={"visible.png": {"png": PER_SHARD}},
        )  # fmt: skip
        write_manifest(store, manifest)
        planned[manifest.shard] = PlannedShard(pairs=PER_SHARD, plan=digest)
    PlannedShards(fingerprint=job.fingerprint, shards=planned).write(store)
    return store


def measure_planning(pairs: int, holdout: bool = False) -> dict[str, float]:
    """Seconds of a plan and its requests."""
    plan(100, holdout)
    recipe = simulate(pairs, holdout)
    with _timed() as spent:
        plan_job(recipe)
    return {"seconds": spent(), "requests": SimulatedStore.requests.total()}


def measure_memory(pairs: int, holdout: bool = False) -> dict[str, float]:
    """Bytes a pair that a plan takes at most, and that it keeps."""
    plan(100, holdout)
    recipe = simulate(pairs, holdout)
    with _traced() as used:
        job = plan_job(recipe)
        kept, most = used()
    assert job.n_pairs == pairs
    return {"most": most / pairs, "kept": kept / pairs}


def measure_opening(pairs: int) -> dict[str, float]:
    """Seconds and requests to open a dataset without its index and with it, and to write that; and its bytes."""
    store = write_shards(pairs)
    figures: dict[str, float] = {"shards": pairs // PER_SHARD}

    def timed(what: str, do: Callable[[], Any]) -> None:
        SimulatedStore.requests.clear()
        with _timed() as spent:
            do()
        figures[f"{what}_seconds"], figures[f"{what}_requests"] = spent(), SimulatedStore.requests.total()

    timed("plain", lambda: Dataset.open(store.url))
    timed("index", lambda: index_manifests(store))
    timed("open", lambda: Dataset.open(store.url))
    figures["index_bytes"] = sum(store.sizes(INDEX).values())
    return figures


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    start = time.process_time()
    yield lambda: time.process_time() - start


@contextmanager
def _traced() -> Iterator[Callable[[], tuple[int, int]]]:
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


MEASURES: dict[str, Callable[[int], dict[str, float]]] = {
    "planning": measure_planning,
    "memory": measure_memory,
    "holdout planning": partial(measure_planning, holdout=True),
    "holdout memory": partial(measure_memory, holdout=True),
    "opening": measure_opening,
}


def tables(figures: dict[str, dict[int, dict[str, float]]]) -> str:
    """The figures in Markdown, a row for each number of pairs."""
    lines: list[str] = []
    for kind, words in (("", "planning"), ("holdout ", "planning with a holdout again")):
        lines += [
            f"| pairs | {words}, s | us a pair | most memory, bytes a pair | kept, bytes a pair | requests |",
            "|---|---|---|---|---|---|",
        ]
        for pairs, one in figures[f"{kind}planning"].items():
            memory = figures[f"{kind}memory"][pairs]
            lines.append(
                f"| {pairs:,} | {one['seconds']:.1f} | {one['seconds'] / pairs * 1e6:.0f} | {memory['most']:.0f} |"
                f" {memory['kept']:.0f} | {one['requests']:,.0f} |"
            )
        lines.append("")
    lines += [
        "| shards | opening without index: requests, s | with index: requests, s | us a shard |"
        " index: objects, MB | writing it: requests, s |",
        "|---|---|---|---|---|---|",
    ]
    for one in figures["opening"].values():
        shards = one["shards"]
        lines.append(
            f"| {shards:,.0f} | {one['plain_requests']:,.0f}, {one['plain_seconds']:.1f} |"
            f" {one['open_requests']:,.0f}, {one['open_seconds']:.1f} | {one['open_seconds'] / shards * 1e6:.0f} |"
            f" {-(-shards // 10_000):.0f}, {one['index_bytes'] / 1e6:.1f} |"
            f" {one['index_requests']:,.0f}, {one['index_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the tables, and with `--write` put them into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--write", type=Path, help="a page with the marks <!-- figures --> and <!-- end -->")
    parser.add_argument("--kept", type=Path, help="a folder: what was measured before is taken from it")
    parser.add_argument("--measure", choices=MEASURES, help="one figure of one number of pairs, as JSON")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(MEASURES[asked.measure](asked.pairs[0])))
        return
    figures: dict[str, dict[int, dict[str, float]]] = {
        name: {pairs: _measured(name, pairs, asked.kept) for pairs in asked.pairs} for name in MEASURES
    }
    text = tables(figures)
    print(text)
    if asked.write:
        page = asked.write.read_text(encoding="utf-8")
        asked.write.write_text(_FIGURES.sub(lambda marks: marks[1] + text + marks[2], page), encoding="utf-8")


def _measured(name: str, pairs: int, kept: Path | None) -> dict[str, float]:
    """One figure, from a process of its own or as it is kept."""
    file = None if kept is None else kept / f"{name}.{pairs}"
    if file is None or not file.exists():
        say(f"{name} of {pairs:,} pairs")
        command = [sys.executable, "-m", "rwkvfusion.pipelines.bench.scale", "--measure", name, "--pairs", str(pairs)]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    else:
        text = file.read_text()
    figure: dict[str, float] = json.loads(text)
    return figure


if __name__ == "__main__":
    main()
