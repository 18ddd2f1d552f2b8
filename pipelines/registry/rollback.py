"""`rollback` and `promote --why`: what the history of an alias is for. Seconds: nothing heavy is imported."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from rwkvfusion.infra.errors import first_line
from rwkvfusion.infra.lease import LeaseError
from rwkvfusion.infra.reach import reach
from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import is_there, tracking_uri, using
from rwkvfusion.model.names import WEIGHTS
from rwkvfusion.pipelines.registry.entry import Entry, PromoteError, Verdict, about, line_of
from rwkvfusion.pipelines.registry.history import History, Turn


def rollback(name: str, alias: str, to: str | None = None, tracking: str | None = None) -> Entry:
    """Point the alias at the champion before, or at the champion `to` of some time; the entry that says so.

    Where a rollback died, this one completes it and does no other.

    Raises:
        PromoteError: no such model, no champion before, `to` never was one; weights that are gone, or are not those
            that were registered.
        TrackingError: the registry cannot be reached.
    """
    where = reached(tracking, write=True)
    history = History.open(where, name, alias)
    with history.moving() as turn:
        cut_off = turn.finished
        if cut_off is not None and cut_off.verdict is Verdict.ROLLED_BACK and to in (None, cut_off.version):
            return history.read(cut_off)
        version = _target(turn, to)
        expected = turn.weights_of(version)
        actual = _weights(history, version)
        if expected not in (None, actual):
            raise PromoteError(
                f"{WEIGHTS} of {name} version {version} is not what was registered: its SHA-256 differs; name another"
            )
        proof = "its weights have the SHA-256 that was registered" if expected else "nothing says what its weights were"
        return turn.add(
            Verdict.ROLLED_BACK, version, version, reasons=(proof,), weights_sha256=actual,
            champion_sha256=turn.weights_of(turn.champion),
        )  # fmt: skip


def why(name: str, alias: str, version: str, tracking: str | None = None) -> tuple[str | None, list[Entry]]:
    """The version that has the alias, and the entries about `version`, in order; a move that was cut off is finished.

    PromoteError where there is no such model or version, TrackingError where the registry cannot be reached.
    """
    where = reached(tracking, write=False)
    history = History.find(where, name, alias)
    if history is None:
        raise PromoteError(f"{name} has no history yet: nothing was promoted to @{alias}")
    if not history.is_in_step:
        # Whoever moves the alias now leaves it in step.
        with suppress(LeaseError), history.moving():
            pass
    found = about(history.proofs, version)
    if not found and not history.has(version):
        raise PromoteError(
            f"{name} has no version {version}: `rwkvfusion promote {name} --why VERSION` takes one it has"
        )
    return history.champion, [history.read(proof) for proof in found]


def reached(tracking: str | None, *, write: bool) -> str:
    """The address of the registry, which answers. PromoteError where there is none: MLflow would make an empty one."""
    where = tracking_uri(tracking)
    if not is_there(where):
        raise PromoteError(f"there is no registry at {where}: set MLFLOW_TRACKING_URI or --tracking-uri to where it is")
    reach(where, write=write)
    return where


def _target(turn: Turn, to: str | None) -> str:
    """The version to roll back to."""
    history, line = turn.history, line_of(turn.steps)
    if turn.champion is not None:
        line = line[:-1]
    if to is None:
        if not line:
            at = "is nowhere" if turn.champion is None else f"is at version {turn.champion}"
            raise PromoteError(f"@{history.alias} of {history.name} {at}, and there was no champion before")
        return line[-1]
    if to == turn.champion:
        raise PromoteError(f"version {to} of {history.name} is @{history.alias} already")
    champions = dict.fromkeys(step.after for step in turn.steps if step.after is not None)
    if to not in champions:
        raise PromoteError(
            f"version {to} of {history.name} never was @{history.alias}, so promote has to judge it; there was"
            f" {', '.join(champions) or 'none'}"
        )
    return to


def _weights(history: History, version: str) -> str:
    """Hex SHA-256 of the version's weights as they lie in the registry now."""
    import mlflow

    uri = f"models:/{history.name}/{version}"
    with using(history.uri), tempfile.TemporaryDirectory(prefix="rwkvfusion-rollback-") as scratch:
        try:
            found = [*Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch)).rglob(WEIGHTS)]
        # Each kind of store has errors of its own.
        except Exception as error:  # noqa: BLE001
            raise PromoteError(
                f"the files of {uri} cannot be read: {first_line(error)}; --to names another version"
            ) from None
        if len(found) != 1:
            raise PromoteError(f"{uri} has no {WEIGHTS}: --to names another version")
        return sha256(found[0].read_bytes())
