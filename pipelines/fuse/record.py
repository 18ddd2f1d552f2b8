"""The JSON beside a fused picture: what made it, and so whether it is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rwkvfusion.infra.parse import parse_json
from rwkvfusion.infra.pictures.encode import QUALITY
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.registry.find import ModelSource
from rwkvfusion.stages.dataset.sample import Sample

File = tuple[Store, str]
Guidance = Literal["none", "builtin", "sample"]
"""Where mask and text come from: nowhere, the built-in stages, or the prepared sample."""
_BESIDE = (".tfw", ".tifw", ".wld", ".RPB", ".rpb", "_RPC.TXT", "_rpc.txt")


@dataclass(frozen=True)
class Model:
    """A fuser, where it came from, and the hash of its weights, which names it wherever it lies."""

    fuser: Fuser
    source: ModelSource
    weights_sha256: str
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """What is declared of the values of raw pictures, by role."""
    tile: Tile = "auto"
    """What the network sees at once; see `Fuser.tile_of`."""


@dataclass(frozen=True)
class Output:
    """How pictures are written."""

    format: str | None = None
    """One of `encode.FORMATS`; None: PNG where PNG can hold the picture, else TIFF."""
    quality: int = QUALITY
    """Of JPEG, 1 to 100."""
    records: bool = True
    """Whether a JSON of what made it lies beside each picture; without, no picture is known to be finished."""
    overwrite: bool = False
    """Whether finished pictures are made again."""
    jobs: int | None = None
    """Pairs at once in one process; None: as many as suit it."""


@dataclass(frozen=True)
class Pair:
    """What one fused picture is made of: files by role, in the model's order, or a prepared sample.

    `name`: what the fused picture is called; `key`: what else, where another picture of the run has that name; `stem`:
    of its files, where that is settled.
    """

    name: str
    key: str = "pair"
    stem: str | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    sample: Sample | None = None


@dataclass(frozen=True)
class Fused:
    """A picture that is there: the name of its pair, its URL, size in pixels, and the seconds it took.

    `kept`: it was there before, made of the same sources by the same model in the same way.
    """

    name: str
    url: str
    height: int
    width: int
    seconds: float
    kept: bool = False
    notes: tuple[str, ...] = ()
    """What a person should know of how it was made."""


@dataclass(frozen=True)
class Result:
    """A fused picture that is written: what its record says of it and of its sources, and what guided it."""

    output: dict[str, Any]
    sources: dict[str, dict[str, str]]
    seconds: float
    guide: Sample | None = None
    notes: tuple[str, ...] = ()
    beside: dict[str, str] | None = None


@dataclass(frozen=True)
class Records:
    """The records of a run in `store`: `{stem}.json` beside each picture."""

    model: Model
    store: Store
    guidance: Guidance
    output: Output

    def finished(self, pair: Pair, stem: str) -> Fused | None:
        """The picture of `pair` where it is there already: its record says it is made as it would be made now."""
        if self.output.overwrite or not self.output.records or not self.store.exists(f"{stem}.json"):
            return None
        try:
            record = parse_json(self.store.read(f"{stem}.json"))
            output, seconds, made_from = record["output"], float(record["seconds"]), record["made_from"]
            path, size = str(output["path"]), (int(output["height"]), int(output["width"]))
        except (ValueError, KeyError, TypeError):
            return None
        images = () if pair.sample is None else pair.sample.images
        sources = {role: store.file_sha256(name) for role, (store, name) in pair.files.items()}
        if made_from != self._made_from(pair, sources or {image.role: image.sha256 for image in images}):
            return None
        if "beside" in record and record["beside"] != files_beside(pair.files):
            return None
        if not self.store.exists(path) or self.store.file_sha256(path) != output["sha256"]:
            return None
        return Fused(pair.name, self.store.join(path), *size, seconds, kept=True)

    def write(self, pair: Pair, stem: str, result: Result) -> None:
        """What made the picture. Guidance is null where the network had none, the tile where it saw the whole."""
        if not self.output.records:
            # One that lies there would be of another picture.
            self.store.remove(f"{stem}.json")
            return
        guide, source = result.guide, asdict(self.model.source)
        del source["folder"]
        guidance = None
        if guide is not None:
            mask = guide.mask if self.model.fuser.network.config.use_mask else None
            if mask is not None or guide.text is not None:
                guidance = {
                    "from": self.guidance,
                    "caption": guide.caption if guide.text is not None else None,
                    "mask_labels": list(mask.labels) if mask is not None else None,
                }
        sample, tile = pair.sample, self.model.fuser.tile_of(self.model.tile)
        record: dict[str, Any] = {
            "model": {**source, "weights_sha256": self.model.weights_sha256},
            "sources": result.sources,
            "guidance": guidance,
            "tile": tile and {"height": tile[0], "width": tile[1]},
            "dataset": sample and {"name": sample.dataset, "split": sample.split, "key": sample.key},
            "package_version": package_version(),
            "commit": commit(),
            "made_from": self._made_from(pair, {role: source["sha256"] for role, source in result.sources.items()}),
            "output": result.output,
            "seconds": round(result.seconds, 4),
        }
        if result.notes:
            record["notes"] = list(result.notes)
        if result.beside is not None:
            record["beside"] = result.beside
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        # A file name that is not UTF-8 must not cost its picture the record.
        self.store.write(f"{stem}.json", text.encode("utf-8", "backslashreplace"))

    def _made_from(self, pair: Pair, sources: Mapping[str, str]) -> str:
        """Hex SHA-256 of all that decides the bytes of a picture. `sources`: those of its files, by role."""
        guidance: list[str] = []
        units: list[Any] = [self.model.fuser.config.scales, sorted(self.model.scales.items())]
        if (sample := pair.sample) is not None:
            guidance = [
                sha256(part) for part in (sample.mask and sample.mask.png, sample.text and sample.text.data) if part
            ]
            units.append([image.declared for image in sample.images])
        model, output = self.model, self.output
        parts: list[Any] = [model.weights_sha256, package_version(), self.guidance, output.format, output.quality]
        if (tile := model.fuser.tile_of(model.tile)) is not None:
            parts.append(tile)
        return sha256(json.dumps([parts, sorted(sources.items()), guidance, units]).encode())


def files_beside(files: Mapping[str, File]) -> dict[str, str]:
    """Hashes of the files beside rasters that say where they lie and what of them is empty."""
    hashes: dict[str, str] = {}
    for store, name in files.values():
        stem = name.rpartition(".")[0]
        names = [f"{name}{end}" for end in (".msk", ".aux.xml")] + [f"{stem}{end}" for end in _BESIDE]
        hashes |= {store.join(one): store.file_sha256(one) for one in names if store.exists(one)}
    return hashes
