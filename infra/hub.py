"""The Hugging Face hub as seen from this machine: its cache, and why it did not give a model."""

from __future__ import annotations

import os
from pathlib import Path

from rwkvfusion.infra.model_folder import FILES, INDEX, PICKLES, SINGLE


class HubError(Exception):
    """The hub did not give a model; the message says why and what to do."""


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


def endpoint() -> str:
    """The hub that is asked: $HF_ENDPOINT, else huggingface.co."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def command(model: str, revision: str, *more: str) -> str:
    """What a user may run to download what `download` does."""
    include = [f'--include "{pattern}"' for pattern in FILES]
    return " ".join(["hf download", model, "--revision", revision, *include, *more])


def download(model: str, revision: str) -> None:
    """Download what counts of `model` at the commit `revision` into the cache; HubError says why that cannot be."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        there = {file.rfilename for file in HfApi().model_info(model, revision=revision).siblings or ()}
        if not there & {SINGLE, INDEX}:
            raise HubError(f"{model} at revision {revision} has no {SINGLE} on the hub; {PICKLES}")
        if "config.json" not in there:
            raise HubError(f"{model} at revision {revision} has no config.json on the hub: it is no transformers model")
        snapshot_download(model, revision=revision, cache_dir=cache(), allow_patterns=FILES, ignore_patterns="*/*")
    except HubError:
        raise
    except Exception as error:
        # The hub's client raises errors of its own and of two HTTP libraries.
        raise HubError(_refusal(error, model, revision)) from error


def first_line(error: BaseException) -> str:
    """What a foreign error says, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _repository(model: str) -> Path:
    return cache() / f"models--{model.replace('/', '--')}"


def _refusal(error: Exception, model: str, revision: str) -> str:
    """Why the hub did not give the model, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub = endpoint()
    if isinstance(error, GatedRepoError):
        return f"{model} is gated: accept its terms at {hub}/{model}, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} has no model {model}, or shows it only to its members (`hf auth login`)"
    if isinstance(error, RevisionNotFoundError):
        return f"{model} has no revision {revision} on {hub}; {hub}/{model}/commits/main lists them"
    return f"could not download {model} at revision {revision} from {hub}: {first_line(error)}"
