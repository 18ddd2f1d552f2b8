"""The file that carries training pairs to a machine with torch and numpy alone, at a third of their size."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One pair: of one size and 8 bits, luma only."""

    key: str
    planes: tuple[np.ndarray, ...]
    """(H, W) uint8 of each modality, then of the target where there is one; or of one picture that they are made of."""
    mask: np.ndarray | None = None
    """(H, W) uint8, 0 = background."""
    text: np.ndarray | None = None
    """(tokens, width) float16."""
    names_sides: bool = False
    names_heights: bool = False


@dataclass(frozen=True)
class Pack:
    """Training pairs, and what their model has to know of them."""

    task: str
    roles: tuple[str, ...]
    text_width: int
    samples: tuple[Sample, ...]
    held_out: int = 0
    """The last so many samples are not trained on."""
    about: dict[str, Any] = field(default_factory=dict)
    """Where the pairs are from: fingerprints of the datasets, identity of the text stage."""


_FIELDS = ("task", "roles", "text_width", "held_out", "about")


def write(path: Path, pack: Pack) -> None:
    """Write `pack` as an .npz of compressed bytes: planes as differences of neighbours, which are small."""
    header = {name: value for name, value in asdict_of(pack).items() if name in _FIELDS}
    header["samples"] = [
        {
            "key": one.key,
            "size": one.planes[0].shape,
            "planes": len(one.planes),
            "mask": one.mask is not None,
            "tokens": 0 if one.text is None else len(one.text),
            "names_sides": one.names_sides,
            "names_heights": one.names_heights,
        }
        for one in pack.samples
    ]
    parts = {
        "planes": [_differences(plane) for one in pack.samples for plane in one.planes],
        "masks": [one.mask for one in pack.samples if one.mask is not None],
        "texts": [one.text.astype(np.float16) for one in pack.samples if one.text is not None],
    }
    arrays = {name: _compressed(b"".join(a.tobytes() for a in some)) for name, some in parts.items()}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    part.replace(path)


def read(path: Path) -> Pack:
    """What `write` wrote; ValueError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            data = {name: lzma.decompress(file[name].tobytes()) for name in ("planes", "masks", "texts")}
    except (OSError, KeyError, ValueError, lzma.LZMAError) as error:
        raise ValueError(f"{path} is no pack of training pairs: {error}") from None
    taken = dict.fromkeys(data, 0)

    def take(name: str, shape: Sequence[int], dtype: type = np.uint8) -> np.ndarray:
        count = int(np.prod(shape))
        array: np.ndarray = np.frombuffer(data[name], dtype, count, taken[name]).reshape(shape)
        taken[name] += array.nbytes
        return array

    samples = []
    for one in header.pop("samples"):
        planes = tuple(_summed(take("planes", one["size"])) for _ in range(one["planes"]))
        mask = take("masks", one["size"]) if one["mask"] else None
        text = take("texts", (one["tokens"], header["text_width"]), np.float16) if one["tokens"] else None
        samples.append(Sample(one["key"], planes, mask, text, one["names_sides"], one["names_heights"]))
    return Pack(samples=tuple(samples), **(header | {"roles": tuple(header["roles"])}))


def asdict_of(pack: Pack) -> dict[str, Any]:
    """The fields of `pack` but its samples."""
    return asdict(Pack(pack.task, pack.roles, pack.text_width, (), pack.held_out, pack.about))


def _compressed(data: bytes) -> np.ndarray:
    return np.frombuffer(lzma.compress(data, preset=6), np.uint8)


def _differences(plane: np.ndarray) -> np.ndarray:
    """Of each value to that above and that to the left, modulo 256."""
    down = np.diff(plane, axis=0, prepend=np.uint8(0))
    return np.diff(down, axis=1, prepend=np.uint8(0))


def _summed(differences: np.ndarray) -> np.ndarray:
    across = np.cumsum(differences, axis=1, dtype=np.uint8)
    return np.cumsum(across, axis=0, dtype=np.uint8)
