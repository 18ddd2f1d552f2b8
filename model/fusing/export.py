"""A fuser's network in one file that needs none of this package: an ONNX graph, or torch's exported program."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.provenance import commit, package_version
from rwkvfusion.model.fusing.fuser import VERSION, Fuser
from rwkvfusion.model.network.graph import Graph, traced

if TYPE_CHECKING:
    import onnx_ir as ir

FORMATS = (".onnx", ".pt2")
METADATA = "metadata.json"
"""Extra file of a .pt2 that has what an ONNX file has as its metadata_props."""
OPSET = 18
_LARGEST = 1024
"""Values of a constant that is computed beforehand."""
_RECIPE = """\
Inputs, each of one scene: for every modality (1, C, H, W) float32 planes, where 0 is the value that counts as 0 and 1 \
the value that counts as 1 (scales; null: 0 and the largest value of the type); {luma}{mask}text, (1, T, {text_width}) \
float32 tokens of the encoder trained with, of which those that are all zero are padding: one of zeros is no text. Any \
height and width{low}{tile}. \
Output: fused, (1, {out}, H, W) float32, not clamped{chroma}. Times the span of {like}, plus its value of 0, rounded \
half to even and clipped to the type, it is the picture. `example` is this as Python."""

_CHROMA = """\
; Cb and Cr are sum(c |c|) / sum(|c|) over the pictures' offsets c from neutral, and smaller by one factor where the \
colour would leave 0 to 1, or what the pictures reach beyond; of multi-exposure (task mef) each picture's are first \
turned to the hue of the other where a channel is cut off (true_chroma of `example`)"""


class ExportError(RwkvFusionError, ValueError):
    """A network that cannot be exported, or a package that is missing; the message says which."""


def check(name: str) -> None:
    """ExportError where the file `name` does not end in one of `FORMATS`, or a package to write it is missing."""
    if not name.endswith(FORMATS):
        raise ExportError(f"{name}: a model is exported as {' or '.join(FORMATS)}")
    if name.endswith(".onnx") and (missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]):
        raise ExportError(f"an ONNX file is made by {' and '.join(missing)}: pip install 'rwkvfusion[onnx]'")


def save(fuser: Fuser, path: Path, facts: dict[str, str]) -> None:
    """Write the fuser's network to `path`, which ends in one of `FORMATS`.

    `facts`: what else the file is to tell of itself, beside `metadata`. ExportError where the weights do not allow it.
    """
    told = metadata(fuser) | facts
    with _quiet():
        try:
            graph = traced(fuser.network.cpu())
        except ValueError as error:
            raise ExportError(str(error)) from None
        if path.name.endswith(".onnx"):
            _save_onnx(graph, input_names(fuser), path, told)
        else:
            torch.export.save(graph.plain(), path, extra_files={METADATA: json.dumps(told, indent=1)})


def input_names(fuser: Fuser) -> list[str]:
    """What the graph's inputs are called, in their order."""
    mask = ["mask"] if fuser.network.config.use_mask else []
    return ["_or_".join(names) for names in fuser.config.places] + mask + ["text"]


def metadata(fuser: Fuser) -> dict[str, str]:
    """What a file tells of itself: text, or JSON of what is not."""
    config, network = fuser.config, fuser.network.config
    tile = fuser.tile_of("auto")
    like = "the first" if network.residual is None else input_names(fuser)[network.residual]
    recipe = _RECIPE.format(
        luma="here the luma alone, BT.601 of full range; " if config.luma_only else "",
        mask="mask, (1, H, W) uint8 object indices, zeros for none; " if network.use_mask else "",
        text_width=network.text_width,
        low="" if network.residual is None else f"; {like} of any smaller size, it is brought to that of the other",
        tile="" if tile is None else f"; larger pictures than {tile[1]}x{tile[0]} in tiles of that size that overlap",
        out=network.out_channels,
        chroma=_CHROMA * config.luma_only,
        like=like,
    )
    return {
        "task": config.task,
        "roles": json.dumps(config.roles),
        "luma_only": json.dumps(config.luma_only),
        "residual": json.dumps(network.residual),
        "scales": json.dumps(config.scales),
        "tile": json.dumps(tile),
        "text_width": json.dumps(network.text_width),
        "text_encoder": json.dumps(config.text),
        "max_objects": json.dumps(network.max_objects if network.use_mask else 0),
        "fuser_version": VERSION,
        "rwkvfusion": package_version(),
        "commit": commit() or "unknown",
        "recipe": recipe,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch says of its own age and of packages that are not needed is not for the user of a command."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnxscript"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _save_onnx(graph: Graph, names: list[str], path: Path, told: dict[str, str]) -> None:
    import onnx_ir as ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    made = graph.to_onnx(
        input_names=names, output_names=["fused"], opset_version=OPSET, verbose=False, optimize=False
    ).model
    # Not the matrices of the decays, which would be the better part of the file.
    optimizer.optimize(made, num_iterations=1, output_size_limit=_LARGEST)
    # They name files of this machine.
    ClearMetadataAndDocStringPass()(made)
    made.metadata_props.update(told)
    _name_sizes(made, graph.sizes)
    made.producer_name, made.producer_version = "rwkvfusion", package_version()
    ir.save(made, path)


def _name_sizes(model: ir.Model, sizes: Sequence[Mapping[int, str]]) -> None:
    """Call the free dimensions of the inputs and outputs by what they are."""
    named: dict[str, str] = {}
    for value, names in zip(model.graph.inputs, sizes, strict=True):
        assert value.shape is not None
        named |= {str(value.shape[dim]): name for dim, name in names.items()}
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        for dim, size in enumerate(value.shape):
            value.shape[dim] = named.get(str(size), size)
