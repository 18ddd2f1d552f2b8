"""Weights of pretrained models: found on this machine, checked and hashed; fetched when asked for.

Of a model's folder only safetensors, settings and tokenizers are looked at; nothing else is downloaded or loaded.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from fsspec.core import split_protocol

from rwkvfusion.infra.errors import RwkvFusionError, first_line
from rwkvfusion.infra.hashes import HEX, cache_folder, file_hashes, sha256sum
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import open_file

Say = Callable[[str], None]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""What of a model's folder shapes the output: weights and their index, settings, tokenizer."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = "pickles (.bin) are not loaded: save the model again with transformers' save_pretrained"


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
    """Weights on this machine: `path` (folder or file) is its own; the rest is the same on any machine.

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
        """WeightsError where these are not the weights `other`, which another machine selected."""
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
        except OSError as error:
            raise WeightsError(f"{self.option}: cannot read {error.filename or where}: {error.strerror}") from error

    def fetch(self, say: Say = lambda _: None) -> Weights:
        """As `find`; what is missing is downloaded first, at the pinned revision.

        WeightsError where that cannot be, or where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids it.
        """
        from huggingface_hub import constants

        try:
            return self.find()
        except MissingWeightsError as error:
            if variable := _offline():
                elsewhere = f"or run `{self._command()}` elsewhere and copy its folder in {_hub_cache()} to here"
                raise MissingWeightsError(error.missing, f"{variable} is set; unset it, {elsewhere}") from None
        say(f"{self.option}: downloading {self._named} from {constants.ENDPOINT}")
        self._download()
        return self.find()

    @property
    def _named(self) -> str:
        return f"{self.model} at revision {self.revision}"

    def _command(self, *more: str) -> str:
        """What a user may run to download what `fetch` does."""
        include = (f'--include "{pattern}"' for pattern in _FILES)
        return " ".join(["hf download", self.model, "--revision", str(self.revision), *include, *more])

    def _local(self, folder: Path) -> Path:
        if self.revision is not None:
            raise WeightsError(
                f"{_beside(self.option, 'revision')}: {self.model} is a local folder, which has none; leave it out"
            )
        if not folder.is_dir():
            raise WeightsError(f"{self.option}: there is no folder {folder}")
        if lacking := self._lacking(folder):
            raise WeightsError(f"{self.option}: {folder} has no {lacking}")
        return folder

    def _snapshot(self) -> Path:
        """The folder of the pinned revision in the hub's cache."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

        remedy = f"run `rwkvfusion fetch RECIPE` with the same settings, or `{self._command()}`"
        revision, rest = self._pinned(), None
        try:
            folder = Path(snapshot_download(self.model, revision=revision, local_files_only=True, **_wanted()))
        except HFValidationError:
            raise WeightsError(
                f"{self.option}: {self.model!r} is neither a folder here nor a hub id (OWNER/NAME)"
            ) from None
        except IncompleteSnapshotError as error:
            folder, rest = Path(error.snapshot_path), "settings or tokenizer files that belong to it"
        except LocalEntryNotFoundError:
            others = sorted(_cached(self.model))
            here = f"here is {' and '.join(others)}" if others else f"looked in {_hub_cache()}"
            missing = f"{self.option}: {self._named} is not on this machine; {here}"
            raise MissingWeightsError(missing, remedy) from None
        if lacking := self._lacking(folder) or rest:
            incomplete = f"{self.option}: {self._named} is incomplete on this machine, without {lacking}"
            raise MissingWeightsError(incomplete, remedy)
        return folder

    def _pinned(self) -> str:
        if self.revision and _COMMIT.fullmatch(self.revision):
            return self.revision
        setting, name = _beside(self.option, "revision"), self.revision or "main"
        commits = [commit for commit, names in _cached(self.model).items() if name in names]
        here = f"; on this machine {name} is {commits[0]}" if commits else ""
        if self.revision is None:
            raise WeightsError(
                f"{self.option}: there is no folder {self.model} here, and a model of the hub needs {setting},"
                f" the full commit of 40 digits{here}"
            )
        raise WeightsError(
            f"{setting}: {name!r} is no full commit of {self.model}; branches and tags move, so give all"
            f" 40 digits{here}"
        )

    def _lacking(self, folder: Path) -> str | None:
        """What transformers would miss in `folder`."""
        if not (folder / "config.json").is_file():
            return "config.json"
        missing = [path.name for path in self._weight_files(folder) if not path.is_file()]
        if missing == [_SINGLE] and any(folder.glob("*.bin")):
            return f"{_SINGLE}; {_PICKLES}"
        return ", ".join(missing) or None

    def _weight_files(self, folder: Path) -> list[Path]:
        """What transformers would load: the single file, else those that the index names; they need not exist."""
        if (folder / _SINGLE).is_file() or not (folder / _INDEX).is_file():
            return [folder / _SINGLE]
        names = self._json(folder / _INDEX).get("weight_map")
        # Only files directly in the folder count, so one elsewhere is one that is missing.
        files = {folder / Path(str(name)).name for name in names.values()} if isinstance(names, dict) else set()
        return sorted(files) or [folder / _SINGLE]

    def _checked(self, folder: Path, name: str) -> Weights:
        kind = self._json(folder / "config.json").get("model_type")
        if self.types and (not isinstance(kind, str) or kind not in self.types):
            what = f"is a {kind!r} model" if isinstance(kind, str) else "has a config.json without model_type"
            raise WeightsError(f"{self.option} needs {' or '.join(sorted(self.types))}, but {self.model} {what}")
        weights = self._weight_files(folder)
        for path in weights:
            self._check_sound(path)
        files = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
        hashes = file_hashes(sorted(path for path in files if not path.name.lower().startswith((".", "readme"))))
        for path, digest in hashes.items():
            # The hub's cache names large files by the hash that the hub gave for them.
            if self.revision and HEX.fullmatch(path.resolve().name) and path.resolve().name != digest:
                raise WeightsError(f"{self.option}: {path} is damaged: its SHA-256 is not the hub's; {self._anew}")
        # Of one weights file its own hash, as the hub's page shows it; of several that of their list.
        actual = hashes[weights[0]] if len(weights) == 1 else sha256sum({path: hashes[path] for path in weights})
        if self.sha256 not in (None, actual):
            what = weights[0].name if len(weights) == 1 else f"the list of {len(weights)} weight files"
            raise WeightsError(
                f"{_beside(self.option, 'sha256')}: {what} of {self.model} has SHA-256 {actual}, not {self.sha256}:"
                f" it may be damaged, or another model's; {self._anew}"
            )
        return Weights(folder, name, self.revision, sha256sum(hashes))

    def _check_sound(self, path: Path) -> None:
        """WeightsError where a safetensors file is not one, as far as its header and its size tell."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="np"):
                return
        except SafetensorError as error:
            raise WeightsError(
                f"{self.option}: {path} is damaged, cut off, or only git-lfs's pointer to it ({error}); {self._anew}"
            ) from None

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise WeightsError(f"{self.option}: {path} is damaged: it is not a JSON object")
        return content

    @property
    def _anew(self) -> str:
        """What to do about a damaged file."""
        if self.revision is None:
            return "copy it anew"
        # The cache keeps the data apart from the snapshot, which links to it: removing the snapshot repairs nothing.
        return f"fetch it anew with `{self._command('--force-download')}`"

    def _download(self) -> None:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        hub = constants.ENDPOINT
        try:
            files = {file.rfilename for file in HfApi().model_info(self.model, revision=self.revision).siblings or ()}
            if not files & {_SINGLE, _INDEX}:
                raise WeightsError(f"{self.option}: {self._named} has no {_SINGLE} on the hub; {_PICKLES}")
            if "config.json" not in files:
                raise WeightsError(f"{self.option}: {self._named} has no config.json on the hub: no transformers model")
            snapshot_download(self.model, revision=self.revision, **_wanted())
            return
        except WeightsError:
            raise
        except GatedRepoError:
            why = f"{self.model} is gated: accept its terms at {hub}/{self.model}, then run `hf auth login`"
        except RevisionNotFoundError:
            why = f"{self.model} has no revision {self.revision} on {hub}; {hub}/{self.model}/commits/main lists them"
        except RepositoryNotFoundError:
            why = f"{hub} has no model {self.model}, or shows it only to its members (`hf auth login`)"
        except Exception as error:  # noqa: BLE001 - the hub's client has errors of its own and of two HTTP libraries
            why = f"could not download {self._named} from {hub}: {first_line(error)}"
        raise WeightsError(f"{self.option}: {why}")


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
            actual = file_hashes([path])[path]
        except OSError as error:
            raise WeightsError(f"{self.option}: cannot read {path}: {error.strerror}") from error
        if self.sha256 not in (None, actual):
            if self._remote:
                raise MissingWeightsError(f"{self.option}: {path} is damaged", self._remedy)
            raise WeightsError(
                f"{_beside(self.option, 'sha256')}: {path} has SHA-256 {actual}, not {self.sha256}: it may be damaged,"
                " or another model's; copy it anew"
            )
        return Weights(path, path.name, None, actual)

    def fetch(self, say: Say = lambda _: None) -> Weights:
        """As `find`; a URL's file that is missing or damaged is downloaded first.

        WeightsError where that cannot be, where other bytes arrive, or where HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE
        forbids it; these are about the internet, so that other stores than http are still read.
        """
        try:
            return self.find()
        except MissingWeightsError as error:
            if "http" in str(split_protocol(self.location)[0]) and (variable := _offline()):
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
        import pooch

        # It tells of URLs with their signatures.
        pooch.get_logger().setLevel("ERROR")
        path = self._path
        try:
            pooch.retrieve(self.location, f"sha256:{self.sha256}", path.name, path.parent, downloader=_copy)
        except ValueError as error:
            if "does not match" not in str(error):
                raise WeightsError(f"{self.option}: could not download {self._shown}: {_reason(error)}") from error
            raise WeightsError(
                f"{self.option}: {self._shown} gave a file with another SHA-256 than {self.sha256}: it was damaged on"
                " the way, or is another file now"
            ) from None
        except Exception as error:
            # Each protocol's client has its own errors.
            raise WeightsError(f"{self.option}: could not download {self._shown}: {_reason(error)}") from error


