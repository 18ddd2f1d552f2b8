"""Fusing one sample after the other, and writing each picture with the record of its making."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.fuser import Fuser
from rwkvfusion.model.pixels import encode_picture
from rwkvfusion.model.serving import ModelSource
from rwkvfusion.pipelines.fuse_scene import RASTERS, File, FuseError, fuse_scene, overview
from rwkvfusion.stages.sample import Sample
from rwkvfusion.stages.stage import Stage, run

Guidance = Literal["none", "builtin", "sample"]
"""Where mask and text come from: nowhere, the built-in stages, or the prepared sample."""


@dataclass(frozen=True)
class Model:
    """A fuser, where it came from, and the hash of its weights, which names it wherever it lies."""

    fuser: Fuser
    source: ModelSource
    weights_sha256: str


@dataclass(frozen=True)
class Fused:
    """A picture that was written: the name of its pair, its URL, size in pixels, and the seconds it took."""

    name: str
    url: str
    height: int
    width: int
    seconds: float


@dataclass(frozen=True)
class Skipped:
    """A pair, or a file without a partner, that gave no picture, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class FuseSummary:
    """What came of a call. `exit_code`: 0 all fused, 3 some skipped, 1 nothing fused."""

    written: tuple[Fused, ...]
    skipped: tuple[Skipped, ...]

    @property
    def exit_code(self) -> int:
        if not self.written:
            return 1
        return 3 if self.skipped else 0


OnPicture = Callable[[Fused | Skipped, int], None]
"""Called with what came of each pair, and the number of all."""


@dataclass(frozen=True)
class Task:
    """A picture to make: its name, and how to get the sample (an RwkvFusionError where that fails)."""

    name: str
    read: Callable[[], Sample]
    scene: Mapping[str, File] | None = None
    """By role, where rasters are to be read in windows and not as a sample."""


class PictureWriter:
    """Writes `{stem}.{extension}` and then `{stem}.json` to `store`; a pair that cannot be fused is skipped.

    The extension is PNG's where PNG can hold the picture, else TIFF's, unless `extension` asks for one of them.
    """

    def __init__(self, model: Model, store: Store, guidance: Guidance, extension: str | None = None) -> None:
        self.model, self.store, self.guidance, self.extension = model, store, guidance, extension
        self._stages = _builtin_stages(model) if guidance == "builtin" else []
        self._used: set[str] = set()

    def run(
        self, tasks: Iterable[Task], total: int, on_picture: OnPicture | None = None, skipped: Iterable[Skipped] = ()
    ) -> FuseSummary:
        """Do the tasks in order. `skipped` are reported with them; `total` counts both."""
        written, left_out = [], list(skipped)
        for skip in left_out:
            if on_picture:
                on_picture(skip, total)
        for task in tasks:
            result = self._one(task)
            if isinstance(result, Fused):
                written.append(result)
            else:
                left_out.append(result)
            if on_picture:
                on_picture(result, total)
        return FuseSummary(tuple(written), tuple(left_out))

    def _one(self, task: Task) -> Fused | Skipped:
        if task.scene is not None:
            return self._scene(task.name, task.scene)
        start = time.perf_counter()
        try:
            sample = self._guided(task.read())
            if sample.error is not None:
                return Skipped(task.name, f"{sample.error.stage}: {sample.error.message}")
            picture = self.model.fuser.fuse_sample(sample)
            data, extension = encode_picture(picture, self.extension)
        except RwkvFusionError as error:
            return Skipped(task.name, str(error))
        stem = self._free(task.name, sample.key)
        seconds = time.perf_counter() - start
        self.store.write(f"{stem}.{extension}", data)
        output = {
            "path": f"{stem}.{extension}",
            "sha256": sha256(data),
            **dict(zip(("height", "width", "channels"), picture.shape, strict=True)),
            "dtype": str(picture.dtype),
        }
        sources = {image.role: {"path": image.path, "sha256": image.sha256} for image in sample.images}
        self._write_record(stem, self._record(sample, sources), output, seconds)
        height, width = picture.shape[:2]
        return Fused(task.name, self.store.join(f"{stem}.{extension}"), height, width, seconds)

    def _scene(self, name: str, files: Mapping[str, File]) -> Fused | Skipped:
        """Rasters, read and written in windows."""
        start = time.perf_counter()
        stem = self._free(name, "scene")
        path = f"{stem}.{self.extension or 'tif'}"
        try:
            if path.rpartition(".")[2].lower() not in RASTERS:
                raise FuseError(f"{path}: PNG holds neither such bands nor a georeference: write .tif instead")
            sample = self._guided(overview(self.model.fuser, files)) if self._stages else None
            text = None if sample is None or sample.text is None else sample.text.array()
            made = fuse_scene(self.model.fuser, files, self.store, path, text)
        except RwkvFusionError as error:
            return Skipped(name, str(error))
        seconds = time.perf_counter() - start
        self._write_record(stem, self._record(sample, made.sources), made.output, seconds)
        return Fused(name, self.store.join(path), made.height, made.width, seconds)

    def _guided(self, sample: Sample) -> Sample:
        for stage in self._stages:
            (sample,) = run(stage, [sample])
        return sample

    def _write_record(self, stem: str, record: dict[str, Any], output: dict[str, Any], seconds: float) -> None:
        self.store.write(f"{stem}.json", _json(record | {"output": output, "seconds": round(seconds, 4)}))

    def _free(self, name: str, key: str) -> str:
        """A stem that no picture of this run has."""
        stem = next(stem for stem in (name, key, f"{name}-{key}") if stem and stem not in self._used)
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


def _builtin_stages(model: Model) -> list[Stage[Any]]:
    # Imported here: OpenCV and SciPy are not needed to fuse without guidance.
    from rwkvfusion.pipelines.guidance import builtin_stages
    from rwkvfusion.stages.text import TextConfig

    masks = "auto" if model.fuser.network.config.use_mask else "none"
    stages = builtin_stages(text=TextConfig(width=model.fuser.network.config.text_width), masks=masks)
    for stage in stages:
        stage.load()
    return stages


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 must not cost its picture the record.
    return text.encode("utf-8", "backslashreplace")
