"""From the files of a sharpening layout to pairs: pictures of stacks, and the windows that scenes are cut into.

A function of the files' headers and the settings; no values are read.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

from rasterio.windows import Window

from rwkvfusion.infra.errors import RwkvFusionError, printable
from rwkvfusion.infra.storage import StorageError
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.config import Origin
from rwkvfusion.stages.source.files import SceneError, is_of_the_file
from rwkvfusion.stages.source.layouts import SPLITS, TARGET
from rwkvfusion.stages.source.pair import ArrayRef, Assumed, Candidates, Cut, Match, PixelWindow, Unpaired
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import MIN_CUBE_BANDS, View, cube, solve
from rwkvfusion.stages.source.scenes.scene import ArrayCube, ArrayPair, Scene, TiffPair
from rwkvfusion.stages.source.scenes.sensors import gains_for, usual_cube
from rwkvfusion.stages.source.splits import OnRead, SplitFolders

FULL = "_full"
"""What the name of a split of full-resolution pairs ends in: they have no target, and cannot be learnt from."""

MIN_REGION = 16
"""Rows that a held-out region has at least; scenes too small for it are not divided."""


class ScenePlanner:
    """Plans the files of one source. SourceError where they hold no pair, StorageError where the store fails."""

    def __init__(self, origin: Origin, on_read: OnRead) -> None:
        self._origin, self._on_read = origin, on_read
        self._config, self._task = origin.config.scene, origin.layout.task
        self._result = Candidates()

    def arrays(self, names: Sequence[str]) -> Candidates:
        """The pairs of those of the files `names` that hold arrays."""
        origin, extensions = self._origin, self._origin.layout.extensions
        folders = SplitFolders(names, origin.config.splits, None if origin.default_split else 2)
        files = sorted(name for name in names if name.rpartition(".")[2].lower() in extensions)
        kinds = " or ".join(f".{extension}" for extension in sorted(extensions))
        self._plan([((name,), partial(self._arrays, name, folders)) for name in files])
        self._check(f"no file there ends in {kinds}. Set source.root to the folder above them, or another layout")
        others = sorted({*names} - {*files})
        self._result.unpaired += (Unpaired(name=name, reason=f"no {kinds} file") for name in others)
        return self._result

    def rasters(self, pairs: Candidates) -> Candidates:
        """The same of `pairs` of rasters: those with a target stay as they are, others are cut where they are scenes,
        else they go to a split of their own."""
        layout, result = self._origin.layout, self._result
        result.unpaired += pairs.unpaired
        whole, scenes = [], []
        for match in pairs.matches:
            split = declared_split(match.name) or match.split or self._origin.default_split or "train"
            if TARGET in match.extras:
                whole.append(match.of(split))
            elif not layout.is_scene:
                whole.append(match.of(split + FULL, suffix=FULL))
            else:
                scenes.append(match)
        self._plan([((*match.files.values(),), partial(self._rasters, match)) for match in scenes])
        if layout.scale and not self._config.scale:
            what = f"16-bit values count {layout.scale:g} as 1, as is usual for the layout"
            result.assumed += (_assumed(match.name, what, "scale") for match in whole)
        result.matches += whole
        self._check("")
        return result

    def _plan(self, files: Sequence[tuple[tuple[str, ...], Callable[[], Iterator[Match]]]]) -> None:
        """Add the pairs of each group of files, or why there is none."""
        self._on_read(0, len(files))
        for done, (names, plan) in enumerate(files, start=1):
            try:
                self._result.matches += [*plan()]
            except (RwkvFusionError, ValueError) as error:
                # A store that is down must not pass for a source without pairs.
                if isinstance(error, StorageError) and not is_of_the_file(error, self._origin.store):
                    raise
                self._result.unpaired += (Unpaired(name=name, reason=str(error)) for name in names)
            self._on_read(done, len(files))

    def _check(self, nothing: str) -> None:
        """SourceError where there is no pair: why the first files have none, or `nothing` where there is no file."""
        others = self._result.unpaired
        if not self._result.matches:
            more = f"; and {len(others) - 4} more" if len(others) > 4 else ""
            first = "; ".join(f"{printable(one.name)}: {one.reason}" for one in others[:4])
            raise self._origin.no_pair(first + more or nothing)

    def _rasters(self, match: Match) -> Iterator[Match]:
        """The cuts of two rasters without target."""
        with TiffPair(self._origin.store, *match.files.values()) as scene:
            self._result.assumed += (Assumed(name=match.name, what=note) for note in scene.notes)
            yield from self._cuts(scene, match.of(declared_split(match.name) or match.split), {})

    def _arrays(self, name: str, folders: SplitFolders) -> Iterator[Match]:
        """The pairs of an HDF5 or MATLAB file."""
        reason = self._origin.unreadable(name, whole=False)
        if reason is not None:
            raise SceneError(reason)
        with ArrayFile(self._origin.store, name) as file:
            planned = [*self._of_arrays(name, file, folders)]
            self._assume_scale(name, file, planned)
            yield from planned

    def _of_arrays(self, name: str, file: ArrayFile, folders: SplitFolders) -> Iterator[Match]:
        roles = _find(file, self._origin.layout.arrays)
        split = declared_split(name) or folders.of(name.split("/")[:-1]) or ""
        stem = os.path.splitext(name.rpartition("/")[2])[0]
        match = Match(split, "", stem, dict.fromkeys(TASKS[self._task].orders[0], name))
        if {"high", "low"} <= roles.keys():
            views = self._solved(file, roles)
            refs = {role: ArrayRef(name=view.name, axes=view.axes) for role, view in views.items()}
            has_target, is_stack = "target" in views, "N" in views["high"].axes
            if not has_target and self._task == "hmif":
                raise SceneError("MS and HS without target: give one, to learn from and to score with")
            if not has_target and not is_stack:
                yield from self._cuts(ArrayPair(file, views["high"], views["low"]), match, refs)
                return
            split = (split or self._origin.default_split or "train") + ("" if has_target else FULL)
            for i in range(views["high"].length("N")):
                cut = Cut(protocol="given" if has_target else "full", arrays=refs, index=i)
                suffix = f"_{i:05d}" if is_stack else ""
                yield match.of(split, cut=cut, part=f"#{i}", suffix=suffix)
            return
        if self._task == "pansharpening":
            listed = ", ".join(f"{key} {header}" for key, header in file.headers.items()) or "no arrays"
            raise SceneError(f"no PAN and MS in it: looked for pan or I_PAN, and ms or I_MS_LR; there is {listed}")
        view = _only_cube(name, file, self._config.axes)
        usual = usual_cube(name, view.length("C"))
        if usual and self._config.wavelengths is None and not self._config.response.startswith("even:"):
            word, (first, last) = usual
            what = f"its bands lie from {first:g} to {last:g} nm, by the word `{word}` of its name"
            self._result.assumed.append(_assumed(name, what, "wavelengths"))
        scene = ArrayCube(file, view, self._config, name)
        yield from self._cuts(scene, match, {"cube": ArrayRef(name=view.name, axes=view.axes)})

    def _assume_scale(self, name: str, file: ArrayFile, planned: Sequence[Match]) -> None:
        """Note which value is taken for 1 in the arrays of `planned`, where these are integers that do not say it."""
        arrays = {array.name for match in planned if match.cut for array in match.cut.arrays.values()}
        types = [file.headers[array].dtype for array in arrays]
        usual = self._origin.layout.usual_scale(name)
        declared = self._config.scale or any(file.number(key) is not None for key in ("L", "maxValue"))
        if usual is not None and not declared and any(kind.kind in "iu" and kind.itemsize > 1 for kind in types):
            what = f"its integers count {usual:g} as 1, as is usual for such files"
            self._result.assumed.append(_assumed(name, what, "scale"))

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
            except SceneError as error:
                problems.append(str(error))
        raise SceneError("; ".join(problems))

    def _cuts(self, scene: Scene, match: Match, arrays: Mapping[str, ArrayRef]) -> Iterator[Match]:
        """The windows of a scene, each a pair of the files of `match`."""
        config, ratio = self._config, scene.ratio
        gains_for(config.sensor, scene.n_bands)
        split = match.split or self._origin.default_split
        protocols: tuple[Literal["full", "reduced"], ...] = ("reduced", "full")
        if isinstance(scene, ArrayCube):
            protocols = ("reduced",)
        elif config.protocol != "auto":
            protocols = (config.protocol,)
        if min(scene.size) < ratio:
            raise SceneError(f"{scene.size[1]}x{scene.size[0]} pixels are too few for a ratio of {ratio}")
        for part, region in regions(scene.size, ratio, {} if split else self._origin.holdout, split or "train").items():
            for protocol in protocols:
                # Tiles are measured on the pictures that are made: at full resolution the PAN's.
                shrink = ratio if protocol == "full" else 1
                tile = max(config.tile // shrink, 1)
                for window in windows(region, tile, config.overlap // shrink, ratio):
                    corner = f"{window.row_off}-{window.col_off}"
                    yield match.of(
                        part + (FULL if protocol == "full" else ""),
                        cut=Cut(protocol=protocol, arrays=dict(arrays), window=_pixels(window), region=_pixels(region)),
                        part=f"#{protocol}{corner}",
                        suffix=f"_{protocol}_{corner}",
                    )


def _pixels(window: Window) -> PixelWindow:
    return window.row_off, window.col_off, window.height, window.width


def _assumed(name: str, what: str, setting: str) -> Assumed:
    return Assumed(name=name, what=f"{what} (source.scene.{setting} declares it)")


def declared_split(name: str) -> str | None:
    """The split that a file's own name begins with (`train_wv3.h5`), else that of the deepest folder that is one's."""
    *folders, file = name.lower().split("/")
    words = [re.split(r"[_.\-(]", file)[0], *reversed([re.split(r"[_\-]", folder)[0] for folder in folders])]
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _find(file: ArrayFile, aliases: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The arrays of each role, the preferred ones first."""
    by_alias = {name.rpartition("/")[2].lower(): name for name in file.headers}
    arrays = {role: [by_alias[alias] for alias in names if alias in by_alias] for role, names in aliases.items()}
    return {role: names for role, names in arrays.items() if names}


