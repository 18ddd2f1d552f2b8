"""Pairs to fused pictures, each written with the record of its making; one that cannot be fused is skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.pictures.decode import ImageError, decode
from rwkvfusion.infra.pictures.encode import RASTERS
from rwkvfusion.infra.pictures.units import Picture, odd_words
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.model.fusing.fuser import guidance_of
from rwkvfusion.model.fusing.tiles import MAX_PIXELS
from rwkvfusion.model.registry.encoded import encode_fused
from rwkvfusion.pipelines.fuse.guide import FuseError, Guide
from rwkvfusion.pipelines.fuse.jobs import Room
from rwkvfusion.pipelines.fuse.record import File, Fused, Guidance, Model, Output, Pair, Records, Result, files_beside
from rwkvfusion.pipelines.parallel import default_jobs, in_order
from rwkvfusion.stages.dataset.dataset import Shard
from rwkvfusion.stages.dataset.sample import Image, Sample
from rwkvfusion.stages.dataset.swapped import INFRARED, VISIBLE, why_swapped
from rwkvfusion.stages.dataset.task import SHARPENING_TASKS
from rwkvfusion.stages.source.files import check_orientation, open_picture

ADVICE = "set --scale {role}=VALUE, LOW-HIGH or pLOW-pHIGH"


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
        earlier = f", {kept} {'was' if kept == 1 else 'were'} there already" if kept else ""
        return f"{len(self.written) - kept} fused{earlier}, {len(self.skipped)} skipped"


OnPicture = Callable[[Fused | Skipped | None, int], None]
"""Called with what came of each pair, and the number of all; with None at the start."""


@dataclass
class Findings:
    """What is odd of the pairs of a run, for the warnings at its end."""

    swapped: list[str] = field(default_factory=list)
    """What tells, of some, that visible and infrared are given for each other."""
    odd: dict[str, list[float]] = field(default_factory=dict)
    """By role, the parts of their range that values use where that is odd."""

    def warnings(self, n_pairs: int) -> tuple[str, ...]:
        """In words, for a person; `n_pairs`: of the run."""
        odd = _odd_lines(self.odd, n_pairs)
        if not self.swapped:
            return odd
        pairs = "" if n_pairs == 1 else f" ({len(self.swapped)} of {n_pairs} pairs)"
        return (f"are visible and infrared swapped{pairs}? {printable(min(self.swapped))}", *odd)


class Stems:
    """What the files of a run's pictures are called: no two alike."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._used)

    def of(self, pair: Pair) -> str:
        """A stem that no pair before has: what is settled of the pair, its name, its key, or both with a number."""
        name, key = pair.name, pair.key
        stems = chain((pair.stem, name, key, f"{name}-{key}"), (f"{name}-{key}-{number}" for number in count(2)))
        stem = next(stem for stem in stems if stem and stem not in self._used)
        self._used.add(stem)
        return stem


