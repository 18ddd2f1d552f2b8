"""Files of registered models on this machine, so that a model that was loaded once needs no network again.

{cache folder}/models/{hash of the weights}-{hash of the config}/   the fuser's two files
{cache folder}/models/{hash of registry and URI}.json               what that URI last meant
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from rwkvfusion.infra.hashes import cache_folder
from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.fuser import CONFIG, WEIGHTS


class Meaning(NamedTuple):
    """What a URI meant when a registry was asked.

    `made`: when the version was registered, in ms since 1970: a registry that is made anew counts from 1 again.
    `proof`: hex SHA-256 of its weights.
    """

    name: str
    version: str
    run_id: str | None
    made: int
    proof: str


class CacheWarning(UserWarning):
    """A model that is not known to be the newest, or that cannot be kept."""


class Cached(NamedTuple):
    """A model that is kept here: what its URI meant, and the folder of its files."""

    meaning: Meaning
    folder: Path

    @classmethod
    def find(cls, registry: str, uri: str) -> Self | None:
        """What `uri` last meant in `registry`; None where that is not known, or its files are not whole."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            found = parse_json(_entry(registry, uri).read_text(encoding="utf-8"))
            meaning, folder = Meaning(**found["meaning"]), _models() / str(found["folder"])
            if _is_whole(folder) and folder.name.startswith(meaning.proof):
                return cls(meaning, folder)
        return None

    @classmethod
    def keep(cls, registry: str, uri: str, meaning: Meaning, folder: Path) -> Self | None:
        """Copy the fuser's files in `folder`, which were proved; None, and CacheWarning, where they cannot be kept."""
        try:
            kept = _models() / _key(folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            if not _is_whole(kept):
                _copy(folder, kept)
            entry = json.dumps({"meaning": meaning._asdict(), "folder": kept.name}, indent=1)
            with tempfile.NamedTemporaryFile("w", dir=kept.parent, suffix=".part", delete=False) as file:
                file.write(entry)
            os.replace(file.name, _entry(registry, uri))
        except OSError as error:
            message = f"{uri} is not kept for the next time: {error} (set RWKVFUSION_CACHE to a folder to write to)"
            warnings.warn(message, CacheWarning, stacklevel=2)
            return None
        return cls(meaning, kept)


def _copy(folder: Path, kept: Path) -> None:
    """Whole or not at all, whoever else does the same."""
    scratch = Path(tempfile.mkdtemp(dir=kept.parent, suffix=".part"))
    try:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(folder / name, scratch / name)
        shutil.rmtree(kept, ignore_errors=True)
        with suppress(OSError):
            scratch.rename(kept)
        if not _is_whole(kept):
            raise OSError(f"{kept} cannot be made")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _models() -> Path:
    return cache_folder() / "models"


def _entry(registry: str, uri: str) -> Path:
    return _models() / f"{sha256(f'{registry} {uri}'.encode())}.json"


def _is_whole(folder: Path) -> bool:
    with suppress(OSError):
        return _key(folder) == folder.name
    return False


def _key(folder: Path) -> str:
    """Names a fuser by its files. OSError where one is missing."""
    weights, config = (sha256((folder / name).read_bytes()) for name in (WEIGHTS, CONFIG))
    return f"{weights}-{config[:16]}"
