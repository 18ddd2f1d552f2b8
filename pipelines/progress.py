"""Progress for a person who waits: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from rwkvfusion.infra.manifest import Manifest
from rwkvfusion.pipelines.plan import Job


class ShardProgress:
    """Counts pairs as shards are committed; call it with each shard's manifest."""

    def __init__(self, job: Job) -> None:
        self.total = sum(len(shard.pairs) for shard in job.pending)
        self.done = 0
        self.start = time.perf_counter()
        shown = sys.stderr.isatty() and self.total > 0
        self.bar = tqdm(total=self.total, unit="pair", desc=job.dataset, disable=not shown, smoothing=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.close()

    def __call__(self, manifest: Manifest) -> None:
        self.done += len(manifest.keys) + len(manifest.quarantined)
        self.bar.update(len(manifest.keys) + len(manifest.quarantined))
        for one in manifest.quarantined:
            tqdm.write(f"quarantined {one.key}: {one.kind}: {one.message}", file=sys.stderr)
        if self.bar.disable:
            quarantined = f", {len(manifest.quarantined)} in quarantine" if manifest.quarantined else ""
            print(
                f"{manifest.shard} committed: {len(manifest.keys)} pairs{quarantined}"
                f" ({self.done}/{self.total}, {time.perf_counter() - self.start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
