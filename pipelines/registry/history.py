"""The history of an alias in MLflow, which itself keeps none: append-only, and in step with the alias.

It is one long-lived run in an experiment of its own. An entry is a JSON file among its artifacts; it exists once the
run has the parameter that proves it, which only one can set. Only then the alias moves, then the version gets its tags,
then the run's tag `done` says that all of it was done. Who finds an entry beyond `done` finishes it, so that a death
at any moment leaves either nothing or what the next command completes. An alias that is where no entry put it gets an
entry that says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from rwkvfusion.infra.errors import redacted
from rwkvfusion.infra.lease import Lease, LeaseError
from rwkvfusion.infra.run_store import RunStore
from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import check_artifacts, create_experiment, is_there, open_experiment, translated, using
from rwkvfusion.model.names import HASH
from rwkvfusion.pipelines.registry.entry import Entry, PromoteError, Proof, Step, Verdict, now, who

if TYPE_CHECKING:
    from mlflow import MlflowClient

DONE = "done"
"""Tag of the run: the number of the last entry that is carried out."""
_JUDGING, _MOVING, _PROOFS = "judging", "moving", "entries"
_MOVING_SECONDS = 20.0
"""Of the lease on the alias: so long a dead machine's is waited for."""
_CREATOR_SECONDS = 5.0
"""Between an experiment and its run, at most."""


class History:
    """The entries of the alias `alias` of the registered model `name`. TrackingError where MLflow fails."""

    def __init__(self, client: MlflowClient, uri: str, name: str, alias: str, run_id: str) -> None:
        self.client, self.uri, self.name, self.alias, self.run_id = client, uri, name, alias, run_id
        self._store = RunStore(client, run_id, f"{name}@{alias}")

    @classmethod
    def open(cls, uri: str, name: str, alias: str) -> Self:
        """The history, begun where there is none. PromoteError where there is no model of the name."""
        with using(uri) as client:
            aliases_of(client, uri, name)
            return cls(client, uri, name, alias, _find(client, name, alias) or _begin(client, uri, name, alias))

    @classmethod
    def find(cls, uri: str, name: str, alias: str) -> Self | None:
        """The history, if there is one. PromoteError where there is no model of the name."""
        with using(uri) as client:
            aliases_of(client, uri, name)
            run_id = _find(client, name, alias)
            return None if run_id is None else cls(client, uri, name, alias, run_id)

    @property
    def champion(self) -> str | None:
        """The version that has the alias now."""
        with translated(self.uri):
            return aliases_of(self.client, self.uri, self.name).get(self.alias)

    @property
    def proofs(self) -> list[Proof]:
        """Of all entries, in order."""
        found = self._store.sub(_PROOFS).objects()
        return [Proof.model_validate_json(found[name]) for name in sorted(found)]

    @property
    def done(self) -> int:
        """The number of the last entry that was carried out; 0 before the first."""
        with translated(self.uri):
            return int(self.client.get_run(self.run_id).data.tags.get(DONE, 0))

    @property
    def is_in_step(self) -> bool:
        """Whether the last entry was carried out, and the alias is where it put it."""
        proofs = self.proofs
        return bool(proofs) and proofs[-1].number <= self.done and proofs[-1].after == self.champion

    def read(self, proof: Proof) -> Entry:
        """The whole entry. PromoteError where it is gone, or is not what was written."""
        with tempfile.TemporaryDirectory() as scratch, translated(self.uri):
            data = Path(self.client.download_artifacts(self.run_id, proof.file, scratch)).read_bytes()
        if sha256(data) != proof.sha256:
            raise PromoteError(f"{proof.file} of run {self.run_id} was changed or damaged since (SHA-256 differs)")
        try:
            return Entry.model_validate_json(data)
        except ValidationError:
            raise PromoteError(f"{proof.file} of run {self.run_id} is no entry that this version can read") from None

    def has(self, version: str) -> bool:
        """Whether the model has the version."""
        from mlflow.exceptions import MlflowException

        with translated(self.uri):
            try:
                self.client.get_model_version(self.name, version)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
                return False
        return True

    def judging(self) -> Lease:
        """The right to judge a version for this alias, which takes minutes; LeaseError where another does."""
        return Lease(self._store.sub(_JUDGING), "rwkvfusion promote")

    @contextmanager
    def moving(self) -> Iterator[Turn]:
        """The right to add entries and move the alias, for a moment; before the block the two are brought in step.

        LeaseError where another has it for longer than a move takes.
        """
        patient = Retrying(
            retry=retry_if_exception_type(LeaseError), stop=stop_after_delay(_MOVING_SECONDS + 5), wait=wait_fixed(0.5),
            reraise=True,
        )  # fmt: skip
        with ExitStack() as held:
            lease = patient(Lease(self._store.sub(_MOVING), "a move of the alias", _MOVING_SECONDS).__enter__)
            held.push(lease)
            turn = Turn(self, lease, self._store.sub(_PROOFS))
            turn.settle()
            yield turn


