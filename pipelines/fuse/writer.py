"""Fusing one sample after the other, and writing each picture with the record of its making."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count
from typing import Any, Literal

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.encode import encode_picture
from rwkvfusion.infra.pictures.formats import QUALITY
from rwkvfusion.infra.pictures.units import Scale
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import MAX_PIXELS
from rwkvfusion.model.registry.registry import ModelSource
from rwkvfusion.pipelines.fuse.jobs import Room, in_order
from rwkvfusion.pipelines.fuse.scene import (
    RASTERS,
    File,
    FuseError,
    file_sha256,
    fuse_scene,
    is_scene,
    lost_ground,
    overview,
    raster_units,
)
from rwkvfusion.pipelines.fuse.units import odd_lines, odd_roles
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.guidance.stage import Stage, run
from rwkvfusion.stages.source.names import INFRARED, VISIBLE, why_swapped

_BESIDE = (".tfw", ".tifw", ".wld", ".RPB", ".rpb", "_RPC.TXT", "_rpc.txt")
Guidance = Literal["none", "builtin", "sample"]
"""Where mask and text come from: nowhere, the built-in stages, or the prepared sample."""


@dataclass(frozen=True)
class Model:
    """A fuser, where it came from, and the hash of its weights, which names it wherever it lies."""

    fuser: Fuser
    source: ModelSource
    weights_sha256: str
    scales: Mapping[str, Scale] = field(default_factory=dict)
    """What is declared of the values of raw pictures, by role."""


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
class Skipped:
    """A pair, or a file without a partner, that gave no picture, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class FuseSummary:
    """What came of a call. `exit_code`: 0 all fused, 3 some skipped, 1 nothing fused. `warnings` are for a person."""

    written: tuple[Fused, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        if not self.written:
            return 1
        return 3 if self.skipped else 0

    @property
    def line(self) -> str:
        """The numbers, for a person."""
        kept = sum(one.kept for one in self.written)
        there = f", {kept} {'was' if kept == 1 else 'were'} there already" if kept else ""
        return f"{len(self.written) - kept} fused{there}, {len(self.skipped)} skipped"


OnPicture = Callable[[Fused | Skipped | None, int], None]
"""Called with what came of each pair, and the number of all; with None at the start."""


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
    jobs: int = 1
    """Pairs at once."""


@dataclass(frozen=True)
class Task:
    """A picture to make: its name, and how to get the sample (an RwkvFusionError where that fails)."""

    name: str
    read: Callable[[], Sample]
    key: str = "pair"
    """The sample's."""
    files: Mapping[str, File] | None = None
    """The pictures by role, where they are files, which may be rasters that are read in windows and not as a sample."""


class PictureWriter:
    """Writes `{stem}.{extension}` and then `{stem}.json` to `store`; a pair that cannot be fused is skipped."""

    def __init__(self, model: Model, store: Store, guidance: Guidance, output: Output) -> None:
        self.model, self.store, self.guidance, self.output = model, store, guidance, output
        self._stages = _builtin_stages(model) if guidance == "builtin" else []
        self._room = Room(output.jobs)
        self._used: set[str] = set()
        self._swapped: list[str] = []
        self._odd: dict[str, list[float]] = {}

    def run(
        self, tasks: Iterable[Task], total: int, on_picture: OnPicture | None = None, skipped: Iterable[Skipped] = ()
    ) -> FuseSummary:
        """Do the tasks, several at once, and tell of them in order. `skipped` are reported with them; `total` counts
        both."""
        tell = on_picture or (lambda *_: None)
        written, left_out = [], list(skipped)
        tell(None, total)
        for skip in left_out:
            tell(skip, total)
        for result in in_order(
            self._one, ((task, self._free(task.name, task.key)) for task in tasks), self.output.jobs
        ):
            if isinstance(result, Fused):
                written.append(result)
            else:
                left_out.append(result)
            tell(result, total)
        return FuseSummary(tuple(written), tuple(left_out), self._warnings())

    def _one(self, task: Task, stem: str) -> Fused | Skipped:
        try:
            sample = task.read() if task.files is None else None
            kept = self._kept(task, stem, sample)
            if kept is not None:
                return kept
            if task.files is not None and is_scene(self.model.fuser, task.files):
                return self._scene(task.name, stem, task.files)
            notes = lost_ground(task.files or {})
            made = self._picture(task.name, stem, sample or task.read())
            return replace(made, notes=notes) if isinstance(made, Fused) else made
        except RwkvFusionError as error:
            return Skipped(task.name, str(error))

    def _kept(self, task: Task, stem: str, sample: Sample | None) -> Fused | None:
        """The picture of `task` that is there already: its record says it is made as it would be made now."""
        if self.output.overwrite or not self.output.records or not self.store.exists(f"{stem}.json"):
            return None
        try:
            record = json.loads(self.store.read(f"{stem}.json"))
            made, seconds, made_from = record["output"], float(record["seconds"]), record["made_from"]
            name, size = str(made["path"]), (int(made["height"]), int(made["width"]))
        except (ValueError, KeyError, TypeError):
            return None
        files = task.files or {}
        sources = {role: file_sha256(*file) for role, file in files.items()} or _sources(sample)
        if made_from != self._made_from(sources, sample):
            return None
        if "beside" in record and record["beside"] != _beside(files):
            return None
        if not self.store.exists(name) or file_sha256(self.store, name) != made["sha256"]:
            return None
        return Fused(task.name, self.store.join(name), *size, seconds, kept=True)

    def _made_from(self, sources: Mapping[str, str], sample: Sample | None) -> str:
        """Hex SHA-256 of all that decides the bytes of a picture."""
        output, guidance = self.output, []
        units: list[Any] = [self.model.fuser.config.scales, sorted(self.model.scales.items())]
        if sample is not None and self.guidance == "sample":
            guidance = [
                sha256(part) for part in (sample.mask and sample.mask.png, sample.text and sample.text.data) if part
            ]
            units.append([image.declared for image in sample.images])
        parts = [self.model.weights_sha256, package_version(), self.guidance, output.format, output.quality]
        return sha256(json.dumps([parts, sorted(sources.items()), guidance, units]).encode())

    def _picture(self, name: str, stem: str, sample: Sample) -> Fused | Skipped:
        raw, sample = sample, self._guided(self.model.fuser.with_units(sample))
        if sample.error is not None:
            return Skipped(name, f"{sample.error.stage}: {sample.error.message}")
        self._look(sample)
        with self._room.taken(sample.images[0].height, sample.images[0].width):
            start = time.perf_counter()
            picture = self.model.fuser.fuse_sample(sample)
            if self.guidance != "sample":
                self._note(odd_roles(raw, sample))
            data, extension = encode_picture(picture, self.output.format, self.output.quality)
        seconds = time.perf_counter() - start
        self.store.write(f"{stem}.{extension}", data)
        output = {
            "path": f"{stem}.{extension}",
            "sha256": sha256(data),
            **dict(zip(("height", "width", "channels"), picture.shape, strict=True)),
            "dtype": str(picture.dtype),
        }
        sources = {image.role: {"path": image.path, "sha256": image.sha256} for image in sample.images}
        self._write_record(stem, sample, sources, output, seconds)
        height, width = picture.shape[:2]
        return Fused(name, self.store.join(f"{stem}.{extension}"), height, width, seconds)

    def _scene(self, name: str, stem: str, files: Mapping[str, File]) -> Fused:
        """Rasters, read and written in windows."""
        path = f"{stem}.{self.output.format or 'tif'}"
        if path.rpartition(".")[2].lower() not in RASTERS:
            raise FuseError(f"{path}: only a TIFF holds such bands and a georeference: write .tif instead")
        beside = _beside(files)
        units, odd = raster_units(self.model.fuser, files, self.model.scales)
        sample = self._guided(overview(self.model.fuser, files, units)) if self._stages else None
        text = None if sample is None or sample.text is None else sample.text.array()
        # A scene takes as much as there may be, whatever its size.
        with self._room.taken(MAX_PIXELS, 1):
            start = time.perf_counter()
            made = fuse_scene(self.model.fuser, files, self.store, path, units, text)
            seconds = time.perf_counter() - start
        self._write_record(stem, sample, made.sources, made.output, seconds, made.notes, beside)
        self._note(odd)
        return Fused(name, self.store.join(path), made.height, made.width, seconds, notes=made.notes)

    def _note(self, odd: Mapping[str, float]) -> None:
        """Keep what is to be said of values that use too little or too much of their range."""
        for role, part in odd.items():
            self._odd.setdefault(role, []).append(part)

    def _look(self, sample: Sample) -> None:
        """Note where visible and infrared seem to be given for each other."""
        roles = {image.role: image for image in sample.images}
        if VISIBLE in roles and INFRARED in roles and (why := why_swapped(roles[VISIBLE], roles[INFRARED])):
            self._swapped.append(why)

    def _warnings(self) -> tuple[str, ...]:
        odd = odd_lines(self._odd, len(self._used))
        if not self._swapped:
            return odd
        pairs = "" if len(self._used) == 1 else f" ({len(self._swapped)} of {len(self._used)} pairs)"
        return (f"are visible and infrared swapped{pairs}? {printable(min(self._swapped))}", *odd)

    def _guided(self, sample: Sample) -> Sample:
        for stage in self._stages:
            (sample,) = run(stage, [sample])
        return sample

    def _write_record(
        self,
        stem: str,
        sample: Sample | None,
        sources: Mapping[str, Any],
        output: dict[str, Any],
        seconds: float,
        notes: Sequence[str] = (),
        beside: Mapping[str, str] | None = None,
    ) -> None:
        if not self.output.records:
            # One that lies there would be of another picture.
            self.store.remove(f"{stem}.json")
            return
        hashes = {role: source["sha256"] for role, source in sources.items()}
        record = self._record(sample, sources) | {"made_from": self._made_from(hashes, sample)}
        more = {"output": output, "seconds": round(seconds, 4), **({"notes": list(notes)} if notes else {})}
        if beside is not None:
            more["beside"] = dict(beside)
        self.store.write(f"{stem}.json", _json(record | more))

    def _free(self, name: str, key: str) -> str:
        """A stem that no picture of this run has."""
        numbered = (f"{name}-{key}-{number}" for number in count(2))
        stem = next(stem for stem in chain((name, key, f"{name}-{key}"), numbered) if stem and stem not in self._used)
        self._used.add(stem)
        return stem

    def _record(self, sample: Sample | None, sources: Mapping[str, Any]) -> dict[str, Any]:
        """What made the picture. Guidance is null where the network had none."""
        mask = sample.mask if sample is not None and self.model.fuser.network.config.use_mask else None
        text = sample.text if sample is not None else None
        return {
            "model": {
                **{key: value for key, value in asdict(self.model.source).items() if key != "folder"},
                "weights_sha256": self.model.weights_sha256,
            },
            "sources": dict(sources),
            "guidance": {
                "from": self.guidance,
                "caption": sample.caption if sample is not None and text is not None else None,
                "mask_labels": list(mask.labels) if mask is not None else None,
            }
            if mask is not None or text is not None
            else None,
            "dataset": {"name": sample.dataset, "split": sample.split, "key": sample.key}
            if sample is not None and self.guidance == "sample"
            else None,
            "package_version": package_version(),
            "commit": commit(),
        }


def _beside(files: Mapping[str, File]) -> dict[str, str]:
    """Hashes of the files beside rasters that say where they lie and what of them is empty."""
    found: dict[str, str] = {}
    for store, name in files.values():
        stem = name.rpartition(".")[0]
        names = [f"{name}{end}" for end in (".msk", ".aux.xml")] + [f"{stem}{end}" for end in _BESIDE]
        found |= {store.join(one): file_sha256(store, one) for one in names if store.exists(one)}
    return found


def _sources(sample: Sample | None) -> dict[str, str]:
    return {} if sample is None else {image.role: image.sha256 for image in sample.images}


def _builtin_stages(model: Model) -> list[Stage[Any]]:
    # Imported here: OpenCV and SciPy are not needed to fuse without guidance.
    from rwkvfusion.stages.guidance.builtin.text import TextConfig
    from rwkvfusion.stages.guidance.chain import GuidanceConfig, guidance_stages

    network = model.fuser.network.config
    config = GuidanceConfig(text=TextConfig(width=network.text_width), masks="auto" if network.use_mask else "none")
    stages = guidance_stages(config, "vif")
    for stage in stages:
        stage.load()
    return stages


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 must not cost its picture the record.
    return text.encode("utf-8", "backslashreplace")
