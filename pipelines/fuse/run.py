"""`fuse`: a model's pictures of one pair, of two folders, or of a prepared dataset. Only the last can use Ray.

Each picture `NAME.png` (TIFF where it has other than 1 or 3 bands, or the format asked for) lies beside `NAME.json`:
model, sources, guidance, hashes; by it, a picture that is finished is not made again. A pair that cannot be fused is
skipped with its reason; the others go on.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self

import torch

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.encode import FORMATS
from rwkvfusion.infra.pictures.units import EVERY, Scale
from rwkvfusion.infra.storage import Store, split_file
from rwkvfusion.model import shipped
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.fusing.tiles import Tile
from rwkvfusion.model.registry.find import resolve
from rwkvfusion.pipelines.console import Bar, say
from rwkvfusion.pipelines.fuse.guide import FuseError
from rwkvfusion.pipelines.fuse.record import Fused, Model, Output, Pair
from rwkvfusion.pipelines.fuse.writer import FuseSummary, OnPicture, PictureWriter, Skipped, pairs_of
from rwkvfusion.stages.dataset.dataset import Dataset
from rwkvfusion.stages.source.files import SourceError
from rwkvfusion.stages.source.pairing import pair_folders

__all__ = [
    "FuseError",
    "FuseSummary",
    "Model",
    "Output",
    "PictureProgress",
    "fuse_dataset",
    "fuse_folders",
    "fuse_pair",
]

RawGuidance = Literal["none", "builtin"]


def default_model(dataset: str | None = None, *, allow_incomplete: bool = False) -> str:
    """The name of the model that comes with the package for pairs of which nothing is said, or for `dataset`.

    FuseError where it has none for all pairs of that task; DatasetError as of `Dataset.open`.
    """
    tasks = ("vif",) if dataset is None else Dataset.open(dataset, allow_incomplete=allow_incomplete).tasks
    # What is for one sensor has its name in addition, and has to be asked for.
    if len(tasks) == 1 and shipped.find(tasks[0]) is not None:
        return tasks[0]
    of_tasks = ", ".join(name for name, one in shipped.shipped().items() if one.config["task"] in tasks)
    known = f" (for some pairs: {of_tasks})" if of_tasks else ""
    raise FuseError(f"no model that comes with the package is for all of {' and '.join(tasks)}{known}: give --model")


def open_model(
    uri: str,
    device: str | None = None,
    tracking: str | None = None,
    scales: Mapping[str, Scale] | None = None,
    tile: Tile = "auto",
) -> Model:
    """The model behind `uri` (see `find.resolve`) on `device`; by default on the GPU where there is one.

    `scales`: of the raw pictures that it is to fuse, by role; FuseError for roles that are not the model's.
    `tile`: what the network sees at once; FuserError as of `Fuser.tile_of`.
    """
    source = resolve(uri, tracking)
    fuser = Fuser.load(source.folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    roles = [role for names in fuser.config.places for role in names]
    if unknown := sorted(set(scales or {}) - {*roles, EVERY}):
        raise FuseError(f"--scale: this model has no {unknown[0]!r}; it fuses {', '.join(roles)}")
    fuser.tile_of(tile)
    return Model(fuser, source, str(fuser.weights_sha256), scales or {}, tile)


def fuse_pair(
    model: Model,
    urls: Sequence[str],
    out: str,
    guidance: RawGuidance = "none",
    output: Output = Output(),  # noqa: B008
) -> FuseSummary:
    """Fuse the pictures `urls`, in the order of the model's roles, to `out` with its record beside it.

    `out` ends in one of `encode.FORMATS`, or is a folder, where the picture gets the stem of the first. FuseError for a
    number of pictures that is not the model's, and for an `out` that ends otherwise or in another than `output.format`.
    """
    roles = [names[0] for names in model.fuser.config.places]
    if len(urls) != len(roles):
        raise FuseError(f"this model fuses {' + '.join(roles)}: give {len(roles)} pictures, not {len(urls)}")
    files = {role: split_file(url) for role, url in zip(roles, urls, strict=True)}
    folder, name = (Store(out), files[roles[0]][1]) if Store(out).isdir() else split_file(out)
    stem, _, extension = name.rpartition(".")
    if not Store(out).isdir():
        if not stem or extension.lower() not in FORMATS:
            formats = ", ".join(f".{one}" for one in FORMATS)
            raise FuseError(f"{out}: a fused picture is written as {formats} (or into a folder that is there)")
        if output.format not in (None, extension.lower()):
            raise FuseError(f"{out} is no .{output.format}, which was asked for: leave one of them out")
        output = replace(output, format=extension)
    return PictureWriter(model, folder, guidance, replace(output, jobs=1)).run([Pair(stem, files=files)], 1)


def fuse_folders(
    model: Model,
    folders: Mapping[str, str],
    out: str,
    guidance: RawGuidance = "none",
    on_picture: OnPicture | None = None,
    output: Output = Output(),  # noqa: B008
) -> FuseSummary:
    """Fuse the pictures of `folders` (role -> URL), paired by name (see `pair_folders`), to `{out}/{stem}.{format}`.

    Files that pair with nothing are skipped with the reason. FuseError where the roles are
    not the model's, a folder is not there, or no two stems fit.
    """
    places = model.fuser.config.places
    roles = [role for names in places for role in names if role in folders]
    if len(roles) != len(places) or set(roles) != set(folders):
        raise FuseError(f"this model fuses {' + '.join(model.fuser.config.roles)}, not {' + '.join(folders)}")
    stores = {role: Store(folders[role]) for role in roles}
    try:
        pairs, alone = pair_folders(stores)
    except SourceError as error:
        raise FuseError(str(error)) from None
    items: list[Pair | Skipped] = [Skipped(one.name, one.reason) for one in alone]
    for pair in pairs:
        stem = os.path.splitext(pair[roles[0]])[0]
        items.append(Pair(stem, files={role: (stores[role], pair[role]) for role in roles}))
    return PictureWriter(model, Store(out), guidance, output).run(items, len(items), on_picture)


def fuse_dataset(
    model: Model,
    url: str,
    out: str,
    splits: Collection[str] | None = None,
    keys: Collection[str] | None = None,
    on_picture: OnPicture | None = None,
    output: Output = Output(),  # noqa: B008
    *,
    limit: int | None = None,
    allow_incomplete: bool = False,
    ray: str | None = None,
) -> FuseSummary:
    """Fuse the committed samples of the dataset at `url` with their own masks and texts, to `{out}/{stem}.{format}`.

    The stem is that of the first modality's file in the source, so that the pictures can be set beside it; where two
    samples share one, the later gets its key. `limit`: of the samples, evenly spread. `ray`: the address of the Ray
    whose machines share the work (see `cluster.connect`), with the same pictures; None: this process does it.
    DatasetError for splits or keys that are not there, and for a dataset that lacks planned shards, unless that is
    allowed; with Ray also ClusterError, LostOutputError, and FuseError where the job fails as a whole.
    """
    selected = Dataset.open(url, allow_incomplete=allow_incomplete).select(splits, keys, limit)
    if ray is not None:
        # Slow to import, and one process does without.
        from rwkvfusion.pipelines.fuse.batch import fuse_on_ray

        return fuse_on_ray(model, url, selected, out, output, on_picture, ray)
    pairs = (pair for shard in selected.shards for pair in pairs_of(shard))
    return PictureWriter(model, Store(out), "sample", output).run(pairs, len(selected), on_picture)


class PictureProgress:
    """Progress on stderr, for `on_picture`: what was skipped is said at once, with its reason. Use it as a context."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._shown.close()

    def __call__(self, result: Fused | Skipped | None, total: int) -> None:
        if self._bar is None:
            self._bar = self._shown.enter_context(Bar("fuse", total, "picture"))
            self._bar.reach(0)
        if isinstance(result, Skipped):
            say(f"skipped {printable(result.name)}: {printable(result.reason)}")
        if isinstance(result, Fused):
            for note in result.notes:
                say(f"{printable(result.name)}: {printable(note)}")
        if result is not None:
            self._bar.advance(worked=isinstance(result, Fused) and not result.kept)
