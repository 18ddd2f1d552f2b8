"""Segmentation by segment-anything: box prompts, the best of its three masks (Sect. 3.1, 3.7).

The package imports torchvision for four small functions. torchvision's wheel is bound to one build of torch: beside a
CPU torch it does not import, and its mere presence then breaks transformers. So where it imports it is used, and where
it does not, stand-ins take its place while segment-anything is imported, and are gone afterwards.
"""

from __future__ import annotations

import importlib
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image as PillowImage
from pydantic import Field, field_validator

from rwkvfusion.infra.weights import Checkpoint, Weights, WeightsError, absolute_model
from rwkvfusion.stages.dataset.sample import Box, Image, Instance, Sample
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated_or
from rwkvfusion.stages.guidance.display import rgb
from rwkvfusion.stages.guidance.pretrained.base import ModelStage
from rwkvfusion.stages.guidance.rle import encode_rle

_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
OFFICIAL: Mapping[str, tuple[str, str]] = {
    "vit_b": (
        f"{_FILES}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "vit_l": (
        f"{_FILES}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "vit_h": (
        f"{_FILES}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
}
"""Where the published checkpoints are, and their SHA-256."""


class SamConfig(AnnotationConfig):
    """Settings of the segmenter."""

    method: Literal["sam"] = "sam"
    checkpoint: str = Field(default="vit_h", description="vit_b, vit_l, vit_h; or a path; or a URL, with sha256")
    sha256: str | None = Field(default=None, description="of the checkpoint; null: not checked, only recorded")
    half: bool = Field(default=True, description="half precision on GPUs (bfloat16 where they have it) for pictures")
    boxes_per_call: int | None = Field(
        default=None,
        ge=1,
        description="boxes of one picture at once; null: 32 on a GPU, 1 on a CPU",
    )

    @field_validator("checkpoint")
    @classmethod
    def _absolute(cls, checkpoint: str) -> str:
        # Workers run in other directories than the one a relative path was meant for.
        is_named = checkpoint in OFFICIAL or "://" in checkpoint
        return checkpoint if is_named else str(Path(absolute_model(checkpoint)).absolute())


class SamSegmenter(ModelStage[SamConfig]):
    """Fills `instances`: for each box SAM's mask with the highest predicted IoU, at the picture's own size.

    A picture is embedded once, whatever the number of its boxes. A sample with the dataset's own mask needs no model.
    """

    name = "segment"
    version = 1
    requires = frozenset({"images", "boxes"})
    provides = frozenset({"instances"})
    # How many boxes go into a call changes what it takes, not what it gives.
    _WHERE: ClassVar[frozenset[str]] = ModelStage._WHERE | {"boxes_per_call"}

    def source(self) -> Checkpoint:
        url, digest = OFFICIAL.get(self.config.checkpoint, (self.config.checkpoint, None))
        return Checkpoint(url, self.config.sha256 or digest, option="segment.checkpoint")

    def check(self) -> None:
        super().check()
        assert self.weights is not None
        architecture(self.weights, load_tensors(self.weights))

    def load(self) -> None:
        weights = self.local()
        package = segment_anything()
        from segment_anything.utils.amg import calculate_stability_score

        tensors = load_tensors(weights)
        model = build(**architecture(weights, tensors))
        model.load_state_dict(tensors)
        self.predictor = package.SamPredictor(model.to(self.device))
        self.stability = calculate_stability_score

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [s.replace(instances=annotated_or(s, self.config, self.segment)) for s in samples]

    def segment(self, image: Image, boxes: Sequence[Box]) -> list[Instance]:
        """The masks of the objects in `boxes`, in their order; without those that are empty.

        Of a box only what is in the picture counts; one that lies outside has no mask.
        """
        import torch

        size = image.height, image.width
        clipped = [(box, _clipped(box, *size)) for box in boxes]
        clipped = [(box, corners) for box, corners in clipped if corners[0] < corners[2] and corners[1] < corners[3]]
        if not clipped:
            return []
        instances = []
        with self.inference():
            self.predictor.set_image(rgb(image))
        # The rest takes little time, and in half precision a box would be off by a pixel or two of the 1024.
        with torch.inference_mode():
            self.predictor.features = self.predictor.features.float()
            corners = torch.tensor([corners for _, corners in clipped], dtype=torch.float, device=self.device)
            prompts = self.predictor.transform.apply_boxes_torch(corners, size)
            step = self.config.boxes_per_call or (32 if self.device == "cuda" else 1)
            parts = (part for start in range(0, len(prompts), step) for part in self._predict(prompts[start:][:step]))
            for (box, _), (mask, quality, stability) in zip(clipped, parts, strict=True):
                if mask.any():
                    instance = Instance(
                        role=image.role,
                        label=box.label,
                        predicted_iou=round(min(1.0, max(0.0, quality)), 4),
                        stability=round(stability, 4),
                        rle=encode_rle(mask),
                    )
                    instances.append(instance)
        self.predictor.reset_image()
        return instances

    def _predict(self, prompts: Any) -> Iterator[tuple[np.ndarray, float, float]]:
        """(H, W) bool mask, predicted IoU and stability of each box of `prompts` (n, 4), in SAM's own pixels."""
        import torch

        sam = self.predictor.model
        # As SamPredictor.predict_torch, but of the three masks of a box only the best is brought to full size.
        sparse, dense = sam.prompt_encoder(points=None, boxes=prompts, masks=None)
        small, quality = sam.mask_decoder(
            image_embeddings=self.predictor.features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        best = quality.argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        for logits, value in zip(small[rows, best], quality[rows, best].tolist(), strict=True):
            full = sam.postprocess_masks(logits[None, None], self.predictor.input_size, self.predictor.original_size)[0]
            stability = self.stability(full, sam.mask_threshold, 1.0)
            # Nothing above the lower threshold: 0 / 0.
            yield (full[0] > sam.mask_threshold).cpu().numpy(), value, float(torch.nan_to_num(stability)[0])


def _clipped(box: Box, height: int, width: int) -> tuple[float, float, float, float]:
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box.y0, box.y1))
    return x0, y0, x1, y1


