"""The fuser: a trained network with all that is needed to fuse decoded pictures, and its two plain files."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkvfusion.infra.errors import RwkvFusionError, first_invalid, printable
from rwkvfusion.infra.pictures.decode import decode, decode_indices
from rwkvfusion.infra.pictures.units import Picture, Scale, Unit, UnitError, measure
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.planes import from_planes, luma, to_planes, with_chroma
from rwkvfusion.model.fusing.tiles import SCENE_PIXELS, Size, Tile, Window, fuse_tiled, size_of, strips
from rwkvfusion.model.names import CONFIG as CONFIG
from rwkvfusion.model.names import WEIGHTS as WEIGHTS
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.dataset.task import Task

FORMAT_VERSION = 1
VERSION = "3"
"""Of the code that fuses; it is raised whenever a picture of the same weights can change."""
ADVICE = (
    'say which value does here (--scale {role}=VALUE; of a loaded model scale="{role}=VALUE", of a served one the'
    " column scale; of a dataset source.scale)"
)
"""For pictures without a unit."""
NOTHING: Mapping[str, Any] = MappingProxyType({})

Roles = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}(\|[a-z][a-z0-9_]{0,31})*$")]

Side = Annotated[int, Field(ge=1)]


class FuserError(RwkvFusionError, ValueError):
    """Pictures that do not fit the model, or files that are not a model; the message names what differs."""


class NotFiniteError(FuserError):
    """The network gave values that are no numbers."""


class FuserConfig(BaseModel):
    """What `config.json` holds beside the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    task: Task
    roles: tuple[Roles, ...] = Field(
        min_length=1,
        description="modality of each input, in the network's order; `ct|pet|spect`: any one of these",
    )
    network: dict[str, Any] = Field(description="fields of NetworkConfig")
    luma_only: bool = Field(description="the network sees and gives luma, and chroma is fused beside it by weight")
    scales: tuple[Scale | None, ...] = Field(
        default=(),
        description="of each input, where pictures do not say: the value that counts as 1, [the value that counts as 0,"
        ' that counts as 1], or percentiles such as "p1-p99" of each picture; null: the largest of their type',
    )
    extent: tuple[Side, Side] | None = Field(
        default=None,
        description="height and width of what the network was trained on, the largest of several; null: whole pictures,"
        " or not known",
    )
    text: dict[str, Any] | None = Field(
        default=None,
        description="identity of the stage that encoded the captions of the training data; null: not noted",
    )
    version: int = Field(default=FORMAT_VERSION, ge=FORMAT_VERSION, le=FORMAT_VERSION, description="of these files")

    @classmethod
    def of(
        cls,
        network: RWKVFusion,
        task: Task,
        roles: tuple[str, ...],
        *,
        luma_only: bool,
        scales: tuple[Scale | None, ...] = (),
        extent: Size | None = None,
        text: Mapping[str, Any] | None = None,
    ) -> FuserConfig:
        """The config of a network that is there."""
        # As JSON has it, so that a config read back is equal.
        fields = json.loads(json.dumps(dataclasses.asdict(network.config)))
        return cls(
            task=task,
            roles=roles,
            network=fields,
            luma_only=luma_only,
            scales=scales,
            extent=extent,
            text=None if text is None else dict(text),
        )

    @property
    def places(self) -> tuple[tuple[str, ...], ...]:
        """The role names that each input takes."""
        return tuple(tuple(role.split("|")) for role in self.roles)