def _copy(url: str, target: str, _: object) -> None:
    """As one of pooch's downloaders, for any protocol that fsspec knows."""
    from tqdm import tqdm

    with open_file(url) as source, open(target, "wb") as sink:
        shown = tqdm.wrapattr(source, "read", total=getattr(source, "size", None), disable=None)
        with shown as blocks:
            while block := blocks.read(1 << 20):
                sink.write(block)


def _hub_cache() -> Path:
    """Where the hub's own tools keep what they download."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()


def _wanted() -> dict[str, Any]:
    return {"cache_dir": _hub_cache(), "allow_patterns": _FILES, "ignore_patterns": "*/*"}


def _cached(model: str) -> dict[str, frozenset[str]]:
    """The commits of `model` of which something is in the hub's cache, each with its branches and tags."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = [one for one in scan_cache_dir(_hub_cache()).repos if one.repo_id == model]
    except CacheNotFound:
        return {}
    return {revision.commit_hash: revision.refs for one in repositories for revision in one.revisions}


def _offline() -> str | None:
    """The variable that forbids the network, where one is set; the first counts, as for the hub's own client."""
    name = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n)), None)
    return name if name and os.environ[name].upper() in ("1", "ON", "YES", "TRUE") else None


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
    return re.sub(r"\?[^\s'\")]*", "", first_line(error))
