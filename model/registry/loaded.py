"""A model as programs use it: pictures in whatever form they have them, and the fused one back in the same form."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
import torch

from rwkvfusion.infra.pictures.decode import from_pillow
from rwkvfusion.infra.storage import split_file
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import Fuser, FuserError
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.names import CHAMPION
from rwkvfusion.model.registry.captions import encoder_of
from rwkvfusion.model.registry.encoded import Decoded, encode_fused, fuse_decoded, indices_of
from rwkvfusion.model.registry.find import ModelSource, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    PathLike: TypeAlias = str | os.PathLike[str]
    Picture: TypeAlias = np.ndarray | bytes | Image | PathLike
    Caption: TypeAlias = str | np.ndarray | None
    P = TypeVar("P", np.ndarray, bytes, Image)


def load(model: str, *, device: str = "auto", tracking_uri: str | None = None) -> LoadedModel:
    """See `rwkvfusion.load`."""
    is_name = not any(mark in model for mark in ":/\\") and shipped.find(model) is None and not Path(model).exists()
    source = resolve(f"models:/{model}@{CHAMPION}" if is_name else model, tracking_uri)
    return LoadedModel(Fuser.load(source.folder, _device(device)), source)


class LoadedModel:
    """A model to be called; any number of threads may do so at once.

    `roles`: of the pictures that it takes, in order; `task`: what it fuses; `source`: where it was found, with name and
    version of a registered one.
    """

    def __init__(self, fuser: Fuser, source: ModelSource) -> None:
        self.source = source
        self.task = fuser.config.task
        self.roles = fuser.config.roles
        self._fuser = fuser
        self._captions = encoder_of(fuser.config.text, fuser.network.config.text_width)
        self._one_at_a_time = threading.Lock()

    def __repr__(self) -> str:
        return f"<{self.source.uri}: {self.task}, {' + '.join(self.roles)}>"

    @overload
    def __call__(self, *pictures: P, mask: Picture | None = ..., caption: Caption = ..., scale: str | None = ...,
                 tile: Tile = ..., out: None = ...) -> P: ...  # fmt: skip

    @overload
    def __call__(self, *pictures: Sequence[P], mask: Sequence[Picture | None] | None = ...,
                 caption: Sequence[Caption] | None = ..., scale: str | None = ..., tile: Tile = ...,
                 out: None = ...) -> list[P]: ...  # fmt: skip

    # A path is also a sequence of paths; it is meant as one.
    @overload
    def __call__(self, *pictures: Picture, mask: Picture | None = ..., caption: Caption = ...,  # type: ignore[overload-overlap]
                 scale: str | None = ..., tile: Tile = ..., out: PathLike) -> Path | str: ...  # fmt: skip

    @overload
    def __call__(self, *pictures: Sequence[Picture], mask: Sequence[Picture | None] | None = ...,
                 caption: Sequence[Caption] | None = ..., scale: str | None = ..., tile: Tile = ...,
                 out: Sequence[PathLike]) -> list[Path | str]: ...  # fmt: skip

    def __call__(
        self,
        *pictures: Any,
        mask: Any = None,
        caption: Any = None,
        scale: str | None = None,
        tile: Tile = "auto",
        out: Any = None,
    ) -> Any:
        """Fuse pictures of one scene: `fuse(visible, infrared)`; or lists of them, one scene after the other.

        Args:
            pictures: in the order of `roles`; each an array (H, W) or (H, W, C) of 8 or 16 bits or floats, the bytes of
                a file, a Pillow image, or a path or URL.
            mask: of the objects, (H, W): an index for each, 0 elsewhere; in any of these forms.
            caption: a text, or (tokens, width) encoded as in training.
            scale: the value that counts as 1 where pictures do not say, as of `rwkvfusion fuse --scale`: "16383",
                "infrared=20000-24000". Several are parted by blanks.
            tile: what the network sees at once; see `Fuser.tile_of`.
            out: a file to write, by whose ending its format is chosen. Pictures given as paths need one.

        Returns:
            The fused picture in the form of the first one, with its type and unit (of a sharpening model: those of the
            picture that is sharpened); bytes are PNG, or TIFF where PNG cannot hold it. With `out`, its path or URL.
            Of lists, a list; mask, caption and out are lists then too, or None.

        Raises:
            RwkvFusionError: pictures that do not fit the model or each other, or are damaged; the message says which.

        Warns of pictures that seem to be given for each other, and of values that hardly have the unit they are taken
        to have.
        """
        if pictures and isinstance(pictures[0], list | tuple):
            scenes = _scenes(pictures, mask, caption, out)
            return [self._fused(p, m, c, scale, tile, o) for p, m, c, o in scenes]
        return self._fused(pictures, mask, caption, scale, tile, out)

    def _fused(self, pictures: Sequence[Any], mask: Any, caption: Any, scale: str | None, tile: Tile, out: Any) -> Any:
        if len(pictures) != len(self.roles):
            raise FuserError(f"this model fuses {' + '.join(self.roles)}: give it {len(self.roles)} pictures")
        if out is None and _is_path(pictures[0]):
            raise FuserError('what is fused of files goes to a file: add out="FUSED.png", or give their bytes')
        roles = [names[0] for names in self._fuser.config.places]
        decoded = {role: _decoded(role, picture) for role, picture in zip(roles, pictures, strict=True)}
        text = caption if caption is None or isinstance(caption, np.ndarray) else self._captions.encode(caption)
        indices = None if mask is None else _indices(mask)
        # A picture takes all cores, and memory for its size.
        with self._one_at_a_time:
            fused = fuse_decoded(self._fuser, decoded, indices, text, scale, tile)
        if out is not None:
            return _written(self._fuser, fused, out)
        if isinstance(pictures[0], bytes | bytearray | memoryview):
            return encode_fused(self._fuser, fused)[0]
        return _like(pictures[0], fused)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FuserError(f"there is no device {name!r}: say cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise FuserError(f"this machine has {torch.cuda.device_count()} GPUs that torch can use, and no {name}")
    return name


def _scenes(pictures: Sequence[Any], *more: Any) -> list[tuple[Any, ...]]:
    """(pictures, mask, caption, out) of each scene of a batch."""
    n = len(pictures[0])
    lists = [*pictures, *(one for one in more if one is not None)]
    if not all(isinstance(one, list | tuple) and len(one) == n for one in lists):
        raise FuserError(f"of a batch all are lists of one length: the first has {n} pictures")
    return list(zip(zip(*pictures, strict=True), *(one or [None] * n for one in more), strict=True))


def _is_path(picture: Any) -> bool:
    return isinstance(picture, str | os.PathLike)


def _read(path: Any) -> bytes:
    folder, name = split_file(os.fspath(path))
    return folder.read(name)


def _decoded(role: str, picture: Any) -> Decoded:
    if _is_path(picture):
        path = os.fspath(picture)
        return Decoded.of(_read(path), path, path)
    if isinstance(picture, bytes | bytearray | memoryview):
        return Decoded.of(bytes(picture), role)
    if _is_pillow(picture):
        return Decoded(from_pillow(picture))
    if not isinstance(picture, np.ndarray):
        raise FuserError(f"{role} is an array, the bytes of a file, a Pillow image or a path, not {_kind(picture)}")
    return Decoded(picture[:, :, None] if picture.ndim == 2 else picture)


def _indices(mask: Any) -> np.ndarray:
    if _is_path(mask):
        return indices_of(_read(mask), os.fspath(mask))
    if isinstance(mask, bytes | bytearray | memoryview):
        return indices_of(bytes(mask))
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2:
        raise FuserError(f"the mask is of shape {array.shape}: give (H, W), the index of an object at each pixel")
    return array


def _is_pillow(picture: Any) -> bool:
    from PIL.Image import Image

    return isinstance(picture, Image)


def _kind(value: Any) -> str:
    return type(value).__name__


def _like(picture: Any, fused: np.ndarray) -> Any:
    """The fused (H, W, C) in the form of `picture`."""
    if isinstance(picture, np.ndarray):
        return fused[:, :, 0] if picture.ndim == 2 and fused.shape[2] == 1 else fused
    return _pillow(fused)


def _pillow(fused: np.ndarray) -> Image:
    from PIL import Image

    channels = fused.shape[2]
    if channels not in (1, 3) or (channels == 3 and fused.dtype != np.uint8):
        raise FuserError(f"a Pillow image cannot hold {channels} bands of {fused.dtype}: give arrays, or add out=")
    return Image.fromarray(np.ascontiguousarray(fused[:, :, 0] if channels == 1 else fused))


def _written(fuser: Fuser, fused: np.ndarray, out: Any) -> Path | str:
    folder, name = split_file(os.fspath(out))
    folder.write(name, encode_fused(fuser, fused, name.rpartition(".")[2])[0])
    return str(out) if "://" in str(out) else Path(out)