class Fuser:
    """Fuses one set of pictures at a time, so that the pixels never depend on what else is in a batch.

    FuserError where the config and the network disagree.
    """

    def __init__(self, network: RWKVFusion, config: FuserConfig) -> None:
        channels = network.config.in_channels
        if len(config.roles) != len(channels):
            raise FuserError(
                f"the network takes {len(channels)} modalities, the config names {', '.join(config.roles)}"
            )
        if len(config.scales) not in (0, len(channels)):
            raise FuserError(
                f"the network takes {len(channels)} modalities, the config has {len(config.scales)} scales"
            )
        if config.luma_only and (set(channels) | {network.config.out_channels} != {1}):
            raise FuserError(f"a luma network has single channels, not {channels} -> {network.config.out_channels}")
        self.config = config
        self.network = network.eval()
        self.weights_sha256: str | None = None
        """Hex SHA-256 of the file that it was loaded from."""

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` to `folder`, which is made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(self.config.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> Self:
        """The fuser that `save` wrote to `folder`. FuserError for files that are missing, damaged or do not match."""
        folder = Path(folder)
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise FuserError(f"no model in {folder}: {' and '.join(missing)} missing")
        try:
            config = FuserConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
            if new := sorted(set(config.network) - {field.name for field in dataclasses.fields(NetworkConfig)}):
                raise _of_newer(folder, f"network.{new[0]}")
            network = RWKVFusion(NetworkConfig(**config.network))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "file"
            if first["type"] == "extra_forbidden" or where == "version":
                raise _of_newer(folder, where) from None
            raise _no_config(folder, first_invalid(error)) from None
        except FuserError:
            raise
        except (TypeError, ValueError) as error:
            raise _no_config(folder, " ".join(str(error).split())) from None
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise FuserError(
                f"{folder / WEIGHTS} does not hold this network's weights: {reason}; bring the file here again"
            ) from None
        fuser = cls(network.to(device), config)
        fuser.weights_sha256 = sha256((folder / WEIGHTS).read_bytes())
        return fuser

    def fuse(
        self,
        images: Mapping[str, np.ndarray],
        mask: np.ndarray | None = None,
        text: np.ndarray | None = None,
        scales: Mapping[str, Scale | None] | None = None,
        tile: Tile = "auto",
    ) -> np.ndarray:
        """Fuse one set of pictures of one scene.

        Args:
            images: by role, (H, W, C) or (H, W), integers or floats (on 0-1 where they have no scale). A sharpening
                model takes its low-resolution modality at a whole fraction of the size of the other.
            mask: (H, W) object indices, 0 = background.
            text: (tokens, width) encoded caption.
            scales: by role, what is declared of the values (see `infra.units`). Where nothing is, the model's own
                scale holds, and where it has none, the largest value of the type counts as 1.
            tile: what the network sees at once; see `tile_of`. Larger pictures are fused in tiles that overlap and
                blend.

        Returns:
            (H, W, C), of the type and unit of the first modality, of a sharpening model of the one that it sharpens;
            rounded half to even. A luma model gives three channels where a modality shows colour, and one where all
            are grey (also those that store grey as three equal channels).

        Raises:
            FuserError: roles, channels, types or sizes that do not fit, values that cannot be in the model's unit; the
                message names them.
        """
        for role, values in images.items():
            check_shape(role, values)
        pictures = {role: Picture(role, values, (scales or {}).get(role)) for role, values in images.items()}
        return self.fuse_pictures(self.measure(pictures)[0], mask, text, tile)

    def fuse_pictures(
        self,
        pictures: Mapping[str, Picture],
        mask: np.ndarray | None = None,
        text: np.ndarray | None = None,
        tile: Tile = "auto",
    ) -> np.ndarray:
        """`fuse` of pictures that have their scales (see `measure`): shapes, results and errors are those of `fuse`."""
        selected = self._select({role: picture.values for role, picture in pictures.items()})
        height, width, ratio = _common_size(selected, same=self.config.luma_only)
        planes = [_planes(role, image, pictures[role].unit) for role, image in selected.items()]
        guidance = self._guidance(mask, text, height, width)
        with torch.inference_mode():
            inputs = [luma(image) for image in planes] if self.config.luma_only else planes
            size = self.tile_of(tile)
            unit = ratio if size is None else self._step(height, width, ratio)
            forward = functools.partial(self._forward, inputs, *guidance, height)
            fused = fuse_tiled(forward, height, width, unit, size)
            if self.config.luma_only:
                fused = with_chroma(torch.from_numpy(fused), planes, exposures=self.config.task == "mef").numpy()
        role = self.fused_like(selected)
        return from_planes(fused, selected[role].dtype, pictures[role].unit)

    def measure(
        self, pictures: Mapping[str, Picture], declared: Mapping[str, Scale] = NOTHING, advice: str = ADVICE
    ) -> tuple[dict[str, Picture], dict[str, float]]:
        """The pictures with their scales, and how much some use of their range where that is odd: `units.measure`.

        `declared`: what the user says, by role. FuserError names a picture whose values cannot be in that unit, and
        ends with `advice`, in which {role} stands for its role.
        """
        measured, odd = {}, {}
        for role, picture in pictures.items():
            own = self.own_scale(role)
            name = role if picture.name == role else f"{printable(picture.name)} ({role})"
            kind = picture.values.dtype.kind
            if kind not in "iuf":
                raise FuserError(f"{name} holds {picture.values.dtype}: give integers or floats")
            if kind == "f" and not np.isfinite(picture.values).all():
                raise FuserError(f"{name} holds floats that are not finite: fill them from their neighbours")
            try:
                measured[role], part = measure(picture, role, declared, own, display=self.config.luma_only)
            except UnitError as error:
                raise FuserError(f"{name} holds {error}: {advice.format(role=role)}") from None
            if part is not None:
                odd[role] = part
        return measured, odd

    def fused_like(self, roles: Iterable[str]) -> str:
        """The one of `roles` whose type and unit the fused picture has: the first, or the one that is sharpened."""
        names = self.config.places[self.network.config.residual or 0]
        return next(role for role in roles if role in names)

    def fuse_scene(
        self,
        read: Callable[[Window], Mapping[str, np.ndarray]],
        height: int,
        width: int,
        ratio: int,
        units: Mapping[str, Unit],
        text: np.ndarray | None = None,
        tile: Tile = "auto",
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Sharpen rasters of any size, as (rows, (rows, W, C)) from top to bottom; holds one row of tiles.

        Args:
            read: gives the pictures by role of a window in pixels of the result; the low-resolution one is read where
                the window lies on it. Types as in `fuse`.
            height, width: of the result, multiples of `ratio`, that of the resolutions.
            units: of the whole pictures, by role.
            text: (tokens, width) encoded caption.
            tile: in pixels of the result; as in `fuse`.

        Raises:
            FuserError: as `fuse`, and for a model of another kind of task.
        """
        if self.network.config.residual is None:
            raise FuserError(f"a model for {self.config.task} does not sharpen: give it pictures, not scenes")
        _, tokens = self._guidance(None, text, height, width)
        like = self.fused_like(units)
        dtype = np.dtype(np.float32)

        def fuse(window: Window) -> np.ndarray:
            nonlocal dtype
            selected = self._select(read(window))
            dtype = selected[like].dtype
            planes = [_planes(role, image, units[role]) for role, image in selected.items()]
            whole = (slice(0, window[0].stop - window[0].start), slice(0, window[1].stop - window[1].start))
            with torch.inference_mode():
                return self._forward(planes, None, tokens, whole[0].stop, whole)

        step = self._step(height, width, ratio)
        for rows, fused in strips(fuse, height, width, step, self.tile_of(tile), SCENE_PIXELS):
            yield rows, from_planes(fused, dtype, units[like])

    def tile_of(self, tile: Tile) -> Size | None:
        """Height and width that the network sees at once; None is the whole picture, as far as the memory goes.

        `tile`: a size, a side, "whole", "extent" (that of the training), or "auto": whichever suits the network.
        FuserError for an extent that is not known, and for tiles too small to blend.
        """
        try:
            return size_of(self._best if tile == "auto" else tile, self.config.extent)
        except ValueError as error:
            raise FuserError(str(error)) from None

    @property
    def _best(self) -> Literal["extent", "whole"]:
        """Whole pictures where a pixel depends on their size no more than it did in training."""
        network = self.network.config
        knows_no_size = network.gate_window is not None and network.decay == "token"
        return "whole" if self.config.extent is None or knows_no_size else "extent"

    def _step(self, height: int, width: int, ratio: int) -> int:
        """Of which tiles begin and end on multiples: where it can be, strided convolutions, windows and pooling then
        see the same pixels together in every tile."""
        grid = math.lcm(ratio, self.network.config.multiple)
        return grid if height % grid == 0 and width % grid == 0 else ratio

    def fuse_sample(self, sample: Sample, tile: Tile = "auto") -> np.ndarray:
        """Fuse a sample with its mask and text. FuserError as `fuse`, ImageError for damaged pictures."""
        pictures = {image.role: Picture(image.path, decode(image.data), image.declared) for image in sample.images}
        return self.fuse_pictures(self.measure(pictures)[0], *guidance_of(sample), tile)

    def with_units(self, sample: Sample) -> Sample:
        """The sample with the model's own scale declared of the pictures that declare none; twice is as once.

        A target has that of the picture that the fused one is like. FuserError names a picture whose values cannot be
        in that unit.
        """
        undeclared = {
            image.role: Picture(image.path, decode(image.data))
            for image in sample.images
            if image.scale is None and (image.bit_depth > 16 or self.own_scale(image.role) is not None)
        }
        measured, _ = self.measure(undeclared)
        images = tuple(
            image.with_scale(measured[image.role].scale, measured[image.role].values)
            if image.role in measured
            else image
            for image in sample.images
        )
        target = sample.target
        like = next((i for i in images if i.role in self.config.places[self.network.config.residual or 0]), None)
        if like is not None and target is not None and target.scale is None and target.bit_depth == like.bit_depth:
            target = target.model_copy(update={"scale": like.scale, "black": like.black})
        return sample.model_copy(update={"images": images, "target": target})

    def own_scale(self, role: str) -> Scale | None:
        """What the model itself says of the values of `role`."""
        scales = self.config.scales or (None,) * len(self.config.roles)
        return next((scale for names, scale in zip(self.config.places, scales, strict=True) if role in names), None)

    def _select(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The pictures in the network's order."""
        selected = {}
        for names in self.config.places:
            present = [name for name in names if name in images]
            if len(present) == 1:
                selected[present[0]] = images[present[0]]
        if len(selected) != len(self.config.roles) or len(images) != len(selected):
            raise FuserError(
                f"this model fuses {' + '.join(self.config.roles)}, but was given {' + '.join(images) or 'nothing'}"
            )
        channels = self.network.config.in_channels
        for (role, image), expected in zip(selected.items(), channels, strict=True):
            check_shape(role, image)
            if image.ndim == 2:
                image = selected[role] = image[:, :, None]
            allowed = (1, 3) if self.config.luma_only else (expected,)
            if image.shape[2] not in allowed:
                given = sorted(1 if one.ndim == 2 else one.shape[2] for one in images.values())
                if given == sorted(channels):
                    advice = f"are they swapped? their order is {' + '.join(self.config.roles)}"
                elif image.shape[0] in allowed:
                    advice = "channels come last, (H, W, C), so transpose it"
                elif self.config.luma_only:
                    advice = "give it in grey or RGB"
                else:
                    advice = f"give {'one band' if expected == 1 else f'{expected} bands'}, as in training"
                raise FuserError(
                    f"{role} has {image.shape[2]} channels, this model takes {' or '.join(map(str, allowed))}: {advice}"
                )
        return selected

    def _guidance(
        self, mask: np.ndarray | None, text: np.ndarray | None, height: int, width: int
    ) -> tuple[Tensor | None, Tensor | None]:
        if mask is not None and mask.shape != (height, width):
            raise FuserError(
                f"the mask is {_by(mask.shape)} and the fused picture {_by((height, width))}: sizes must be equal"
            )
        if mask is not None and mask.dtype.kind not in "bui":
            raise FuserError(f"the mask holds {mask.dtype}: give whole numbers, the index of an object at each pixel")
        text_width = self.network.config.text_width
        if text is not None and (text.ndim != 2 or text.shape[1] != text_width):
            raise FuserError(
                f"the text is of shape {text.shape}, this model takes (tokens, {text_width}): encode it as in training"
            )
        if text is not None and not (text.dtype.kind in "iuf" and np.isfinite(text).all()):
            raise FuserError("the text holds what is not finite numbers: encode it as in training")
        device = next(self.network.parameters()).device
        objects = None if mask is None else torch.from_numpy(mask.astype(np.int64))[None].to(device)
        tokens = None if text is None or not len(text) else torch.from_numpy(text.astype(np.float32))[None].to(device)
        return objects, tokens

    def _forward(
        self, inputs: list[Tensor], mask: Tensor | None, text: Tensor | None, height: int, window: Window
    ) -> np.ndarray:
        """The network on one window of a picture of `height`: (out_channels, h, w) float32."""
        device = next(self.network.parameters()).device
        batch = []
        for image in inputs:
            ratio = height // image.shape[1]
            rows, columns = (slice(part.start // ratio, part.stop // ratio) for part in window)
            batch.append(image[None, :, rows, columns].to(device))
        fused = self.network(batch, None if mask is None else mask[:, window[0], window[1]], text)[0].float().cpu()
        if not bool(torch.isfinite(fused).all()):
            raise NotFiniteError(
                "the network gave values that are not finite: its weights are damaged, so bring its files here again"
            )
        return np.asarray(fused)


def check_shape(role: str, values: np.ndarray) -> None:
    """FuserError where `values` are not (H, W) or (H, W, C), or none."""
    if values.ndim not in (2, 3) or 0 in values.shape:
        advice = "give several in a list" if values.ndim == 4 else "give one with these axes, and at least one pixel"
        raise FuserError(f"{role} is no picture of (H, W) or (H, W, C), but of shape {values.shape}: {advice}")


def _of_newer(folder: Path, field: str) -> FuserError:
    return FuserError(f"{folder / CONFIG} is of a newer rwkvfusion, which this one does not read ({field}): update it")


def _no_config(folder: Path, why: str) -> FuserError:
    advice = "update rwkvfusion if the model is of a newer one, else bring the file here again"
    return FuserError(f"{folder / CONFIG} is not a fuser's config: {why}; {advice}")


def guidance_of(sample: Sample | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The mask and the text of a sample, as `Fuser.fuse` takes them."""
    mask = decode_indices(sample.mask.png) if sample is not None and sample.mask is not None else None
    return mask, sample.text.array() if sample is not None and sample.text is not None else None


def _planes(role: str, image: np.ndarray, unit: Unit) -> Tensor:
    try:
        return to_planes(image, unit)
    except ValueError as error:
        raise FuserError(f"{role} holds {error}") from None


def _common_size(images: Mapping[str, np.ndarray], *, same: bool) -> tuple[int, int, int]:
    """Height, width, and the number of pixels that every modality divides both into."""
    largest = max(images, key=lambda role: images[role].shape[0] * images[role].shape[1])
    height, width = images[largest].shape[:2]
    unit = 1
    for role, image in images.items():
        ratio = height // image.shape[0]
        if (image.shape[0] * ratio, image.shape[1] * ratio) != (height, width) or (same and ratio != 1):
            rule = "must be equal" if same else "must be equal, or one a whole fraction of the other"
            raise FuserError(f"{role} is {_by(image.shape[:2])} and {largest} is {_by((height, width))}: sizes {rule}")
        unit = math.lcm(unit, ratio)
    return height, width, unit


def _by(shape: tuple[int, ...]) -> str:
    """(H, W) as people write sizes."""
    return "x".join(str(n) for n in reversed(shape))
