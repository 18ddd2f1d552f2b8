"""Pairs of the sharpening tasks: cut from scenes and arrays, or read as they are, and checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.encode import encode_tiff
from rwkvfusion.infra.pictures.units import narrow_use, unit_of
from rwkvfusion.infra.storage import MissingError, sha256
from rwkvfusion.stages.dataset.sample import Image
from rwkvfusion.stages.source.config import Origin
from rwkvfusion.stages.source.files import PairError, Picture, SceneError, check_sizes
from rwkvfusion.stages.source.layouts import MASK, TARGET
from rwkvfusion.stages.source.pair import Candidates, Cut, PairRef
from rwkvfusion.stages.source.pictures import PairPictures, PictureReader, image_of, narrow_roles
from rwkvfusion.stages.source.scenes.picture_rasters import check_rasters
from rwkvfusion.stages.source.scenes.plan import ScenePlanner
from rwkvfusion.stages.source.scenes.scene import EmptyError, Scene, open_scene
from rwkvfusion.stages.source.splits import OnRead


class SharpeningReader(PictureReader):
    """Pairs of the sharpening tasks. The scene of the last cut stays open: the cuts of one come after each other."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(origin)
        self._open: tuple[tuple[str, ...], Scene] | None = None

    def plan(self, names: Sequence[str], on_read: OnRead) -> Candidates:
        planner = ScenePlanner(self.origin, on_read)
        if self.origin.layout.extensions:
            return planner.arrays(names)
        return planner.rasters(self.pair_names(names, ""))

    def read(self, ref: PairRef) -> PairPictures:
        return self._whole(ref) if ref.cut is None else self._cut(ref, ref.cut)

    def _whole(self, ref: PairRef) -> PairPictures:
        modalities = self.modalities(ref)
        target, mask = self.extra(TARGET, ref.target), self.extra(MASK, ref.annotation)
        check_sharpening(modalities, target)
        names = [*(file.name for file in ref.files), *([ref.target] if ref.target else [])]
        check_rasters([(self.origin.store, name) for name in names], full=True)
        low = modalities[-1]
        scale = self._scale(ref.files[-1].name, low.array, low.image.scale)
        own = {p.image.role: p.image.scale for p in modalities if self.origin.config.scene.scale is None}
        images = [p.image.model_copy(update={"scale": own.get(p.image.role) or scale}) for p in modalities]
        if mask is not None:
            check_sizes([images[0], mask.image])
        return PairPictures(
            tuple(images),
            None if target is None else target.image.model_copy(update={"scale": scale}),
            image_of(mask),
            narrow_roles(modalities if scale is None else ()),
        )

    def _cut(self, ref: PairRef, cut: Cut) -> PairPictures:
        """The pictures of a part of its files, each encoded as TIFF."""
        (high, low), name = ref.files, ref.files[0].name
        try:
            scene = self._scene(ref, cut)
            pictures = scene.cut(cut, self.origin.config.scene.sensor)
        except MissingError:
            raise PairError("missing", f"{printable(name)} is gone: it was there when the source was listed") from None
        except EmptyError as error:
            raise PairError("empty", f"{printable(name)}{cut}: {error}") from None
        except (SceneError, ValueError, OSError) as error:
            self._close()
            raise PairError("unreadable", f"{printable(name)}: {printable(str(error))[:300]}") from None
        # What a filter makes of integers is float: the range is that of what was there before.
        original = pictures.low if pictures.target is None else pictures.target
        is_stack = cut.window is None
        scale = self._scale(name, original, None if is_stack else scene.scale)
        high_scale = None if is_stack or self.origin.config.scene.scale is not None else scene.high_scale
        narrow: tuple[str, ...] = ()
        if scale is None:
            measured = {low.role: original, **({} if high_scale else {high.role: pictures.high})}
            narrow = tuple(role for role, array in measured.items() if narrow_use(array) is not None)
            if any(array.dtype != original.dtype for array in (pictures.high, pictures.low)):
                scale = unit_of(original).white
        images = (
            _image(high.role, f"{high.name}{cut}", pictures.high, high_scale or scale),
            _image(low.role, f"{low.name}{cut}", pictures.low, scale),
        )
        target = None
        if pictures.target is not None:
            target = _image(TARGET, f"{low.name}{cut}", pictures.target, scale)
        return PairPictures(images, target, narrow=narrow)

    def _scene(self, ref: PairRef, cut: Cut) -> Scene:
        names = tuple(file.name for file in ref.files)
        if self._open is None or self._open[0] != names:
            self._close()
            self._open = names, open_scene(self.origin.store, names, cut.arrays, self.origin.config.scene)
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _scale(self, name: str, array: np.ndarray, declared: float | None) -> float | None:
        """What counts as 1: as set, as the file declares, or as is usual; None for the type's largest value.

        PairError for floats of which nothing is known, and that are not on 0-1.
        """
        config, layout = self.origin.config.scene, self.origin.layout
        if config.scale or declared:
            return config.scale or declared
        if array.dtype.kind != "f":
            return None if array.dtype == np.uint8 or layout.scale is None else layout.usual_scale(name)
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):
            raise PairError(
                "range",
                f"{printable(name)}: floats from {low:g} to {high:g}: set source.scene.scale to what counts as 1",
            )
        return 1.0


def check_sharpening(modalities: Sequence[Picture], target: Picture | None) -> None:
    """PairError unless the sizes are whole fractions of the largest, and the target is what the fusion should give.

    The modality that is sharpened is the last, of the lowest resolution.
    """
    high, low = modalities[0].image, modalities[-1].image
    ratio = high.height // low.height
    if ratio < 1 or (low.height * ratio, low.width * ratio) != (high.height, high.width):
        sizes = ", ".join(f"{printable(p.image.path)} is {p.image.width}x{p.image.height}" for p in modalities)
        raise PairError("size_mismatch", f"the sizes (width x height) do not differ by one whole ratio: {sizes}")
    if target is None:
        return
    wanted = (high.height, high.width, low.channels)
    found = (target.image.height, target.image.width, target.image.channels)
    if found != wanted:
        raise PairError(
            "size_mismatch",
            f"the target is {found[1]}x{found[0]} of {found[2]} bands,"
            f" and must be {wanted[1]}x{wanted[0]} of {wanted[2]}",
        )


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
        raise PairError("unreadable", f"{n_bad} of {values.size} values are NaN or infinite")
    return values
