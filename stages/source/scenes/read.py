"""Pairs of the sharpening tasks: planned from scenes and arrays, made when they are read, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.encode import encode_tiff
from rwkvfusion.infra.pictures.units import narrow_use, unit_of
from rwkvfusion.infra.storage import MissingError, Store, sha256
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.dataset.task import TASKS
from rwkvfusion.stages.source.files import Picture, RefusedError
from rwkvfusion.stages.source.layouts import Layout
from rwkvfusion.stages.source.names import words
from rwkvfusion.stages.source.pair import ArrayRef, Cut, PairRef
from rwkvfusion.stages.source.scenes.arrays import ArrayFile
from rwkvfusion.stages.source.scenes.axes import View
from rwkvfusion.stages.source.scenes.raster import Part
from rwkvfusion.stages.source.scenes.scene import (
    ArrayCube,
    ArrayPair,
    CubeScene,
    EmptyError,
    PairScene,
    Scene,
    SceneConfig,
    SceneError,
    TiffPair,
    open_arrays,
    read_view,
)
from rwkvfusion.stages.source.scenes.sensors import SENSORS, degrade, gains_for

_TEN_BIT = frozenset({"gf2", "gaofen"})


class CutReader:
    """Reads cuts, and keeps the file of the last one open: the cuts of a scene come one after the other."""

    def __init__(self, store: Store, layout: Layout, config: SceneConfig) -> None:
        self._store, self._layout, self._config = store, layout, config
        self._open: tuple[tuple[str, ...], ArrayFile | Scene] | None = None
        self.narrow: tuple[str, ...] = ()
        """Roles, in the last cut, of pictures that use little of their 16 bits while nothing declares their scale."""

    def read(self, ref: PairRef, cut: Cut) -> tuple[list[Image], Image | None]:
        """The modalities in order, and the target where there is one, each encoded as TIFF.

        RefusedError where the files do not hold what they announce; StorageError where the store does not answer.
        """
        name = ref.files[0].name
        try:
            made, declared = self._made(ref, cut)
        except MissingError:
            raise RefusedError(
                "missing", f"{printable(name)} is gone: it was there when the source was listed"
            ) from None
        except EmptyError as error:
            raise RefusedError("empty", f"{printable(name)}{_words(cut)}: {error}") from None
        except (SceneError, ValueError, OSError) as error:
            self._close()
            raise RefusedError("unreadable", f"{printable(name)}: {printable(str(error))[:300]}") from None
        # What a filter makes of integers is float: the range is that of what was there before.
        original = made.images[ref.files[-1].role] if made.target is None else made.target
        scale = known_scale(self._config, self._layout, name, original, declared)
        self.narrow, own = (), self._own(ref)
        if scale is None:
            measured = {**made.images, ref.files[-1].role: original}
            self.narrow = tuple(
                role for role, array in measured.items() if role not in own and narrow_use(array) is not None
            )
            if any(array.dtype != original.dtype for array in made.images.values()):
                scale = unit_of(original).white
        paths = {file.role: f"{file.name}{_words(cut)}" for file in ref.files}
        images = [_image(role, path, made.images[role], own.get(role, scale)) for role, path in paths.items()]
        target = None if made.target is None else _image("target", [*paths.values()][-1], made.target, scale)
        return images, target

    def _own(self, ref: PairRef) -> dict[str, float]:
        """By role, what counts as 1 where the file of high resolution declares that itself, and the settings do not."""
        scene = None if self._open is None else self._open[1]
        own = scene.high_scale if isinstance(scene, PairScene) and self._config.scale is None else None
        return {} if own is None else {ref.files[0].role: own}

    def _made(self, ref: PairRef, cut: Cut) -> tuple[Made, float | None]:
        config = self._config
        if cut.window is None:
            file = self._arrays(ref.files[0].name)
            high, low = (ref.files[0].role, ref.files[1].role)
            pictures = {
                role: _picture(file, cut.arrays[what], cut.index) for role, what in ((high, "high"), (low, "low"))
            }
            target = _picture(file, cut.arrays["target"], cut.index) if "target" in cut.arrays else None
            return Made(pictures, target), None
        scene, part = self._scene(ref, cut), _part(cut.window)
        if isinstance(scene, CubeScene):
            made = reduced_cube(scene, part, _part(cut.region or cut.window), config.ratio, config.sensor)
        elif cut.protocol == "reduced":
            made = reduced_pair(scene, part, _part(cut.region or cut.window), config.sensor)
        else:
            made = as_it_is(scene, part)
        return made, scene.scale

    def _arrays(self, name: str) -> ArrayFile:
        opened = self._kept((name,))
        if isinstance(opened, ArrayFile):
            return opened
        file = open_arrays(self._store, name)
        self._open = ((name,), file)
        return file

    def _scene(self, ref: PairRef, cut: Cut) -> PairScene | CubeScene:
        names = tuple(file.name for file in ref.files)
        opened = self._kept(names)
        if isinstance(opened, PairScene | CubeScene):
            return opened
        scene: PairScene | CubeScene
        if not cut.arrays:
            scene = TiffPair(self._store, *names)
        else:
            file = open_arrays(self._store, names[0])
            views = {role: _view(file, ref) for role, ref in cut.arrays.items()}
            if "cube" in views:
                scene = ArrayCube(file, views["cube"], self._config, names[0])
            else:
                scene = ArrayPair(file, views["high"], views["low"])
        self._open = (names, scene)
        return scene

    def _kept(self, names: tuple[str, ...]) -> ArrayFile | Scene | None:
        if self._open is not None and self._open[0] == names:
            return self._open[1]
        self._close()
        return None

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].__exit__()
            self._open = None


def known_scale(
    config: SceneConfig, layout: Layout, source: str, array: np.ndarray, declared: float | None = None
) -> float | None:
    """What counts as 1: as set, as the file declares, or as is usual in the layout; None for the type's largest value.

    RefusedError for floats of which nothing is known, and that are not on 0-1.
    """
    if config.scale or declared:
        return config.scale or declared
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise RefusedError(
                "range",
                f"{printable(source)}: floats from {low:g} to {high:g}: set source.scene.scale to what counts as 1",
            )
        return 1.0
    if array.dtype == np.uint8 or layout.scale is None:
        return None
    return usual_scale(layout, source)


def usual_scale(layout: Layout, name: str) -> float | None:
    """What counts as 1 in the integers of the file `name`, where nothing declares it."""
    return 1023.0 if layout.scale == 2047.0 and not _TEN_BIT.isdisjoint(words(name)) else layout.scale


def check_sharpening(modalities: Sequence[Picture], target: Picture | None) -> None:
    """RefusedError unless the sizes are whole fractions of the largest, and the target is what the fusion should give.

    The modality that is sharpened is the last, of the lowest resolution.
    """
    high, low = modalities[0].image, modalities[-1].image
    ratio = high.height // low.height
    if ratio < 1 or (low.height * ratio, low.width * ratio) != (high.height, high.width):
        sizes = ", ".join(f"{printable(p.image.path)} is {p.image.width}x{p.image.height}" for p in modalities)
        raise RefusedError("size_mismatch", f"the sizes (width x height) do not differ by one whole ratio: {sizes}")
    if target is None:
        return
    wanted = (high.height, high.width, low.channels)
    found = (target.image.height, target.image.width, target.image.channels)
    if found != wanted:
        raise RefusedError(
            "size_mismatch",
            f"the target is {found[1]}x{found[0]} of {found[2]} bands,"
            f" and must be {wanted[1]}x{wanted[0]} of {wanted[2]}",
        )


def _view(file: ArrayFile, ref: ArrayRef) -> View:
    header = file.headers.get(ref.name)
    if header is None or len(header.shape) != len(ref.axes):
        raise SceneError(f"{ref.name} is not what it was when the source was listed")
    return View(ref.name, ref.axes, header.shape)


def _picture(file: ArrayFile, ref: ArrayRef, index: int | None) -> np.ndarray:
    return read_view(file, _view(file, ref), index, (slice(None), slice(None)))


def _part(box: tuple[int, int, int, int]) -> Part:
    top, left, height, width = box
    return slice(top, top + height), slice(left, left + width)


def _words(cut: Cut) -> str:
    """Which part of its file a picture is, as its path says."""
    if cut.window is None:
        return f"#{cut.index}"
    top, left, height, width = cut.window
    return f"#{cut.protocol}[{top}:{top + height},{left}:{left + width}]"


def _image(role: str, path: str, array: np.ndarray, scale: float | None) -> Image:
    data = encode_tiff(array := _storable(array))
    height, width, channels = array.shape
    return Image(
        role=role, path=path, data=data, ext="tif", height=height, width=width, channels=channels,
        bit_depth=array.dtype.itemsize * 8, sha256=sha256(data), scale=scale,
    )  # fmt: skip


def _storable(array: np.ndarray) -> np.ndarray:
    """uint8 and uint16 as they are, everything else as float32, which holds whole numbers up to 2^24 exactly."""
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    values = array.astype(np.float32)
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise RefusedError("unreadable", f"{n_bad} of {values.size} values are NaN or infinite")
    return values


PAN, MS = TASKS["pansharpening"].orders[0]
HS = TASKS["hmif"].orders[0][1]
MARGIN = 20
"""Pixels beyond a window that the filters of 41 taps look at."""


@dataclass(frozen=True)
class Made:
    """Pictures (h, w, C) by role, and the target where there is one."""

    images: Mapping[str, np.ndarray]
    target: np.ndarray | None


def as_it_is(scene: PairScene, part: Part) -> Made:
    """The window `part` of a PAN and MS at full resolution; nothing is known of the target. EmptyError as below."""
    _check_full(scene, part)
    pan, ms = scene.read(part)
    return Made({PAN: pan, MS: ms}, None)


def reduced_pair(scene: PairScene, part: Part, region: Part, sensor: str) -> Made:
    """PAN and MS of the window `part`, both degraded by the ratio with the MTF (float32); the target is the MS.

    Nothing outside `region` is looked at: its border is repeated. EmptyError where a pixel of the window is empty; what
    is empty around it is, to the filters, as its nearest valid neighbour.
    """
    _check_full(scene, part)
    ratio = scene.ratio
    wide, inner = _context(part, region, ratio)
    pan, ms = scene.read(wide)
    low_ms = degrade(ms, ratio, gains_for(sensor, ms.shape[2]))
    low_pan = degrade(pan, ratio, SENSORS[sensor].pan)
    coarse = tuple(slice(s.start // ratio, s.stop // ratio) for s in inner)
    images = {PAN: low_pan[inner].astype(np.float32), MS: low_ms[coarse].astype(np.float32)}
    return Made(images, np.ascontiguousarray(ms[inner]))


def reduced_cube(scene: CubeScene, part: Part, region: Part, ratio: int, sensor: str) -> Made:
    """A cube's window degraded by `ratio`, and the multispectral bands it shows (float32); it is the target."""
    wide, inner = _context(part, region, ratio)
    cube = scene.read(wide)
    low = degrade(cube, ratio, gains_for(sensor, cube.shape[2]))
    target = np.ascontiguousarray(cube[inner])
    coarse = tuple(slice(s.start // ratio, s.stop // ratio) for s in inner)
    ms = target.astype(np.float64) @ scene.response.T
    return Made({MS: ms.astype(np.float32), HS: low[coarse].astype(np.float32)}, target)


def _check_full(scene: PairScene, part: Part) -> None:
    n_empty = scene.n_empty(part)
    if n_empty:
        raise EmptyError(f"{n_empty} of its pixels are empty: only tiles without are used")


def _context(part: Part, region: Part, ratio: int) -> tuple[Part, Part]:
    """`part` with what the filters see around it inside `region`, and where `part` lies in that."""
    margin = -(-MARGIN // ratio) * ratio
    wide, inner = [], []
    for span, limit in zip(part, region, strict=True):
        start, stop = max(span.start - margin, limit.start), min(span.stop + margin, limit.stop)
        wide.append(slice(start, stop))
        inner.append(slice(span.start - start, span.stop - start))
    return (wide[0], wide[1]), (inner[0], inner[1])
