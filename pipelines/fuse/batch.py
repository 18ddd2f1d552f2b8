"""`fuse` of a dataset on Ray: one row is one shard, which an actor fuses as a process of its own would.

Before, tasks read what the samples are called: no two pictures have one name, whatever the order in which shards are
fused.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.names import CONFIG, WEIGHTS
from rwkvfusion.model.registry.find import ModelSource
from rwkvfusion.pipelines.cluster import Cluster, board_of, connect, polled
from rwkvfusion.pipelines.console import Bar, say
from rwkvfusion.pipelines.fuse.guide import FuseError
from rwkvfusion.pipelines.fuse.listing import ListShard, row_of, shard_of
from rwkvfusion.pipelines.fuse.record import Fused, Model, Output, Pair
from rwkvfusion.pipelines.fuse.writer import (
    Findings,
    FuseSummary,
    OnPicture,
    PictureWriter,
    Skipped,
    Stems,
    pairs_of,
)
from rwkvfusion.pipelines.isolate import SHARD_TRIES, Death, each_alone
from rwkvfusion.pipelines.parallel import MOST_JOBS
from rwkvfusion.pipelines.ray_data import cause, operator, quiet
from rwkvfusion.pipelines.ray_job import check_output
from rwkvfusion.stages.dataset.dataset import Dataset


def fuse_on_ray(
    model: Model, url: str, selected: Dataset, out: str, output: Output, on_picture: OnPicture | None, address: str
) -> FuseSummary:
    """`fuse_dataset` of the `selected` samples of the dataset at `url`, on the Ray at `address`: see `connect`.

    FuseError where the job fails as a whole; pictures that are there stay, and the same call goes on from them.
    """
    quiet()
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(address))
        for option, value in (("--dataset", url), ("--output", out)):
            check_output(option, value, hosts=cluster.hosts)
        rows = [row_of(index, shard) for index, shard in enumerate(selected.shards)]
        worker = Worker.of(cluster, output)
        say(f"{len(rows)} shards; {min(worker.most, len(rows))} x {worker} on {cluster}")
        board = board_of(Board, max_restarts=-1, max_task_retries=-1)
        stack.callback(ray.kill, board)
        heard = Heard(on_picture or (lambda *_: None), len(selected))
        try:
            named, lost = _named(rows, selected.store, worker)
            heard.tell(None, heard.total)
            for index, skipped in lost.items():
                heard.hear(index, skipped)
            if named:
                with polled(board, heard):
                    job = (ray.put(ModelFiles.of(model)), selected.store, Store(out), output, worker, board)
                    # A cluster may grow.
                    _fuse(named, job, heard, min(worker.most, len(named)) if cluster.local else len(named))
        except RayError as error:
            raise FuseError(f"{cause(error)}: run the same command again, which goes on from what is there") from error
    return heard.summary()


def _named(
    rows: Sequence[dict[str, Any]], store: Store, worker: Worker
) -> tuple[list[dict[str, Any]], dict[int, list[Skipped]]]:
    """The rows of shards that can be read, with what each picture is called; and the samples of the others, by row."""
    listed: dict[int, dict[str, Any]] = {}
    tasks = operator(_blocks(rows), ListShard, (store,), "list", num_cpus=min(worker.cpus, 1))
    with Bar("samples", len(rows), "shard") as bar:
        for row in tasks.iter_rows():
            listed[row["index"]] = json.loads(row["listed"])
            bar.advance()
    stems, named, lost = Stems(), list[dict[str, Any]](), dict[int, list[Skipped]]()
    for row in rows:
        found = listed[row["index"]]
        if "error" in found:
            lost[row["index"]] = [Skipped(key, found["error"]) for key in row["keys"]]
        else:
            names = {key: stems.of(Pair(stem, key)) for key, stem in found["stems"].items()}
            named.append(row | {"stems": json.dumps(names)})
    return named, lost


def _fuse(rows: Sequence[dict[str, Any]], job: tuple[Any, ...], heard: Heard, most: int) -> None:
    worker: Worker = job[4]
    # An actor is given one shard at a time, and all being busy is reason for another one.
    DataContext.get_current().autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    fused = operator(
        _blocks(rows),
        FuseShard,
        job,
        "fuse",
        compute=ActorPoolStrategy(min_size=1, max_size=most, max_tasks_in_flight_per_actor=1),
        num_cpus=worker.cpus,
        num_gpus=worker.gpus or None,
    )
    for row in fused.iter_rows():
        results = [Fused(**one) if "url" in one else Skipped(**one) for one in json.loads(row["results"])]
        heard.hear(row["index"], results)
        heard.findings.swapped += json.loads(row["swapped"])


def _blocks(rows: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


@dataclass(frozen=True)
class Worker:
    """What an actor takes, and of how many there is room."""

    cpus: float
    gpus: int
    most: int

    @classmethod
    def of(cls, cluster: Cluster, output: Output) -> Self:
        """A card each where there are any; else as many cores of a machine as one process has use for."""
        if cluster.gpus >= 1:
            return cls(1 if cluster.cpus >= cluster.gpus else 0, 1, int(cluster.gpus))
        cpus = min(output.jobs or MOST_JOBS, max(cluster.cores, 1), cluster.node_cpus)
        cpus = int(cpus) if cpus >= 1 else cpus
        return cls(cpus, 0, max(1, int(cluster.cores / cpus)))

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" + {self.gpus} GPU" if self.gpus else "")


@dataclass(frozen=True)
class ModelFiles:
    """A model on its way to a worker, which need not reach the place that it came from."""

    files: dict[str, bytes]
    source: ModelSource
    scales: dict[str, Scale]
    tile: Tile

    @classmethod
    def of(cls, model: Model) -> Self:
        files = {name: (model.source.folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        return cls(files, model.source, dict(model.scales), model.tile)

    def open(self, device: str) -> Model:
        """The model, on `device`."""
        with tempfile.TemporaryDirectory() as folder:
            for name, data in self.files.items():
                (Path(folder) / name).write_bytes(data)
            fuser = Fuser.load(folder, device)
        return Model(fuser, self.source, str(fuser.weights_sha256), self.scales, self.tile)


class FuseShard:
    """An actor: it has the model, and fuses shard after shard.

    Of a shard that has taken several workers with it each pair is fused in a process of its own; what kills that twice
    is skipped.
    """

    def __init__(
        self, files: ray.ObjectRef, store: Store, out: Store, output: Output, worker: Worker, board: Any
    ) -> None:
        self.files, self.store, self.board = files, store, board
        self.device = "cuda" if worker.gpus else "cpu"
        self.writer = partial(
            PictureWriter, store=out, guidance="sample", output=output, cores=max(1, int(worker.cpus))
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self.fuse(row) for row in rows.to_pylist()])

    @cached_property
    def model(self) -> Model:
        # Not as the actor starts: one that dies then is started again, and why is lost.
        files: ModelFiles = ray.get(self.files)
        return files.open(self.device)

    def fuse(self, row: dict[str, Any]) -> dict[str, Any]:
        """Fuse the pairs of a shard, and tell of each."""
        index, results, findings = row["index"], list[Fused | Skipped](), Findings()

        def tell(result: Fused | Skipped | None, _: int) -> None:
            if result is not None:
                self.board.tell.remote(index, len(results), result)
                results.append(result)

        stems = json.loads(row["stems"])
        pairs = [
            replace(one, stem=stems[one.key]) if isinstance(one, Pair) else one
            for one in pairs_of(shard_of(self.store, row))
        ]
        if ray.get(self.board.begin.remote(index)) < SHARD_TRIES:
            writer = self.writer(self.model)
            writer.run(pairs, len(pairs), tell)
            findings = writer.findings
        else:
            make = partial(_alone, ray.get(self.files), self.device, self.writer)
            for pair, result in zip(pairs, each_alone(make, pairs), strict=True):
                why = "the process that fused it ended, twice"
                tell(Skipped(pair.name, f"{why}: {result}") if isinstance(result, Death) else result, 0)
        self.board.end.remote(index)
        told = json.dumps([asdict(result) for result in results])
        return {"index": index, "results": told, "swapped": json.dumps(findings.swapped)}


def _alone(
    files: ModelFiles, device: str, writer: Callable[[Model], PictureWriter]
) -> Callable[[Pair | Skipped], Fused | Skipped]:
    model = files.open(device)

    def fuse(pair: Pair | Skipped) -> Fused | Skipped:
        summary = writer(model).run([pair], 1)
        return summary.written[0] if summary.written else summary.skipped[0]

    return fuse


class Board:
    """An actor that takes no CPU: workers tell it what came of each picture, and when they begin and end a shard."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, Fused | Skipped]] = []
        self.begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        """How often work on the shard was begun before, and not ended."""
        self.begun[shard] += 1
        return self.begun[shard] - 1

    def end(self, shard: int) -> None:
        self.begun[shard] = 0

    def tell(self, shard: int, place: int, result: Fused | Skipped) -> None:
        self.told.append((shard, place, result))

    def take(self) -> list[tuple[int, int, Fused | Skipped]] | None:
        """What was told since the last call; None where that is nothing."""
        told, self.told = self.told, []
        return told or None


@dataclass
class Heard:
    """What came of each picture: told once, by the first who says it. A worker that follows one that died says it of
    pictures again, as there already."""

    tell: OnPicture
    total: int
    findings: Findings = field(default_factory=Findings)
    results: dict[tuple[int, int], Fused | Skipped] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, told: Sequence[tuple[int, int, Fused | Skipped]]) -> None:
        with self.lock:
            for shard, place, result in told:
                if (shard, place) not in self.results:
                    self.results[shard, place] = result
                    self.tell(result, self.total)

    def hear(self, shard: int, results: Sequence[Fused | Skipped]) -> None:
        """All of a shard."""
        self([(shard, place, result) for place, result in enumerate(results)])

    def summary(self) -> FuseSummary:
        """In the order of the dataset."""
        ordered = [result for _, result in sorted(self.results.items(), key=lambda one: one[0])]
        written = tuple(one for one in ordered if isinstance(one, Fused))
        skipped = tuple(one for one in ordered if isinstance(one, Skipped))
        return FuseSummary(written, skipped, self.findings.warnings(len(ordered)))