class PictureWriter:
    """Writes `{stem}.{extension}` and then `{stem}.json` to `store`; a pair that cannot be fused is skipped.

    `cores`: of the machine's, those of this process; None: all.
    """

    def __init__(
        self, model: Model, store: Store, guidance: Guidance, output: Output, cores: int | None = None
    ) -> None:
        self.model, self.store, self.output = model, store, output
        self.findings = Findings()
        self._records = Records(model, store, guidance, output)
        self._guide = Guide(model.fuser) if guidance == "builtin" else None
        device = str(next(model.fuser.network.parameters()).device)
        self._jobs = output.jobs or default_jobs(device, cores)
        self._room = Room(self._jobs, cores)
        self._stems = Stems()

    def run(self, pairs: Iterable[Pair | Skipped], total: int, on_picture: OnPicture | None = None) -> FuseSummary:
        """Fuse the pairs, several at once, and tell of them in order; what is skipped already is passed on."""
        tell = on_picture or (lambda *_: None)
        tell(None, total)
        written, skipped = [], []
        for result in in_order(self._one, ((pair, self._stem(pair)) for pair in pairs), self._jobs):
            if isinstance(result, Fused):
                written.append(result)
            else:
                skipped.append(result)
            tell(result, total)
        return FuseSummary(tuple(written), tuple(skipped), self.findings.warnings(len(self._stems)))

    def _stem(self, pair: Pair | Skipped) -> str:
        return "" if isinstance(pair, Skipped) else self._stems.of(pair)

    def _one(self, pair: Pair | Skipped, stem: str) -> Fused | Skipped:
        if isinstance(pair, Skipped):
            return pair
        try:
            return self._records.finished(pair, stem) or self._fused(pair, stem)
        except RwkvFusionError as error:
            return Skipped(pair.name, str(error))

    def _fused(self, pair: Pair, stem: str) -> Fused:
        """Fuse the pair, and write the picture and its record."""
        fuser, names = self.model.fuser, [name for _, name in pair.files.values()]
        result = None
        notes: tuple[str, ...] = ()
        if names and (fuser.config.task in SHARPENING_TASKS or any(map(is_tiff, names))):
            # Slow to import, and other pictures need none of it.
            from rwkvfusion.pipelines.fuse.scene import is_scene, lost_ground

            if is_scene(fuser, pair.files):
                result = self._scene(pair.files, stem)
            else:
                notes = lost_ground(pair.files)
        result = result or replace(self._pictures(pair, stem), notes=notes)
        self._records.write(pair, stem, result)
        url, output = self.store.join(result.output["path"]), result.output
        return Fused(pair.name, url, output["height"], output["width"], result.seconds, notes=result.notes)

    def _pictures(self, pair: Pair, stem: str) -> Result:
        fuser, guide = self.model.fuser, pair.sample
        images, pictures = _opened(pair.files) if guide is None else (guide.images, _decoded(guide))
        if guide is None:
            pictures, odd = fuser.measure(pictures, self.model.scales, ADVICE)
            self._note(odd)
            if self._guide:
                shown = [image.with_scale(pictures[image.role].scale, pictures[image.role].values) for image in images]
                guide = self._guide(shown)
        else:
            pictures, _ = fuser.measure(pictures)
        self._note_swapped(images)
        height, width = pictures[images[0].role].values.shape[:2]
        with self._room.taken(height, width):
            start = time.perf_counter()
            picture = fuser.fuse_pictures(pictures, *guidance_of(guide), self.model.tile)
            data, extension = encode_fused(fuser, picture, self.output.format, self.output.quality)
        seconds = time.perf_counter() - start
        path = f"{stem}.{extension}"
        self.store.write(path, data)
        shape = dict(zip(("height", "width", "channels"), picture.shape, strict=True))
        output = {"path": path, "sha256": sha256(data), **shape, "dtype": str(picture.dtype)}
        sources = {image.role: {"path": image.path, "sha256": image.sha256} for image in images}
        return Result(output, sources, seconds, guide)

    def _scene(self, files: Mapping[str, File], stem: str) -> Result:
        """Rasters, read and written in windows."""
        from rwkvfusion.pipelines.fuse.scene import fuse_scene, overview, raster_units

        path = f"{stem}.{self.output.format or 'tif'}"
        if not is_tiff(path):
            raise FuseError(f"{path}: only a TIFF holds such bands and a georeference: write .tif instead")
        beside = files_beside(files)
        units, odd = raster_units(self.model.fuser, files, self.model.scales)
        guide = self._guide(overview(files, units)) if self._guide else None
        _, text = guidance_of(guide)
        # A scene takes as much as there may be, whatever its size.
        with self._room.taken(MAX_PIXELS, 1):
            result = fuse_scene(self.model.fuser, files, self.store, path, units, text, self.model.tile)
        self._note(odd)
        return replace(result, guide=guide, beside=beside)

    def _note(self, odd: Mapping[str, float]) -> None:
        """Keep what is to be said of values that use too little or too much of their range."""
        for role, part in odd.items():
            self.findings.odd.setdefault(role, []).append(part)

    def _note_swapped(self, images: Sequence[Image]) -> None:
        """Keep what tells that visible and infrared are given for each other."""
        roles = {image.role: image for image in images}
        if VISIBLE in roles and INFRARED in roles and (why := why_swapped(roles[VISIBLE], roles[INFRARED])):
            self.findings.swapped.append(why)


def pairs_of(shard: Shard) -> list[Pair | Skipped]:
    """The selected samples of the shard; where it is damaged, each is skipped with what is wrong with it."""
    try:
        return [Pair(sample.stem, sample.key, sample=sample) for sample in shard.read()]
    except RwkvFusionError as error:
        return [Skipped(key, str(error)) for key in shard.keys]


def is_tiff(name: str) -> bool:
    """Whether a file is called a TIFF."""
    return name.rpartition(".")[2].lower() in RASTERS


def _opened(files: Mapping[str, File]) -> tuple[tuple[Image, ...], dict[str, Picture]]:
    """Pictures as they are in files, with what these declare of them; ImageError names the file."""
    opened = []
    for role, (store, name) in files.items():
        try:
            picture = open_picture(role, store.join(name), store.read(name))
        except ImageError as error:
            raise ImageError(f"{printable(store.join(name))}: {error}") from None
        if picture.image.ext == "tif":
            # Slow to import, and other formats need none of it.
            from rwkvfusion.stages.source.scenes.picture_rasters import with_filled

            picture = with_filled(store, name, picture)
        opened.append(picture)
    check_orientation(opened)
    pictures = {one.image.role: Picture(one.image.path, one.array, one.image.scale) for one in opened}
    return tuple(one.image for one in opened), pictures


def _decoded(sample: Sample) -> dict[str, Picture]:
    return {image.role: Picture(image.path, decode(image.data), image.declared) for image in sample.images}


def _odd_lines(parts: Mapping[str, list[float]], n_pairs: int) -> tuple[str, ...]:
    """What is said of the parts of their range that pictures use where that is odd, a line a role and kind."""
    lines = []
    for role, used in parts.items():
        option = f"set --scale {role}=VALUE (what counts as white), LOW-HIGH or pLOW-pHIGH"
        for some in ([part for part in used if part <= 1], [part for part in used if part > 1]):
            if some:
                subject = role if n_pairs == 1 else f"{len(some)} of {n_pairs} {role} pictures"
                lines.append(odd_words(subject, some, option, plural=n_pairs > 1))
    return tuple(lines)
