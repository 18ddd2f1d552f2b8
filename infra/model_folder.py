"""A folder that holds a transformers model: what of it counts, what it lacks, whether it is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvfusion.infra.hashes import file_hashes, sha256sum

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""What of it shapes the output: weights and their index, settings, tokenizer."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = "pickles (.bin) are not loaded: save the model again with transformers' save_pretrained"


class FolderError(ValueError):
    """A file of the folder is not what its name says; the message names it."""


def lack(folder: Path) -> str | None:
    """What transformers would miss in `folder`."""
    if not (folder / "config.json").is_file():
        return "config.json"
    missing = [path.name for path in weight_files(folder) if not path.is_file()]
    if missing == [SINGLE] and any(folder.glob("*.bin")):
        return f"{SINGLE}; {PICKLES}"
    return ", ".join(missing) or None


def weight_files(folder: Path) -> list[Path]:
    """What transformers would load: the single file, else those that the index names; they need not exist."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [folder / SINGLE]
    names = _json(folder / INDEX).get("weight_map")
    # Only files directly in the folder count, so one elsewhere is one that is missing.
    found = {folder / Path(str(name)).name for name in names.values()} if isinstance(names, dict) else set()
    return sorted(found) or [folder / SINGLE]


def hashes(folder: Path) -> dict[Path, str]:
    """Hex SHA-256 of each file that shapes the output."""
    files = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    return file_hashes(sorted(path for path in files if not path.name.lower().startswith((".", "readme"))))


def weights_hash(hashes: dict[Path, str], weights: list[Path]) -> str:
    """Of one weights file its own hash, as the hub's page shows it; of several that of their list."""
    return hashes[weights[0]] if len(weights) == 1 else sha256sum({path: hashes[path] for path in weights})


def model_type(folder: Path) -> str | None:
    """Which architecture it is, in transformers' words."""
    kind = _json(folder / "config.json").get("model_type")
    return kind if isinstance(kind, str) else None


def damage(path: Path) -> str | None:
    """What is wrong with a safetensors file, as far as its header and its size tell; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np"):
            return None
    except SafetensorError as error:
        with path.open("rb") as file:
            pointer = file.read(23) == b"version https://git-lfs"
        return (
            "is only git-lfs's pointer to the weights (`git lfs pull` gets them)"
            if pointer
            else f"is damaged or cut off ({error})"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise FolderError(f"{path} is damaged: it is not a JSON object")
    return found
