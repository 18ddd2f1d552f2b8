"""Weights of pretrained models: found on this machine, checked and hashed; fetched when asked for.

Of a model's folder only safetensors, settings and tokenizers are looked at; nothing else is downloaded or loaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from fsspec.core import split_protocol

from rwkvfusion.infra import hub, model_folder
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.hashes import HEX, cache_folder, file_hashes, sha256sum
from rwkvfusion.infra.model_folder import FILES
from rwkvfusion.infra.storage import open_file

Say = Callable[[str], None]

_COMMIT = re.compile(r"[0-9a-f]{40}")


class WeightsError(RwkvFusionError, ValueError):
    """Weights that are missing or not what they should be; the message is one line and says what to do."""


class MissingWeightsError(WeightsError):
    """Weights that are not on this machine, but may be fetched: what is missing, and how to get it."""

    def __init__(self, missing: str, remedy: str) -> None:
        super().__init__(missing, remedy)
        self.missing = missing

    def __str__(self) -> str:
        return ": ".join(self.args)


@dataclass(frozen=True)
class Weights:
    """Weights as found: `path` (folder or file) on this machine; the rest is the same on any machine.

    `model`: hub id, else the folder's or file's name; `revision`: a hub model's commit; `sha256`: of the file, or of
    everything in the folder that shapes the output, as `sha256sum FILES | sort | sha256sum` in the C locale.
    """

    path: Path
    model: str
    revision: str | None
    sha256: str

    def identity(self) -> dict[str, str | None]:
        """For manifests and fingerprints: no path."""
        return {"model": self.model, "revision": self.revision, "sha256": self.sha256}

    def must_equal(self, other: Weights) -> None:
        """WeightsError where these are not the weights `other`, which another machine found."""
        if self.sha256 != other.sha256:
            raise WeightsError(
                f"{self.path} on {socket.gethostname()} holds {self.model} with SHA-256 {self.sha256[:12]}, but the job"
                f" was put together with {other.model}, {other.sha256[:12]}: give all machines the same files"
            )


def absolute_model(model: str) -> str:
    """A local path (`./x`, `~/x`, `/x`, `file:///x`, or anything that exists here) made absolute; hub ids and URLs
    unchanged."""
    protocol, path = split_protocol(model)
    if protocol not in (None, "file", "local"):
        return model
    if protocol or path.startswith((".", "/", "~")) or (path and os.path.exists(path)):
        return os.path.abspath(os.path.expanduser(path))
    return model


@dataclass(frozen=True)
class HubModel:
    """A transformers model: a hub id at a pinned `revision`, or a local folder.

    `sha256`: of the weights file, as the hub's page shows it; where there are several, of what `sha256sum` and `sort`
    print of them. `types`: the `model_type`s accepted, none for any. `option`: the recipe's setting, for messages.
    """

    model: str
    revision: str | None = None
    sha256: str | None = None
    types: frozenset[str] = frozenset()
    option: str = "model"

    def find(self) -> Weights:
        """The weights on this machine, without the network.

        MissingWeightsError where they may be fetched, else WeightsError where they are missing or wrong.
        """
        _check_hash(self.sha256, self.option)
        where = absolute_model(self.model)
        try:
            if os.path.isabs(where):
                return self._checked(self._local(Path(where)), os.path.basename(where))
            return self._checked(self._snapshot(), where)
        except model_folder.FolderError as error:
            raise WeightsError(f"{self.option}: {error}") from error
        except OSError as error:
            raise WeightsError(f"{self.option}: cannot read {error.filename or where}: {error.strerror}") from error

    def fetch(self, say: Say = lambda _: None) -> Weights:
        """As `find`; what is missing is downloaded first, at the pinned revision.

        WeightsError where that cannot be, or where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids it.
        """
        try:
            return self.find()
        except MissingWeightsError as error:
            if variable := hub.offline():
                elsewhere = f"or run `{self._command()}` elsewhere and copy its folder in {hub.cache()} to here"
                raise MissingWeightsError(error.missing, f"{variable} is set; unset it, {elsewhere}") from None
        say(f"{self.option}: downloading {self._named} from {hub.endpoint()}")
        try:
            hub.download(self.model, str(self.revision))
        except hub.HubError as error:
            raise WeightsError(f"{self.option}: {error}") from error
        return self.find()

    @property
    def _named(self) -> str:
        return f"{self.model} at revision {self.revision}"

    @property
    def _remedy(self) -> str:
        return f"run `rwkvfusion fetch RECIPE` with the same settings, or `{self._command()}`"

    def _command(self, *more: str) -> str:
        return hub.command(self.model, str(self.revision), *more)

    def _local(self, folder: Path) -> Path:
        if self.revision is not None:
            raise WeightsError(
                f"{_beside(self.option, 'revision')}: {self.model} is a local folder, which has none; leave it out"
            )
        if not folder.is_dir():
            raise WeightsError(f"{self.option}: there is no folder {folder}")
        if lack := model_folder.lack(folder):
            raise WeightsError(f"{self.option}: {folder} has no {lack}")
        return folder

    def _snapshot(self) -> Path:
        """The folder of the pinned revision in the hub's cache."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(
                    self.model,
                    revision=self._pinned(),
                    cache_dir=hub.cache(),
                    local_files_only=True,
                    allow_patterns=FILES,
                    ignore_patterns="*/*",
                )
            )
            lack = model_folder.lack(folder)
        except HFValidationError:
            raise WeightsError(
                f"{self.option}: {self.model!r} is neither a folder here nor a hub id (OWNER/NAME)"
            ) from None
        except IncompleteSnapshotError as error:
            folder = Path(error.snapshot_path)
            lack = model_folder.lack(folder) or "settings or tokenizer files that belong to it"
        except LocalEntryNotFoundError:
            others = hub.revisions(self.model)
            there = f"; here is {' and '.join(others)}" if others else f"; looked in {hub.cache()}"
            raise MissingWeightsError(
                f"{self.option}: {self._named} is not on this machine{there}", self._remedy
            ) from None
        if lack:
            raise MissingWeightsError(
                f"{self.option}: {self._named} is incomplete on this machine, without {lack}", self._remedy
            )
        return folder

    def _pinned(self) -> str:
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        name = self.revision or "main"
        commit = hub.reference(self.model, name)
        known = f"; on this machine {name} is {commit}" if commit else ""
        setting = _beside(self.option, "revision")
        if self.revision is None:
            raise WeightsError(
                f"{self.option}: there is no folder {self.model} here, and a model of the hub needs {setting},"
                f" the full commit of 40 digits{known}"
            )
        raise WeightsError(
            f"{setting}: {self.revision!r} is no full commit of {self.model}; branches and tags move, so give all"
            f" 40 digits{known}"
        )

    def _checked(self, folder: Path, name: str) -> Weights:
        kind = model_folder.model_type(folder)
        if self.types and kind not in self.types:
            what = f"is a {kind!r} model" if kind else "has a config.json without model_type"
            raise WeightsError(f"{self.option} needs {' or '.join(sorted(self.types))}, but {self.model} {what}")
        weights = model_folder.weight_files(folder)
        for path in weights:
            if damage := model_folder.damage(path):
                raise WeightsError(f"{self.option}: {path} {damage}; {self._anew}")
        hashes = model_folder.hashes(folder)
        for path, digest in hashes.items():
            # The hub's cache names large files by the hash that the hub gave for them.
            if self.revision and HEX.fullmatch(path.resolve().name) and path.resolve().name != digest:
                raise WeightsError(f"{self.option}: {path} is damaged: its SHA-256 is not the hub's; {self._anew}")
        found = model_folder.weights_hash(hashes, weights)
        if self.sha256 not in (None, found):
            what = weights[0].name if len(weights) == 1 else f"the list of {len(weights)} weight files"
            raise WeightsError(
                f"{_beside(self.option, 'sha256')}: {what} of {self.model} has SHA-256 {found}, not {self.sha256}:"
                f" it may be damaged, or another model's; {self._anew}"
            )
        return Weights(folder, name, self.revision, sha256sum(hashes))

    @property
    def _anew(self) -> str:
        """What to do about a damaged file."""
        if self.revision is None:
            return "copy it anew"
        # The cache keeps the data apart from the snapshot, which links to it: removing the snapshot repairs nothing.
        return f"fetch it anew with `{self._command('--force-download')}`"


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights: a local path, or a URL (of any fsspec protocol) with the file's `sha256`.

    A URL's file is kept in the cache folder, under its hash. `option`: the recipe's setting, for messages.
    """

    location: str
    sha256: str | None = None
    option: str = "checkpoint"

    def find(self) -> Weights:
        """The file on this machine, without the network.

        MissingWeightsError where it may be fetched, else WeightsError where it is missing or another one.
        """
        _check_hash(self.sha256, self.option)
        if self._remote and self.sha256 is None:
            raise WeightsError(f"{_beside(self.option, 'sha256')}: a checkpoint from a URL needs it ({self._shown})")
        path = self._path
        if not path.is_file():
            if self._remote:
                raise MissingWeightsError(f"{self.option}: {self._shown} is not on this machine", self._remedy)
            what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
            raise WeightsError(f"{self.option}: {path} {what}")
        try:
            found = file_hashes([path])[path]
        except OSError as error:
            raise WeightsError(f"{self.option}: cannot read {path}: {error.strerror}") from error
        if self.sha256 not in (None, found):
            if self._remote:
                raise MissingWeightsError(f"{self.option}: {path} is damaged", self._remedy)
            raise WeightsError(
                f"{_beside(self.option, 'sha256')}: {path} has SHA-256 {found}, not {self.sha256}: it may be damaged,"
                " or another model's; copy it anew"
            )
        return Weights(path, path.name, None, found)

    def fetch(self, say: Say = lambda _: None) -> Weights:
        """As `find`; a URL's file that is missing or damaged is downloaded first.

        WeightsError where that cannot be, where other bytes arrive, or where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE
        forbids it; these are about the internet, so that other stores than http are still read.
        """
        try:
            return self.find()
        except MissingWeightsError as error:
            if "http" in str(split_protocol(self.location)[0]) and (variable := hub.offline()):
                elsewhere = f"or give {self.option} a copy of it"
                raise MissingWeightsError(error.missing, f"{variable} is set; unset it, {elsewhere}") from None
        say(f"{self.option}: downloading {self._shown}")
        self._download()
        return self.find()

    @property
    def _remote(self) -> bool:
        return "://" in absolute_model(self.location)

    @property
    def _shown(self) -> str:
        # What follows may be a signature.
        return self.location.partition("?")[0]

    @property
    def _path(self) -> Path:
        if not self._remote:
            return Path(os.path.abspath(absolute_model(self.location)))
        name = PurePosixPath(unquote(self._shown)).name.lstrip(".")
        return cache_folder() / "checkpoints" / str(self.sha256) / (name or "checkpoint")

    @property
    def _remedy(self) -> str:
        return f"run `rwkvfusion fetch RECIPE` with the same settings, or give {self.option} a copy of it"

    def _download(self) -> None:
        path = self._path
        # Several workers of several machines may fetch into one folder.
        part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            digest = self._copy(part)
            if digest != self.sha256:
                raise WeightsError(
                    f"{self.option}: {self._shown} gave {part.stat().st_size} bytes with SHA-256 {digest}, not"
                    f" {self.sha256}: it was damaged on the way, or is another file now"
                )
            os.replace(part, path)
        except WeightsError:
            raise
        except Exception as error:
            # Each protocol's client has its own errors.
            raise WeightsError(f"{self.option}: could not download {self._shown}: {_reason(error)}") from error
        finally:
            with suppress(OSError):
                part.unlink()

    def _copy(self, part: Path) -> str:
        """Copy what is at the URL to `part`; its hash."""
        from tqdm import tqdm

        digest = hashlib.sha256()
        with open_file(self.location) as source, part.open("wb") as sink:
            size = getattr(source, "size", None)
            with tqdm(total=size, unit="B", unit_scale=True, desc=self._path.name, disable=None) as bar:
                while block := source.read(1 << 20):
                    digest.update(block)
                    sink.write(block)
                    bar.update(len(block))
        return digest.hexdigest()


def _beside(option: str, name: str) -> str:
    """The setting `name` of the group that `option` is in."""
    return ".".join([*option.split(".")[:-1], name])


def _check_hash(sha256: str | None, option: str) -> None:
    if sha256 is not None and not HEX.fullmatch(sha256):
        raise WeightsError(f"{_beside(option, 'sha256')}: {sha256!r} is not 64 hexadecimal digits in lower case")


def _reason(error: Exception) -> str:
    """Why a file did not come, without what follows the question mark of its URL."""
    # fsspec's http calls every refusal a missing file; what the server said is the first cause of it.
    first: BaseException = error
    while first.__cause__:
        first = first.__cause__
    if status := getattr(first, "status", None):
        return f"the server answered {status} {getattr(first, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return re.sub(r"\?[^\s'\")]*", "", hub.first_line(error))
