"""What `prepare` says of a tree of pairs, and datasets that are not whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from made_sources import source, write

from rwkvfusion.infra.lease import Fence
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.plan import Job
from rwkvfusion.pipelines.prepare.why import remade
from rwkvfusion.stages.source.source import Plan

FOLDERS = [
    "",
    "train",
    "Test",
    "extra",
    "day",
    "vi",
    "ir",
    "mask",
    "gt",
    "text",
    "edge",
    "Label",
    "s1",
    "Train_LLVIP_vi",
]


STEMS = ["a", "A", "b", "b_gt", "caf\u00e9", "cafe\u0301", "x_A", "x_B", "vis", "ir", "1011"]


names = st.builds(
    lambda folders, stem, ending: "/".join([*(f for f in folders if f), stem + ending]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(STEMS),
    st.sampled_from([".png", ".png", ".JPG", ".txt", ".heic", ".mat"]),
)


def tree(root: Path | str, *names: str, **settings: Any) -> Plan:
    return source(write(root, dict.fromkeys(names, b"")), **settings).plan()


def both(*stems: str) -> list[str]:
    """Each name in a folder `vi` and one `ir`: `day/*/1` is day/vi/1.png and day/ir/1.png."""
    return [f"{stem}.png".replace("*", folder) for stem in stems for folder in ("vi", "ir")]


def make(job: Job, shards: Sequence[str]) -> Job:
    """What `prepare` does for `shards` and no others, without a cluster; and the job as it is seen then."""
    job.assignment.write(job.store)
    job.planned.write(job.store)
    target, why = Target(job.store, job.dataset, job.task, job.fingerprint, Fence(job.store, 0)), remade(job)
    for shard in (one for one in job.shards if one.name in shards):
        row = first_row(shard.name, shard.to_json(), job.moved.get(shard.name, ()), why.get(shard.name, ""))
        rows = ReadPairs(job.recipe.source, target)(pa.Table.from_pylist([row]))
        for stage, print_ in zip(job.stages, job.fingerprints, strict=True):
            rows = RunStage(stage, print_, target)(rows)
        CommitShard(target)(rows)
    return job.again()