def _only_cube(name: str, file: ArrayFile, axes: str | None) -> View:
    """The one hyperspectral cube of a file. SceneError where there is none, or more."""
    headers = file.headers
    if "Y" in headers and len(headers["Y"].shape) == 2 and {"nRow", "nCol"} <= headers.keys():
        pixels = int((file.number("nRow") or 0) * (file.number("nCol") or 0))
        if headers["Y"].shape[1] != pixels:
            raise SceneError(f"Y is {headers['Y']}, and nRow x nCol are {pixels} pixels: they must be as many")
        return View("Y", "CP", headers["Y"].shape)
    cubes = [cube(key, header.shape, axes, file.is_matlab) for key, header in headers.items() if len(header.shape) == 3]
    spectral = [view for view in cubes if view.length("C") >= MIN_CUBE_BANDS and min(view.size) > 1]
    if len(spectral) == 1:
        return spectral[0]
    if spectral:
        raise SceneError(f"several cubes: {', '.join(view.name for view in spectral)}; keep one a file")
    listed = ", ".join(f"{key} {header}" for key, header in headers.items()) or "no arrays of numbers"
    raise SceneError(f"no hyperspectral cube (of {MIN_CUBE_BANDS} bands or more) in it: there is {listed}")


def regions(size: tuple[int, int], unit: int, holdout: Mapping[str, float], rest: str) -> dict[str, Window]:
    """A scene of `size` (rows, columns) by split: whole rows of pixels, the held-out ones at the bottom.

    Each begins and ends on multiples of `unit`; rows and columns beyond the last multiple are left out.
    """
    rows, columns = (side // unit * unit for side in size)
    held: dict[str, Window] = {}
    bottom = rows
    for split, part in sorted(holdout.items()):
        height = round(part * rows / unit) * unit
        if height < MIN_REGION or bottom - height < MIN_REGION:
            continue
        bottom -= height
        held[split] = Window(0, bottom, columns, height)
    return {rest: Window(0, 0, columns, bottom), **held}


def windows(region: Window, tile: int, overlap: int, unit: int) -> Iterator[Window]:
    """Windows of about `tile` pixels a side that cover `region`; neighbours share about `overlap` pixels.

    They begin and end on multiples of `unit`, and there are as many as come nearest to the size asked for, so that none
    is a mere rest: a side is between 2/3 and 3/2 of `tile`, or the region's.
    """
    for y, tall in _spans(region.height, tile, overlap, unit):
        for x, wide in _spans(region.width, tile, overlap, unit):
            yield Window(region.col_off + x, region.row_off + y, wide, tall)


def _spans(length: int, tile: int, overlap: int, unit: int) -> Iterator[tuple[int, int]]:
    n_units, count = length // unit, max(1, round(length / tile))
    count, more = min(count, n_units), overlap // 2 // unit
    edges = [n_units * i // count for i in range(count + 1)]
    for first, last in itertools.pairwise(edges):
        start, stop = max(first - more, 0), min(last + more, n_units)
        yield start * unit, (stop - start) * unit
