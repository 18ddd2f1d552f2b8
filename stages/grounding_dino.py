"""Open-set detection by Grounding DINO, with fixed prompts or with what the caption names (Sect. 3.1, 4.1.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rwkvfusion.infra.weights import HubModel
from rwkvfusion.stages.annotation import AnnotationConfig, annotated_boxes
from rwkvfusion.stages.boxes import best_boxes
from rwkvfusion.stages.models import ModelConfig, ModelStage
from rwkvfusion.stages.pictures import rgb
from rwkvfusion.stages.sample import Box, Image, Sample

_SENTENCE = re.compile(r"[^.!?]+")


class GroundingDinoConfig(ModelConfig, AnnotationConfig):
    """Settings of Grounding DINO."""

    method: Literal["grounding_dino"] = "grounding_dino"
    model: str = Field(default="IDEA-Research/grounding-dino-base", description="hub id, or a local folder")
    revision: str | None = "12bdfa3120f3e7ec7b434d90674b3396eccf88eb"
    sha256: str | None = "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"
    prompts: tuple[str, ...] = Field(default=(), description="what is looked for; empty: what the caption names")
    box_threshold: float = Field(default=0.3, ge=0, le=1, description="least score of a box")
    text_threshold: float = Field(default=0.25, ge=0, le=1, description="least score of a word in a box's label")
    nms_iou: float = Field(default=0.6, gt=0, le=1, description="from here the weaker of two boxes is dropped")
    max_boxes: int = Field(default=20, ge=1, description="of each modality")
    ignore: tuple[str, ...] = Field(
        default=("image", "picture", "photo", "photograph", "background", "scene", "view", "mood", "atmosphere"),
        description="with prompts from captions: words that name no object; boxes labelled by them alone are dropped",
    )


class GroundingDino(ModelStage[GroundingDinoConfig]):
    """Fills `boxes`. A sample with the dataset's own mask needs no model."""

    name = "detect"
    version = 1
    provides = frozenset({"boxes"})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"images"} if self.config.prompts else {"images", "caption"})

    def source(self) -> HubModel:
        config = self.config
        return HubModel(
            config.model, config.revision, config.sha256, types=frozenset({"grounding-dino"}), option="detect.model"
        )

    def load(self) -> None:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        weights = self.local()
        self.processor = GroundingDinoProcessor.from_pretrained(weights.path, local_files_only=True)
        self.model = self.pretrained(GroundingDinoForObjectDetection, weights)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        boxes = {sample.key: list(annotated_boxes(sample, self.config)) for sample in samples}
        wanted = [
            (sample, image, prompt)
            for sample in samples
            if sample.annotation is None and (prompt := self.prompt(sample.caption or ""))
            for image in sample.images
        ]
        # Pictures or prompts of other sizes would be padded, and padding shows in the last digits.
        wanted.sort(key=lambda one: (one[1].height, one[1].width, one[2]))
        for (*_, prompt), group in groupby(wanted, key=lambda one: (one[1].height, one[1].width, one[2])):
            members = list(group)
            found = self.detect([image for _, image, _ in members], prompt)
            for (sample, _, _), some in zip(members, found, strict=True):
                boxes[sample.key] += some
        order = {sample.key: {role: place for place, role in enumerate(sample.roles)} for sample in samples}
        return [s.replace(boxes=tuple(sorted(boxes[s.key], key=lambda b: order[s.key][b.role]))) for s in samples]

    def detect(self, images: Sequence[Image], prompt: str) -> list[list[Box]]:
        """Boxes of each of the `images`, which are of one size, best first."""
        inputs = self.processor(
            images=[rgb(image) for image in images], text=[prompt] * len(images), return_tensors="pt"
        ).to(self.device)
        with self.inference():
            outputs = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.config.box_threshold,
            text_threshold=self.config.text_threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [
            best_boxes(list(self._boxes(image, result)), image, self.config.nms_iou, self.config.max_boxes)
            for image, result in zip(images, results, strict=True)
        ]

    def _boxes(self, image: Image, result: dict[str, Any]) -> Iterable[Box]:
        corners = result["boxes"].float().cpu().numpy().astype(np.float64)
        for (x0, y0, x1, y1), score, phrase in zip(
            corners.tolist(), result["scores"].tolist(), result["text_labels"], strict=True
        ):
            label = self._label(phrase)
            if label is not None:
                yield Box(role=image.role, label=label, score=score, x0=x0, y0=y0, x1=x1, y1=y1)

    def _label(self, phrase: str) -> str | None:
        """A box's label: of fixed prompts the one the phrase is of, else the phrase; None where it names no object."""
        words = phrase.lower().split()
        if self.config.prompts:
            shared = {prompt: len(set(words) & set(prompt.lower().split())) for prompt in self.config.prompts}
            best = max(shared, key=lambda prompt: shared[prompt])
            return best if shared[best] else phrase or None
        return None if all(word in self.config.ignore or len(word) < 3 for word in words) else phrase

    def prompt(self, caption: str) -> str:
        """What the model is asked: phrases or sentences in lower case, each once, each ended by a full stop.

        Sentences beyond the model's longest text are left out.
        """
        parts = self.config.prompts or _SENTENCE.findall(caption)
        asked: list[str] = []
        for part in dict.fromkeys(" ".join(part.lower().split()).strip(" .,;:") for part in parts):
            longer = [*asked, part] if part else asked
            if len(self.processor.tokenizer(_joined(longer))["input_ids"]) > self.model.config.max_text_len:
                break
            asked = longer
        return _joined(asked)


def _joined(parts: Sequence[str]) -> str:
    return ". ".join(parts) + "." if parts else ""
