"""Weights of pretrained models: found on this machine, checked and hashed; fetched when asked for.

Only safetensors folders and single checkpoint files are known; no other format of a hub's repository is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fsspec.core import split_protocol

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import Store

FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")
"""What of a model's folder shapes its output: weights, settings, tokenizer."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class WeightsError(RwkvFusionError, ValueError):
    """Weights that are missing or not what they should be; the message says what to do."""


class MissingWeightsError(WeightsError):
    """Weights that are not on this machine, but may be fetched."""


@dataclass(frozen=True)
class Weights:
    """Weights as found: `path` on this machine; `model` (hub id, else the folder's or file's name), `revision` (a
    hub's commit) and `sha256` (over everything in them that shapes the output) on any machine."""

    path: Path
    model: str
    revision: str | None
    sha256: str

    def identity(self) -> dict[str, str | None]:
        """For manifests and fingerprints: no path."""
        return {"model": self.model, "revision": self.revision, "sha256": self.sha256}

    def must_equal(self, other: Weights) -> None:
        """WeightsError where these are not the weights `other` (found on another machine)."""
        if self.sha256 != other.sha256:
            raise WeightsError(
                f"{self.path} on this machine is not the {other.model} the job was put together with (SHA-256"
                f" {self.sha256[:12]}, not {other.sha256[:12]}): remove it, or give all machines the same"
            )


def absolute_model(model: str) -> str:
    """A local path made absolute; a hub id or a URL unchanged. What exists as a file or folder is a path."""
    protocol, _ = split_protocol(model)
    if protocol is not None:
        return model
    path = Path(model).expanduser()
    local = model.startswith(("/", ".", "~")) or path.exists() or not _HUB_ID.fullmatch(model)
    return str(path.absolute()) if local else model


