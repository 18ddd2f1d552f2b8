"""Small objects kept in an MLflow run, of which each is created once: for what must be agreed on wherever MLflow is.

Artifacts would not do: they have no "create only if there is none", and a server may keep them out of the reach of
fsspec. A parameter of a run has one value for ever, and of several that set it at once one succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rwkvfusion.infra.storage import MissingError, StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunData

MAX_BYTES = 6000
"""Of an object."""


@dataclass(frozen=True)
class RunStore:
    """Objects in the run `run_id`, by names of letters, digits and `_-./ `; as much of a `Store` as a lease needs.

    An object is a parameter; once it is written again, a tag of the same name. Nothing of it depends on MLflow's
    global settings, so that it may be used in any thread. StorageError where MLflow fails.
    """

    client: MlflowClient = field(repr=False)
    run_id: str
    url: str
    """How errors call it."""
    folder: str = ""
    """That all names are in; empty for none."""
    patience: float = 30.0
    """Seconds that a caller waits for MLflow, which has a patience of its own."""

    def sub(self, folder: str) -> RunStore:
        """The folder below this one."""
        return replace(self, folder=self._in(folder))

    def objects(self) -> dict[str, bytes]:
        """All in the folder, by name, as they were created."""
        params, prefix = self._data().params, self._in("")
        return {name.removeprefix(prefix): one.encode() for name, one in params.items() if name.startswith(prefix)}

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of objects directly in `folder`, by name: the newest by name, and others that were written again and
        are not removed. What is older does not count any more, as nothing can take a parameter away."""
        data = self._data()
        prefix = self._in(f"{folder}/" if folder else "")
        names = [name for name in data.params if name.startswith(prefix) and "/" not in name[len(prefix) :]]
        counted = {name for name in names if name in data.tags} | ({max(names)} if names else set())
        return {name.removeprefix(prefix): len(data.params[name]) for name in counted}

    def read(self, name: str) -> bytes:
        """The object as it was last written. MissingError where there is none."""
        data, key = self._data(), self._in(name)
        if key not in data.params:
            raise MissingError(f"{self.url} has no {name}")
        return str(data.tags.get(key, data.params[key])).encode()

    def create(self, name: str, data: bytes) -> bool:
        """Make the object only if there is none: False, and nothing done, where there is another."""
        from mlflow.exceptions import MlflowException

        key, text = self._in(name), self._checked(name, data)
        try:
            self.client.log_param(self.run_id, key, text, synchronous=True)
        except MlflowException:
            # It was there, or MLflow failed, maybe after it was made.
            params = self._data().params
            if key not in params:
                raise StorageError(f"{self.url}: MLflow did not take {name}: run this again") from None
            return bool(params[key] == text)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write an object anew that was created before."""
        with self._asking():
            self.client.set_tag(self.run_id, self._in(name), self._checked(name, data), synchronous=True)

    def remove(self, name: str) -> None:
        """Forget what was written after the object was created."""
        with self._asking():
            if self._in(name) in self._data().tags:
                self.client.delete_tag(self.run_id, self._in(name))

    def _in(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def _data(self) -> RunData:
        with self._asking():
            return self.client.get_run(self.run_id).data

    def _checked(self, name: str, data: bytes) -> str:
        # MLflow would cut it off in silence.
        if len(data) > MAX_BYTES:
            raise StorageError(f"{self.url}: {name} has {len(data)} bytes, a parameter of MLflow {MAX_BYTES} at most")
        return data.decode()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise StorageError(f"{self.url}: {error}") from None
