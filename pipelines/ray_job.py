"""Where a command's results may go when it runs inside a Ray job, or on a cluster of several machines.

The working folder of a Ray job (`ray job submit`) is scratch space on one node: what is written there is lost.
"""

from __future__ import annotations

import os
from pathlib import Path

from rwkvfusion.infra.errors import RwkvFusionError

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's job server sets it for what it starts."""


class LostOutputError(RwkvFusionError):
    """Results would be written where nobody finds them."""


def check_output(option: str, value: str, *, hosts: int = 1) -> None:
    """LostOutputError where `value` is relative inside a Ray job, or on a cluster of several `hosts`."""
    if "://" in value or Path(value).expanduser().is_absolute() or not (where := _scattered(hosts)):
        return
    raise LostOutputError(
        f"{option} is {value}: {where} a relative path is a folder that the other nodes and you do not see; give a URL"
        " (s3://BUCKET/...) or an absolute path on a disk that all nodes share"
    )


def check_tracking(uri: str | None, *, hosts: int = 1) -> None:
    """LostOutputError for an SQLite file as MLflow's tracking inside a Ray job, or on a cluster of several `hosts`."""
    from rwkvfusion.infra.tracking import tracking_uri

    if (where := _scattered(hosts)) and (tracking := tracking_uri(uri)).startswith("sqlite:"):
        raise LostOutputError(
            f"the tracking would go to {tracking}: {where} that is a file on one node; set tracking.uri or"
            " MLFLOW_TRACKING_URI to the URL of an MLflow server"
        )


def is_submitted() -> bool:
    """Whether this process runs inside a Ray job, whose output is all that is seen of it."""
    return _JOB in os.environ


def _scattered(hosts: int) -> str:
    return "inside a Ray job" if is_submitted() else f"on a cluster of {hosts} machines" if hosts > 1 else ""
