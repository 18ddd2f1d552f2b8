"""segment-anything without torchvision.

The package imports torchvision for four small functions. torchvision's wheel is bound to one build of torch: beside a
CPU torch it does not import, and its mere presence then breaks transformers. So where it imports it is used, and where
it does not, stand-ins take its place while segment-anything is imported, and are gone afterwards.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from types import ModuleType
from typing import Any

from PIL import Image


@cache
def segment_anything() -> Any:
    """The module `segment_anything`."""
    if "segment_anything" in sys.modules or _has_torchvision():
        return importlib.import_module("segment_anything")
    missing = object()
    stubs = _stubs()
    before = {name: sys.modules.get(name, missing) for name in stubs}
    sys.modules.update(stubs)
    try:
        return importlib.import_module("segment_anything")
    finally:
        for name, module in before.items():
            if module is missing:
                del sys.modules[name]
            else:
                sys.modules[name] = module  # type: ignore[assignment]


def _has_torchvision() -> bool:
    try:
        importlib.import_module("torchvision.transforms.functional")
        importlib.import_module("torchvision.ops.boxes")
    except (ImportError, RuntimeError, AttributeError, OSError):  # its operators do not fit this torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        return False
    return True


def _stubs() -> dict[str, ModuleType]:
    names = ("torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms",
             "torchvision.transforms.functional")  # fmt: skip
    stubs = {name: ModuleType(name) for name in names}
    functional, boxes = stubs["torchvision.transforms.functional"], stubs["torchvision.ops.boxes"]
    functional.resize, functional.to_pil_image = _resize, Image.fromarray  # type: ignore[attr-defined]
    boxes.box_area = boxes.batched_nms = _unused  # type: ignore[attr-defined]
    return stubs


def _resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """torchvision's resize of a PIL image to (height, width): bilinear, by PIL itself."""
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _unused(*_: Any, **__: Any) -> Any:
    """What only the package's own SamAutomaticMaskGenerator calls."""
    raise NotImplementedError("segment-anything was imported without torchvision: it answers prompts only")
