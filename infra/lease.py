"""One writer at a time for a folder on storage: a lease that expires, with a number that fences off who lost it.

    {folder}/_lease/{00000007}.json

The newest number is the lease; taking it over is creating the next number, which of several only one can do. The
holder renews its own file. Clocks of machines may differ by less than the time a lease is given for.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import MissingError, StorageError

LEASES = "_lease"
SECONDS = 60.0
"""How long a lease is good for after it was last renewed, unless a recipe says otherwise."""
LOOK_SECONDS = 1.0
"""How often a lease that another has is looked at, to see whether it is renewed."""
RELEASE_SECONDS = 2.0
"""How long a job that failed tries to give its lease back."""
_NAME = re.compile(r"^(\d{8})\.json$")


class Objects(Protocol):
    """What a lease needs of the place that it lies in: a `Store`, or what creates objects as one does."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def url(self) -> str: ...
    @property
    def patience(self) -> float: ...
    def sizes(self, folder: str = "") -> dict[str, int]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def remove(self, name: str) -> None: ...


class LeaseError(RwkvFusionError):
    """Another job holds the folder, or took it over; the message says which, and what to do."""


class Holder(BaseModel):
    """Who has a lease: a process, told from others that had or will have its number by when it began."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    host: str
    space: str
    """Processes can be looked up from where this is the same: one boot of one machine, one container."""
    pid: int
    began: float

    @classmethod
    def me(cls) -> Self:
        """This process."""
        return cls(host=socket.gethostname(), space=_space(), pid=os.getpid(), began=psutil.Process().create_time())

    @property
    def is_dead(self) -> bool:
        """Whether it is sure to be gone; of a process on another machine that cannot be known."""
        if (self.host, self.space) != (socket.gethostname(), _space()):
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.began) > 1 or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class LeaseRecord(BaseModel):
    """What a lease's file says. Times are in seconds since 1970, UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    holder: Holder
    job: str
    taken: float
    renewed: float
    seconds: float
    released: bool = False

    @property
    def is_free(self) -> bool:
        """Whether another may take it over."""
        return self.released or self.renewed + self.seconds < time.time() or self.holder.is_dead

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.taken))
        left = max(self.renewed + self.seconds - time.time(), 0)
        return (
            f"process {self.holder.pid} on {self.holder.host} ({self.job}), since {since}; its lease runs out in"
            f" {left:.0f} s unless it is renewed"
        )


@dataclass(frozen=True)
class Fence:
    """What a worker is given of a lease: enough to see whether the job it works for still has it."""

    store: Objects
    number: int

    def check(self) -> None:
        """LeaseError where the lease was taken over: the caller must not write any more."""
        newest = _newest(self.store)
        if newest != self.number:
            said = _read(self.store, newest)
            raise LeaseError(
                f"{self.store.url} was taken over by {said or 'another job'}: this one had not renewed its lease in"
                " time, and stops; what it committed stays"
            )


class Lease:
    """The right to write below `store`, as a context manager; renewed by a thread as long as it is open.

    `watch`: where another has it, wait until its holder renews it, and so is alive, or it has run out; without, whoever
    comes next to a job that died on another machine is told that it works.

    Raises:
        LeaseError: another job has it. A lease that ran out, or whose holder is seen to be dead, is taken over.
    """

    def __init__(self, store: Objects, job: str, seconds: float = SECONDS, *, watch: bool = False) -> None:
        self.store, self.job, self.seconds, self.watch = store, job, seconds, watch
        self.follows_release = False
        """Whether the job before this one ended by itself, and did not die."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        seen = None
        while True:
            now = time.time()
            self.record = LeaseRecord(holder=Holder.me(), job=self.job, taken=now, renewed=now, seconds=self.seconds)
            newest = _newest(self.store)
            held = _read(self.store, newest)
            if held is not None and not held.is_free:
                if self.watch and seen in (None, held):
                    seen = held
                    time.sleep(min(LOOK_SECONDS, held.seconds / 4))
                    continue
                raise LeaseError(
                    f"{self.store.url} is being written by {held}. Wait for it, or end it; a lease left by a dead job"
                    " is taken over once it has run out"
                )
            number = newest + 1
            if self.store.create(_file(number), self._bytes()):
                break
        self.follows_release = held is not None and held.released
        self.fence = Fence(self.store, number)
        for old in _numbers(self.store):
            if old < number:
                self.store.remove(_file(old))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        if error is not None:
            # It may be the store that failed: its patience was waited for, and is not once more.
            self.store = replace(self.store, patience=min(self.store.patience, RELEASE_SECONDS))
            self.fence = replace(self.fence, store=self.store)
        self._thread.join(self.store.patience)
        # The file stays: the next number must be higher than any there was. A store that is down frees it by time.
        with contextlib.suppress(StorageError, LeaseError):
            self._write(released=True)

    def check(self) -> None:
        """LeaseError where it was taken over."""
        self.fence.check()

    def _keep(self) -> None:
        while not self._stop.wait(self.seconds / 3):
            try:
                self._write()
            except LeaseError:
                return
            except StorageError:
                continue

    def _write(self, *, released: bool = False) -> None:
        self.check()
        self.record = self.record.model_copy(update={"renewed": time.time(), "released": released})
        self.store.write(_file(self.fence.number), self._bytes())

    def _bytes(self) -> bytes:
        return self.record.model_dump_json(indent=1).encode()


def holder(store: Objects) -> LeaseRecord | None:
    """Who is writing below `store` now, as far as can be seen."""
    record = _read(store, _newest(store))
    return None if record is None or record.is_free else record


def _file(number: int) -> str:
    return f"{LEASES}/{number:08d}.json"


def _numbers(store: Objects) -> list[int]:
    found = (_NAME.match(name) for name in store.sizes(LEASES))
    return sorted(int(match[1]) for match in found if match)


def _newest(store: Objects) -> int:
    return max(_numbers(store), default=0)


def _read(store: Objects, number: int) -> LeaseRecord | None:
    """None where there is none, or none that can be read: it then keeps nobody out."""
    try:
        return LeaseRecord.model_validate_json(store.read(_file(number)))
    except (MissingError, ValidationError):
        return None


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{psutil.boot_time():.0f}"
