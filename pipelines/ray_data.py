"""Operators of Ray Data on rows that are shards: how often what dies is tried again, and what is said of a failure."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.annotations import RayDeprecationWarning

MAX_RETRIES = 6
"""Times a dead worker's task is given to another one; Ray's own default is for ever. More than the tries after which a
shard's samples are worked on one by one: workers also die for no fault of a sample."""
ACTOR_RETRIES = 200
"""The same of an actor's task. That an actor gives no answer counts too, several times in the quarter of a minute until
the cluster knows that its node is dead; how often work is really begun anew is bounded by MAX_RESTARTS."""
MAX_RESTARTS = 20
"""Times an actor is started anew in its life, which is that of the job."""

_OURS = re.compile(r"^rwkvfusion(\.\w+)+: ")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception)\b")


def operator(dataset: Dataset, kind: type, args: tuple[Any, ...], name: str, **options: Any) -> Dataset:
    """An operator that shows as `name` on the dashboard: tasks, or an actor pool where `compute` is one.

    `kind(*args)` is called with a table of one row, and gives a table.
    """
    if isinstance(options.get("compute"), ActorPoolStrategy):
        actor = type(name, (kind,), {})
        return dataset.map_batches(
            actor,
            fn_constructor_args=args,
            batch_size=1,
            batch_format="pyarrow",
            max_restarts=MAX_RESTARTS,
            max_task_retries=ACTOR_RETRIES,
            **options,
        )
    call = kind(*args)

    def task(rows: pa.Table) -> pa.Table:
        result: pa.Table = call(rows)
        return result

    task.__name__ = name
    return dataset.map_batches(task, batch_size=1, batch_format="pyarrow", max_retries=MAX_RETRIES, **options)


def quiet() -> None:
    """Our own progress is shown, not that of Ray Data's operators."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What fails reaches us as an exception, and its message the user.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # The cap on retries goes through arguments that Ray keeps until 2.64; the package is pinned below that.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)


def cause(error: BaseException) -> str:
    """The line of Ray's wrapped tracebacks that says what happened; of our own errors the message alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line) and not line.startswith("ray.")]
    ours = [re.sub(_OURS, "", line) for line in lines if _OURS.match(line)]
    return [type(error).__name__, *lines, *raised, *ours][-1]
