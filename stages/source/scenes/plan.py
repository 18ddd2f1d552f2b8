"""From the files of a sharpening layout to pairs: pictures of stacks, and the windows that scenes are cut into.

A function of the files' headers and the settings; no values are read.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.storage import StorageError, Store
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import is_of_the_file, unreadable
from rwkvfusion.stages.source.layouts import SPLITS, TARGET
from rwkvfusion.stages.source.pair import ArrayRef, Assumed, Cut, FileRef, Match, Unpaired
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import MIN_CUBE_BANDS, AxesError, View, cube, solve
from rwkvfusion.stages.source.scenes.scene import (
    ArrayCube,
    ArrayPair,
    Scene,
    SceneConfig,
    SceneError,
    TiffPair,
    open_arrays,
)
from rwkvfusion.stages.source.scenes.sensors import gains_for, usual_cube
from rwkvfusion.stages.source.splits import OnRead, SplitFolders

FULL = "_full"
"""What the name of a split of full-resolution pairs ends in: they have no target, and cannot be learnt from."""

ALIASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pansharpening": {
        "high": ("pan", "i_pan", "panchromatic"),
        "low": ("ms", "i_ms_lr", "i_ms", "mslr", "ms_lr"),
        "target": ("gt", "i_gt", "ref", "reference"),
    },
    "hmif": {
        "high": ("rgb", "hrmsi", "hr_msi", "msi", "hmsi"),
        "low": ("lrhsi", "lr_hsi", "hsi_lr", "lhsi", "lrhs"),
        "target": ("gt", "ref", "reference", "hrhsi", "hr_hsi"),
    },
}
"""Names of arrays by what they are, the preferred first, in lower case; upsampled ones (lms, HSI_up) are not used."""


@dataclass(frozen=True)
class Planned:
    """A pair before it has a key: its unique name, the text of its key, its split, its files and its cut."""

    name: str
    text: str
    split: str
    files: tuple[FileRef, ...]
    cut: Cut


class ScenePlanner:
    """Plans files of one task with one set of settings."""

    def __init__(
        self,
        store: Store,
        task: str,
        config: SceneConfig,
        default_split: str | None,
        holdout: Mapping[str, float],
        *,
        follow_links: bool,
        splits: SplitFolders | None = None,
        usual_scale: Callable[[str], float | None] = lambda _: None,
    ) -> None:
        self._store, self._task, self._config = store, task, config
        self._splits, self._usual_scale = splits or SplitFolders(()), usual_scale
        self.assumed: list[Assumed] = []
        """What was taken for granted of files, in their order."""
        self._default_split, self._holdout, self._follow_links = default_split, holdout, follow_links

    def plan(
        self, files: Sequence[str], matches: Sequence[Match], *, scenes: bool, on_read: OnRead = lambda *_: None
    ) -> tuple[list[Planned], list[Match], list[Unpaired]]:
        """Pairs of `files` that hold arrays, and of `matches` of pictures; matches that stay as they are; and the rest.

        A match without target is cut into pairs where these are `scenes`, else it goes to a split of its own.
        """
        planned: list[Planned] = []
        whole: list[Match] = []
        unpaired: list[Unpaired] = []
        for match in matches:
            split = said_split(match.name) or match.split or self._default_split or "train"
            if TARGET in match.extras or not scenes:
                whole.append(replace(match, split=split if TARGET in match.extras else split + FULL))
        cut = [match for match in matches if scenes and TARGET not in match.extras]
        total = len(files) + len(cut)
        on_read(0, total)
        names_of = [*([name] for name in files), *([*match.files.values()] for match in cut)]
        read = chain(map(self.arrays, files), map(self.geotiffs, cut))
        for done, (names, found) in enumerate(zip(names_of, read, strict=True), start=1):
            on_read(done, total)
            if isinstance(found, Unpaired):
                unpaired += (Unpaired(name=name, reason=found.reason) for name in names)
            else:
                planned += found
        return planned, whole, unpaired

    def arrays(self, name: str) -> list[Planned] | Unpaired:
        """The pairs of an HDF5 or MATLAB file, or why it has none. StorageError where the store does not answer."""
        trouble = unreadable(self._store, name, follow_links=self._follow_links, max_bytes=None)
        if trouble is not None:
            return Unpaired(name=name, reason=trouble)
        try:
            with open_arrays(self._store, name) as file:
                planned = list(self._of_arrays(name, file))
                self._assume_scale(name, file, planned)
                return planned
        except (RwkvFusionError, ValueError) as error:
            return self._unpaired(name, error)

    def geotiffs(self, match: Match) -> list[Planned] | Unpaired:
        """The pairs of two rasters without target, or why there are none. StorageError as `arrays`."""
        files = tuple(FileRef(role=role, name=name) for role, name in match.files.items())
        try:
            with TiffPair(self._store, *match.files.values()) as scene:
                self.assumed += (Assumed(name=match.name, what=note) for note in scene.notes)
                stem = match.stem or match.inner.rpartition("/")[2]
                return list(
                    self._of_scene(
                        scene, scene.ratio, match.name, stem, said_split(match.name) or match.split, files, {}
                    )
                )
        except (RwkvFusionError, ValueError) as error:
            return self._unpaired(match.name, error)

    def _unpaired(self, name: str, error: Exception) -> Unpaired:
        # A store that is down must not pass for a source without pairs.
        if isinstance(error, StorageError) and not is_of_the_file(error, self._store):
            raise error
        return Unpaired(name=name, reason=str(error))

    def _of_arrays(self, name: str, file: ArrayFile) -> Iterator[Planned]:
        roles = _find(file, ALIASES[self._task])
        high, low = TASKS[self._task].orders[0]
        split = said_split(name) or self._splits.of(name.split("/")[:-1])
        stem = os.path.splitext(name.rpartition("/")[2])[0]
        files = (FileRef(role=high, name=name), FileRef(role=low, name=name))
        if {"high", "low"} <= roles.keys():
            views = self._solved(file, roles)
            n_pictures = views["high"].length("N")
            refs = {role: ArrayRef(name=view.name, axes=view.axes) for role, view in views.items()}
            if "target" not in views and self._task == "hmif":
                raise SceneError("MS and HS without target: there is nothing to learn from or to score with")
            if "target" not in views and "N" not in views["high"].axes:
                pair = ArrayPair(file, views["high"], views["low"])
                yield from self._of_scene(pair, pair.ratio, name, stem, split, files, refs)
                return
            for i in range(n_pictures):
                cut = Cut(protocol="given" if "target" in views else "full", arrays=refs, index=i)
                chosen = (split or self._default_split or "train") + ("" if "target" in views else FULL)
                text = f"{stem}_{i:05d}" if "N" in views["high"].axes else stem
                yield Planned(f"{name}#{i}", text, chosen, files, cut)
            return
        if self._task == "pansharpening":
            listed = ", ".join(f"{key} {header}" for key, header in file.headers.items()) or "no arrays"
            raise SceneError(f"no PAN and MS in it: looked for pan or I_PAN, and ms or I_MS_LR; there is {listed}")
        view = _only_cube(name, file, self._config.axes)
        known = usual_cube(name, view.length("C"))
        if known and self._config.wavelengths is None and not self._config.response.startswith("even:"):
            word, (first, last) = known
            what = f"its bands lie from {first:g} to {last:g} nm, by the word `{word}` of its name"
            self.assumed.append(Assumed(name=name, what=f"{what} (source.scene.wavelengths declares it)"))
        scene = ArrayCube(file, view, self._config, name)
        refs = {"cube": ArrayRef(name=view.name, axes=view.axes)}
        yield from self._of_scene(scene, self._config.ratio, name, stem, split, files, refs)

    def _assume_scale(self, name: str, file: ArrayFile, planned: Sequence[Planned]) -> None:
        """Note which value is taken for 1 in the arrays of `planned`, where these are integers that do not say it."""
        used = {array.name for pair in planned for array in pair.cut.arrays.values()}
        integers = any(
            file.headers[array].dtype.kind in "iu" and file.headers[array].dtype.itemsize > 1 for array in used
        )
        usual = self._usual_scale(name)
        declared = self._config.scale or any(file.number(key) is not None for key in ("L", "maxValue"))
        if integers and usual is not None and not declared:
            what = f"its integers count {usual:g} as 1, as is usual for such files"
            self.assumed.append(Assumed(name=name, what=f"{what} (source.scene.scale declares it)"))

    def _solved(self, file: ArrayFile, roles: Mapping[str, Sequence[str]]) -> dict[str, View]:
        """The views of the file's arrays; of several that could be the low-resolution one, the first that is."""
        high, target = roles["high"][0], roles.get("target", [None])[0]
        problems = []
        for low in roles["low"]:
            try:
                return solve(
                    (high, file.headers[high].shape),
                    (low, file.headers[low].shape),
                    None if target is None else (target, file.headers[target].shape),
                    self._config.axes,
                    1 if self._task == "pansharpening" else None,
                )
            except AxesError as error:
                problems.append(str(error))
        raise SceneError("; ".join(problems))

    def _of_scene(self, scene: Scene, ratio: int, name: str, stem: str, said: str | None, files: tuple[FileRef, ...],
                  refs: Mapping[str, ArrayRef]) -> Iterator[Planned]:  # fmt: skip
        config, is_cube = self._config, isinstance(scene, ArrayCube)
        gains_for(config.sensor, scene.n_bands)
        split = said or self._default_split
        holdout = {} if split else self._holdout
        protocols: tuple[Literal["full", "reduced"], ...] = (
            ("reduced",) if is_cube else ("reduced", "full") if config.protocol == "auto" else (config.protocol,)
        )
        if min(scene.size) < ratio:
            raise SceneError(f"{scene.size[1]}x{scene.size[0]} pixels are too few for a ratio of {ratio}")
        for part, region in regions(scene.size, ratio, holdout, split or "train").items():
            for protocol in protocols:
                # Tiles are measured on the pictures that are made: at full resolution the PAN's.
                tile, overlap = (
                    max(pixels // ratio, 1) if protocol == "full" else pixels
                    for pixels in (config.tile, config.overlap)
                )
                for window in windows(region, tile, overlap, ratio):
                    where = f"{window[0]}-{window[1]}"
                    chosen = part + (FULL if protocol == "full" else "")
                    cut = Cut(protocol=protocol, arrays=dict(refs), window=window, region=region)
                    yield Planned(f"{name}#{protocol}{where}", f"{stem}_{protocol}_{where}", chosen, files, cut)


def said_split(name: str) -> str | None:
    """The split that a file's own name begins with (`train_wv3.h5`), else that of the deepest folder that is one's."""
    *folders, file = name.lower().split("/")
    words = [re.split(r"[_.\-(]", file)[0], *reversed([re.split(r"[_\-]", folder)[0] for folder in folders])]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _find(file: ArrayFile, aliases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The arrays of each role, the preferred ones first."""
    by_alias = {name.rpartition("/")[2].lower(): name for name in file.headers}
    found = {role: [by_alias[alias] for alias in names if alias in by_alias] for role, names in aliases.items()}
    return {role: names for role, names in found.items() if names}


def _only_cube(name: str, file: ArrayFile, axes: str | None) -> View:
    """The one hyperspectral cube of a file. SceneError where there is none, or more."""
    headers = file.headers
    if "Y" in headers and len(headers["Y"].shape) == 2 and {"nRow", "nCol"} <= headers.keys():
        pixels = int((file.number("nRow") or 0) * (file.number("nCol") or 0))
        if headers["Y"].shape[1] != pixels:
            raise SceneError(f"Y is {headers['Y']}, and nRow x nCol are {pixels} pixels")
        return View("Y", "CP", headers["Y"].shape)
    cubes = [cube(key, header.shape, axes, file.is_matlab) for key, header in headers.items() if len(header.shape) == 3]
    spectral = [view for view in cubes if view.length("C") >= MIN_CUBE_BANDS and min(view.size) > 1]
    if len(spectral) == 1:
        return spectral[0]
    if spectral:
        raise SceneError(f"several cubes: {', '.join(view.name for view in spectral)}; keep one a file")
    listed = ", ".join(f"{key} {header}" for key, header in headers.items()) or "no arrays of numbers"
    raise SceneError(f"no hyperspectral cube (of {MIN_CUBE_BANDS} bands or more) in it: there is {listed}")


Box = tuple[int, int, int, int]
MIN_REGION = 16
"""Rows that a held-out region has at least; scenes too small for it are not divided."""


def regions(size: tuple[int, int], unit: int, holdout: Mapping[str, float], rest: str) -> dict[str, Box]:
    """A scene of `size` (rows, columns) by split: whole rows of pixels, the held-out ones at the bottom.

    Every box begins and ends on multiples of `unit`; rows and columns beyond the last multiple are left out.
    """
    rows, columns = (side // unit * unit for side in size)
    boxes: dict[str, Box] = {}
    bottom = rows
    for split, part in sorted(holdout.items()):
        height = round(part * rows / unit) * unit
        if height < MIN_REGION or bottom - height < MIN_REGION:
            continue
        bottom -= height
        boxes[split] = (bottom, 0, height, columns)
    return {rest: (0, 0, bottom, columns), **boxes}


def windows(region: Box, tile: int, overlap: int, unit: int) -> Iterator[Box]:
    """Windows of about `tile` pixels a side that cover `region`; neighbours share about `overlap` pixels.

    They begin and end on multiples of `unit`, and there are as many as come nearest to the size asked for, so that none
    is a mere rest: a side is between 2/3 and 3/2 of `tile`, or the region's.
    """
    top, left, height, width = region
    for y, tall in _spans(height, tile, overlap, unit):
        for x, wide in _spans(width, tile, overlap, unit):
            yield top + y, left + x, tall, wide


def _spans(length: int, tile: int, overlap: int, unit: int) -> Iterator[tuple[int, int]]:
    n_units, count = length // unit, max(1, round(length / tile))
    count, more = min(count, n_units), overlap // 2 // unit
    edges = [n_units * i // count for i in range(count + 1)]
    for first, last in itertools.pairwise(edges):
        start, stop = max(first - more, 0), min(last + more, n_units)
        yield start * unit, (stop - start) * unit