@dataclass(frozen=True)
class HubModel:
    """A transformers model: a hub id at a pinned `revision`, or a local folder.

    `sha256`: of the weights file, as the hub's page shows it; `types`: the `model_type`s accepted, none for any;
    `option`: the setting to name in messages.
    """

    model: str
    revision: str | None = None
    sha256: str | None = None
    types: frozenset[str] = frozenset()
    option: str = "model"

    def find(self) -> Weights:
        """The weights on this machine, without the network; WeightsError where they are missing or wrong."""
        _check_hash(self.sha256, self.option)
        if Path(self.model).is_absolute():
            return self._found(self._local_folder(), None)
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            raise WeightsError(f"{self.option} {self.model}: {self._unpinned()}")
        folder = _hub_folder(self.model) / "snapshots" / self.revision
        if not folder.is_dir():
            others = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
            there = f"; here is revision {', '.join(others)}" if others else ""
            raise MissingWeightsError(self._missing(f"is not on this machine{there}"))
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise MissingWeightsError(self._missing("is incomplete on this machine"))
        return self._found(folder, self.revision)

    def fetch(self, say: Callable[[str], None] = lambda _: None) -> Weights:
        """As `find`; what is missing is downloaded first, at the pinned revision, unless HF_HUB_OFFLINE is set."""
        try:
            return self.find()
        except MissingWeightsError:
            if _offline():
                raise
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        say(f"downloading {self.model} at {self.revision}")
        try:
            snapshot_download(self.model, revision=self.revision, allow_patterns=list(FILES))
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise WeightsError(f"{self.option}: cannot download {self.model}: {_first_line(error)}") from error
        return self.find()

    def _local_folder(self) -> Path:
        folder = Path(self.model)
        if self.revision is not None:
            raise WeightsError(f"{self.option} {folder} is a local folder, which has no revision: leave it out")
        if not folder.is_dir():
            raise WeightsError(f"{self.option} {folder}: there is no such folder")
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{self.option} {folder} has no config.json: it is not a transformers model")
        if not any(folder.glob("*.safetensors")):
            raise WeightsError(
                f"{self.option} {folder} has no .safetensors file (pickles are not loaded): save the model again with"
                " transformers' save_pretrained"
            )
        return folder

    def _found(self, folder: Path, revision: str | None) -> Weights:
        kind = _model_type(folder)
        if self.types and kind not in self.types:
            raise WeightsError(f"{self.option} {self.model} is a {kind!r} model, not {' or '.join(sorted(self.types))}")
        files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
        hashes = file_hashes(files)
        weights = {path.name: hashes[path] for path in files if path.suffix == ".safetensors"}
        for path in files:
            if path.suffix == ".safetensors":
                _check_header(path, self.option)
        _compare(self.sha256, _digest(weights), f"{self.option} {self.model}")
        name = self.model if revision else folder.name
        return Weights(folder, name, revision, _listing({path.name: hashes[path] for path in files}))

    def _missing(self, state: str) -> str:
        hub = f"hf download {self.model} --revision {self.revision}"
        offline = " (HF_HUB_OFFLINE is set: nothing is downloaded)" if _offline() else ""
        return (
            f"{self.option} {self.model} at {self.revision} {state}{offline}: run `rwkvfusion fetch RECIPE` with the"
            f" same settings, or `{hub}`"
        )

    def _unpinned(self) -> str:
        main = _hub_folder(self.model) / "refs" / (self.revision or "main")
        known = f" (here it is {main.read_text().strip()})" if main.is_file() else ""
        if self.revision is None:
            return (
                f"there is no such folder; for a model of the hub give {self._revision()}=COMMIT, all 40 digits{known}"
            )
        return f"revision {self.revision!r} may move: give {self._revision()} as a commit of 40 digits{known}"

    def _revision(self) -> str:
        return f"{self.option.rpartition('.')[0]}.revision".lstrip(".")


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights: a local path, or a URL with the file's `sha256`."""

    location: str
    sha256: str | None = None
    option: str = "checkpoint"

    @property
    def path(self) -> Path:
        """Where the file is, or is to be, on this machine."""
        protocol, _ = split_protocol(self.location)
        if protocol is None:
            return Path(self.location)
        return cache_folder() / "checkpoints" / str(self.sha256) / self.location.rstrip("/").rpartition("/")[2]

    def find(self) -> Weights:
        """The file on this machine; WeightsError where it is missing or another one."""
        _check_hash(self.sha256, self.option)
        remote = split_protocol(self.location)[0] is not None
        if remote and self.sha256 is None:
            raise WeightsError(f"{self.option} {self.location}: a checkpoint from a URL needs its sha256")
        if not self.path.is_file():
            if not remote:
                raise WeightsError(f"{self.option} {self.path}: there is no such file")
            offline = " (HF_HUB_OFFLINE is set: nothing is downloaded)" if _offline() else ""
            raise MissingWeightsError(
                f"{self.option} {self.location} is not on this machine{offline}: run `rwkvfusion fetch RECIPE` with the"
                f" same settings, or `curl --create-dirs -Lo {self.path} {self.location}`"
            )
        found = file_hashes([self.path])[self.path]
        _compare(self.sha256, found, f"{self.option} {self.path}")
        return Weights(self.path, self.path.name, None, found)

    def fetch(self, say: Callable[[str], None] = lambda _: None) -> Weights:
        """As `find`; a URL's file is downloaded first if it is missing, unless HF_HUB_OFFLINE is set."""
        try:
            return self.find()
        except MissingWeightsError:
            if _offline():
                raise
        say(f"downloading {self.location}")
        self._download()
        return self.find()

    def _download(self) -> None:
        from rwkvfusion.infra.storage import open_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            with open_file(self.location) as source, part.open("wb") as sink, _bar(source, self.path.name) as bar:
                while block := source.read(1 << 20):
                    digest.update(block)
                    sink.write(block)
                    bar.update(len(block))
            _compare(self.sha256, digest.hexdigest(), f"{self.option} {self.location}")
            os.replace(part, self.path)
        except WeightsError:
            raise
        except Exception as error:
            # fsspec's clients raise errors of their own for what goes wrong on the way.
            raise WeightsError(f"{self.option}: cannot download {self.location}: {_first_line(error)}") from error
        finally:
            part.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where checkpoints and hashes are kept: $RWKVFUSION_CACHE, else rwkvfusion in the user's cache folder."""
    own = os.environ.get("RWKVFUSION_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkvfusion"


def file_hashes(paths: list[Path]) -> dict[Path, str]:
    """Hex SHA-256 of each file; remembered by path, size and time of change, as weights are gigabytes."""
    memo = _Memo.read()
    found = {path: memo.hash(path) for path in paths}
    memo.write()
    return found


class _Memo:
    def __init__(self, known: Mapping[str, str]) -> None:
        self.known, self.new = known, dict[str, str]()

    @classmethod
    def read(cls) -> Self:
        try:
            known = json.loads((cache_folder() / "hashes.json").read_text())
        except (OSError, ValueError):
            known = {}
        return cls(known if isinstance(known, dict) else {})

    def hash(self, path: Path) -> str:
        real = path.resolve()
        state = real.stat()
        key = f"{real}:{state.st_size}:{state.st_mtime_ns}"
        if isinstance(self.known.get(key), str):
            return self.known[key]
        with real.open("rb") as file:
            self.new[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.new[key]

    def write(self) -> None:
        # Only a memo: where it cannot be written, files are hashed again the next time.
        if self.new:
            with suppress(OSError):
                Store(str(cache_folder())).write("hashes.json", json.dumps({**self.known, **self.new}).encode())


def _hub_folder(model: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    return Path(root) / repo_folder_name(repo_id=model, repo_type="model")


def _offline() -> bool:
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
               for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))  # fmt: skip


def _model_type(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (ValueError, KeyError, TypeError):
        raise WeightsError(f"{folder / 'config.json'} does not say which kind of model it is (model_type)") from None


def _check_header(path: Path, option: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np"):
            pass
    except SafetensorError as error:
        raise WeightsError(f"{option}: {path} is damaged or cut off: {error}") from None


def _check_hash(sha256: str | None, option: str) -> None:
    if sha256 is not None and not _HASH.fullmatch(sha256):
        raise WeightsError(f"{option}: sha256 is 64 hexadecimal digits in lower case, not {sha256!r}")


def _compare(wanted: str | None, found: str, what: str) -> None:
    if wanted is not None and wanted != found:
        raise WeightsError(
            f"{what} has SHA-256 {found}, the recipe says {wanted}: the file is damaged or of another model"
        )


def _digest(hashes: Mapping[str, str]) -> str:
    """Of one file its own hash; of several, that of their list as sha256sum prints it."""
    return next(iter(hashes.values())) if len(hashes) == 1 else _listing(hashes)


def _listing(hashes: Mapping[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _bar(source: Any, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=getattr(source, "size", None), unit="B", unit_scale=True, desc=name, disable=None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