class Turn:
    """What may be done to the history and its alias while nobody else does."""

    def __init__(self, history: History, lease: Lease, proofs: RunStore) -> None:
        self.history, self._lease, self._proofs = history, lease, proofs
        self.steps: list[Proof] = []
        """All entries, once they are in step with the alias."""
        self.finished: Proof | None = None
        """The entry of a process that died before it had carried it out, which this one did."""

    @property
    def champion(self) -> str | None:
        """The version that has the alias."""
        return self.steps[-1].after if self.steps else None

    def settle(self) -> None:
        """Finish what was cut off, and take note of an alias that is where no entry put it."""
        history = self.history
        self.steps = [*history.proofs]
        champion, last = history.champion, self.steps[-1] if self.steps else None
        if last is None:
            if champion is not None:
                self._find(None, champion, "it was there when this history began")
            return
        if last.number > history.done:
            if champion in (last.before, last.after) and (last.after is None or history.has(last.after)):
                self._finish(last)
                self.finished = last
                return
            self._mark(last)
        if champion != last.after:
            self._find(last.after, champion, "it was moved by something else than promote and rollback")

    def add(self, verdict: Verdict, version: str | None, after: str | None, **facts: Any) -> Entry:
        """A new entry, carried out: `facts` as of `Entry`. LeaseError where the turn was taken over."""
        history = self.history
        entry = Entry(
            number=len(self.steps) + 1, verdict=verdict, version=version, before=self.champion, after=after,
            when=now(), name=history.name, alias=history.alias, who=who(), **facts,
        )  # fmt: skip
        data = entry.model_dump_json(indent=1)
        digest = sha256(data.encode())
        file = f"entries/{entry.number:06d}-{digest[:12]}.json"
        self._lease.check()
        with translated(history.uri):
            history.client.log_text(history.run_id, data, file)
        proof = Proof(**entry.model_dump(include={*Step.model_fields}), file=file, sha256=digest)
        if not self._proofs.create(f"{entry.number:06d}", proof.model_dump_json().encode()):
            raise PromoteError(f"another process has just written entry {entry.number}: run this command again")
        self._finish(proof)
        self.steps.append(proof)
        return entry

    def weights_of(self, version: str | None) -> str | None:
        """Hex SHA-256 of the version's weights, as it was registered or judged; None where nothing says it."""
        if version is None:
            return None
        judged = (step.weights_sha256 for step in reversed(self.steps) if step.version == version)
        found = next((one for one in judged if one), None)
        if found is None and self.history.has(version):
            with translated(self.history.uri):
                found = self.history.client.get_model_version(self.history.name, version).tags.get(HASH)
        return found

    def _find(self, before: str | None, after: str | None, reason: str) -> None:
        alias = self.history.alias
        where = "was taken away" if after is None else f"is on version {after}"
        self.add(
            Verdict.FOUND, after, after, reasons=(f"@{alias} {where}: {reason}",),
            weights_sha256=self.weights_of(after), champion_sha256=self.weights_of(before),
        )  # fmt: skip

    def _finish(self, step: Step) -> None:
        """Carry out an entry; a part that is done already is done once more."""
        history = self.history
        self._lease.check()
        is_there = step.version is not None and self.history.has(step.version)
        with translated(history.uri):
            if step.after is not None and history.champion != step.after:
                history.client.set_registered_model_alias(history.name, history.alias, step.after)
            if is_there:
                facts = {"verdict": str(step.verdict), "date": step.when, "entry": str(step.number)}
                for tag, value in facts.items():
                    history.client.set_model_version_tag(history.name, step.version, f"promotion.{tag}", value)
        self._mark(step)

    def _mark(self, step: Step) -> None:
        with translated(self.history.uri):
            self.history.client.set_tag(self.history.run_id, DONE, str(step.number), synchronous=True)


def aliases_of(client: MlflowClient, uri: str, name: str) -> dict[str, str]:
    """{alias: version} of a registered model. PromoteError, with the names there are, where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    names = sorted(model.name for model in client.search_registered_models())
    there = f"it has {', '.join(names)}" if names else "it has no model yet"
    raise PromoteError(f"the registry at {redacted(uri)} has no model {name!r}: {there}")


def champion_of(uri: str, name: str, alias: str) -> str | None:
    """The version that has the alias; None also where there is no model of the name, or no registry."""
    if is_there(uri):
        with suppress(PromoteError), using(uri) as client:
            return aliases_of(client, uri, name).get(alias)
    return None


def _title(name: str, alias: str) -> str:
    return f"promotions of {name}@{alias}"


def _find(client: MlflowClient, name: str, alias: str) -> str | None:
    """The run of the history; one that was deleted is brought back."""
    experiment = client.get_experiment_by_name(_title(name, alias))
    if experiment is None:
        return None
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    # ViewType.ALL is 3: its module takes long to import.
    runs = client.search_runs(
        [experiment.experiment_id], run_view_type=3, order_by=["attributes.start_time ASC"], max_results=1
    )
    if runs and runs[0].info.lifecycle_stage != "active":
        client.restore_run(runs[0].info.run_id)
    return str(runs[0].info.run_id) if runs else None


def _begin(client: MlflowClient, uri: str, name: str, alias: str) -> str:
    """A run for the history. Of several processes that begin one at once, that which made the experiment makes it."""
    title = _title(name, alias)
    made = create_experiment(client, uri, title)
    experiment_id = made or open_experiment(client, uri, title)
    # One that died between the two left an experiment without a run.
    deadline = time.monotonic() + (0 if made else _CREATOR_SECONDS)
    while time.monotonic() < deadline:
        if (run_id := _find(client, name, alias)) is not None:
            return run_id
        time.sleep(0.2)
    check_artifacts(uri, str(client.get_experiment(experiment_id).artifact_location))
    run_id = str(client.create_run(experiment_id, run_name=title).info.run_id)
    # Not `set_terminated`, which prints where the run is seen.
    client.update_run(run_id, status="FINISHED")
    return run_id
