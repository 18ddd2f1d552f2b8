"""The Hugging Face hub as seen from this machine: its cache, and why it did not give a model."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Where the hub's own tools keep what they download."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()


def revisions(model: str) -> list[str]:
    """Commits of `model` of which something is in the cache."""
    return sorted(path.name for path in _repository(model).glob("snapshots/*") if path.is_dir())


def reference(model: str, name: str) -> str | None:
    """The commit that the branch or tag `name` of `model` was at when it was last downloaded here."""
    path = _repository(model) / "refs" / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def offline() -> str | None:
    """The variable that forbids the network, where one is set; the first counts, as for the hub's own client."""
    name = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(n)), None)
    return name if name and os.environ[name].upper() in ("1", "ON", "YES", "TRUE") else None


def refusal(error: Exception, model: str, revision: str | None) -> str:
    """Why the hub did not give the model, and what to do about it."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{model} is gated: accept its terms at {ENDPOINT}/{model}, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{ENDPOINT} has no model {model}, or shows it only to its members (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return f"{model} has no revision {revision} on {ENDPOINT}; {ENDPOINT}/{model}/commits/main lists them"
    return f"could not download {model} at revision {revision} from {ENDPOINT}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """What a foreign error says, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _repository(model: str) -> Path:
    return cache() / f"models--{model.replace('/', '--')}"
