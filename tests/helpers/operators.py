"""Operators of `prepare` run on samples, without the table they travel in, and workers that die."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from rwkvfusion.pipelines.isolate import Attempts
from rwkvfusion.pipelines.prepare.operators import RunStage
from rwkvfusion.stages.dataset.sample import Sample, from_table
from rwkvfusion.stages.guidance.row import read_columns


def run_stage(operator: RunStage, samples: Sequence[Sample], shard: str = "train-000000") -> tuple[list[Sample], int]:
    """The samples as the operator passes them on, and how many of them its stage ran on."""
    table, record, _ = operator.process(shard, read_columns(samples))
    return from_table(table), record.made or 0


def died(attempts: Attempts, shard: str = "train-000000") -> None:
    """Leave what a process leaves that dies while it works on a shard."""
    with suppress(ChildProcessError), attempts.of(shard):
        raise ChildProcessError