def build(**architecture: Any) -> Any:
    """An untrained network by the package's own builder, which its vit_b, vit_l and vit_h go through."""
    segment_anything()
    # The package has a function of the module's name.
    from segment_anything.build_sam import _build_sam

    return _build_sam(**architecture)


def load_tensors(weights: Weights) -> dict[str, Any]:
    """The tensors of a checkpoint, mapped rather than read; WeightsError where it is none."""
    import torch

    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        mmap = zipfile.is_zipfile(weights.path)
        tensors = torch.load(weights.path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # The unpickler's errors are of many kinds; each means that this is not a plain file of tensors.
        raise WeightsError(_not_sam(weights, "torch does not load it as plain tensors (weights_only)")) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(_not_sam(weights, "it does not hold tensors by name"))
    return tensors


def architecture(weights: Weights, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What the package's builder needs to know of a checkpoint, read from the shapes of its tensors.

    WeightsError where no network of that builder has these tensors.
    """
    import torch

    blocks = {int(m[1]) for m in (re.match(r"image_encoder\.blocks\.(\d+)\.", name) for name in tensors) if m}
    try:
        relative = [tensors[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in sorted(blocks)]
        _, side, _, width = tensors["image_encoder.pos_embed"].shape
        arguments = {
            "encoder_embed_dim": width,
            "encoder_depth": len(blocks),
            "encoder_num_heads": width // relative[0].shape[1],
            # Blocks with a window of their own see fewer positions than the picture has.
            "encoder_global_attn_indexes": [i for i, table in enumerate(relative) if table.shape[0] == 2 * side - 1],
        }
        with torch.device("meta"):
            expected = build(**arguments).state_dict()
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(_not_sam(weights, f"no {error}" if isinstance(error, KeyError) else str(error))) from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name, tensor in expected.items() if shapes.get(name) != tuple(tensor.shape)]
    wrong += [name for name in shapes if name not in expected]
    if wrong:
        raise WeightsError(_not_sam(weights, f"of its tensors {len(wrong)} are missing or differ, e.g. {wrong[0]}"))
    return arguments


def _not_sam(weights: Weights, reason: str) -> str:
    return f"segment.checkpoint {weights.path} is not a checkpoint of SAM (segment-anything): {reason}"


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
    functional.resize, functional.to_pil_image = _resize, PillowImage.fromarray  # type: ignore[attr-defined]
    boxes.box_area = boxes.batched_nms = _unused  # type: ignore[attr-defined]
    return stubs


def _resize(picture: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """torchvision's resize of a PIL image to (height, width): bilinear, by PIL itself."""
    return picture.resize((size[1], size[0]), PillowImage.Resampling.BILINEAR)


def _unused(*_: Any, **__: Any) -> Any:
    """What only the package's own SamAutomaticMaskGenerator calls."""
    raise NotImplementedError("segment-anything was imported without torchvision: it answers prompts only")
