"""The folder of checkpoints that Ray Train keeps, repaired before a training that died is resumed.

Ray writes its list of them in place, so that a kill can leave half of it, and does not start from such a list. What a
checkpoint's own state says is enough to make the list anew.
"""

from __future__ import annotations

import json

import ray
from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvfusion.infra.storage import MissingError, Store
from rwkvfusion.model.training.trainer import STATE

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints it knows of."""
_FOLDER = "checkpoint_"


def repair(store: Store) -> list[str]:
    """Leave a list that Ray starts from, and no checkpoint that it does not name; what was done, for a person.

    Nobody else may be writing to `store`, the folder of one attempt.
    """
    stored = {name: files for name in store.folders() if name.startswith(_FOLDER) and (files := store.files(name))}
    if not stored and not store.exists(SNAPSHOT):
        return []
    lines = []
    listed = _listed(store)
    if listed is None or not listed <= stored.keys():
        listed = _list_anew(store, sorted(stored))
        lines.append(f"{store.join(SNAPSHOT)} was not whole: made anew of {len(listed)} checkpoints")
    for name in sorted(stored.keys() - listed):
        for file in stored[name]:
            store.remove(file)
        lines.append(f"removed {store.join(name)}: it was not stored whole when the job died, or is not needed")
    return lines


def complete(store: Store, steps: int) -> list[str]:
    """Names of the checkpoints of step `steps` that have all their files."""
    names = [name for name in store.folders() if name.startswith(_FOLDER)]
    return [name for name in names if (state := _state(store, name)) is not None and state[0] == steps]


class _Entry(BaseModel):
    """What of Ray's format is read here; the rest is its own."""

    model_config = ConfigDict(extra="ignore")
    checkpoint_dir_name: str


class _Snapshot(BaseModel):
    model_config = ConfigDict(extra="ignore")
    ray_version: str
    checkpoint_results: list[_Entry]
    checkpoint_report_indices: list[int]
    latest_checkpoint_result: _Entry | None
    current_report_index: int


def _listed(store: Store) -> set[str] | None:
    """The checkpoints that Ray's list names; None where it cannot be read."""
    try:
        snapshot = _Snapshot.model_validate_json(store.read(SNAPSHOT))
    except (MissingError, ValidationError):
        return None
    return {entry.checkpoint_dir_name for entry in snapshot.checkpoint_results}


def _list_anew(store: Store, names: list[str]) -> set[str]:
    """Write a list of those of `names` that are all there, the one with the most steps last."""
    states = [(state, name) for name in names if (state := _state(store, name)) is not None]
    entries = [
        {"checkpoint_dir_name": name, "metrics": {"step": done, "loss": loss}}
        for (done, loss), name in sorted(states, key=lambda one: (one[0][0], one[1]))
    ]
    snapshot = {
        "ray_version": ray.__version__,
        "checkpoint_results": entries,
        "checkpoint_report_indices": list(range(len(entries))),
        "latest_checkpoint_result": entries[-1] if entries else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(entries),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    store.write(SNAPSHOT, json.dumps(snapshot).encode())
    return {str(entry["checkpoint_dir_name"]) for entry in entries}


def _state(store: Store, name: str) -> tuple[int, float] | None:
    """Steps and last loss of a checkpoint; None where it is not all there."""
    try:
        state = json.loads(store.read(f"{name}/{STATE}"))
        done, files, loss = int(state["done"]), set(state["files"]), float(state["last_loss"])
    except (MissingError, KeyError, TypeError, ValueError):
        return None
    return (done, loss) if files <= store.sizes(name).keys() else None
