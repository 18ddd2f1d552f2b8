"""Florence-2: captions (Sect. 3.1) and the boxes of the phrases in a text, by transformers' own classes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from rwkvfusion.infra.weights import HubModel
from rwkvfusion.stages.annotation import AnnotationConfig, annotated_boxes
from rwkvfusion.stages.boxes import best_boxes
from rwkvfusion.stages.models import ModelConfig, ModelStage
from rwkvfusion.stages.pictures import rgb
from rwkvfusion.stages.sample import Box, Caption, Name, Sample

CAPTION_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"


class FlorenceConfig(ModelConfig):
    """Which Florence-2, and how it writes."""

    model: str = Field(default="florence-community/Florence-2-base-ft", description="hub id, or a local folder")
    revision: str | None = "0b03b6f15a4a211370fb204aee4e7dd48887ea37"
    sha256: str | None = "ab06dea66b16d5e54513256d64854be2194443452fd0d84353b40a278bf87d42"
    max_tokens: int = Field(default=256, ge=1, description="longest answer")
    beams: int = Field(default=3, ge=1, description="of the beam search; 1 is greedy")


class FlorenceCaptionConfig(FlorenceConfig):
    """Settings of Florence-2's captions."""

    method: Literal["florence2"] = "florence2"
    prompt: str = Field(default="<MORE_DETAILED_CAPTION>", description=f"one of {', '.join(CAPTION_TASKS)}")
    roles: tuple[Name, ...] | None = Field(default=None, description="modalities that are captioned; None: all")

    @field_validator("prompt")
    @classmethod
    def _task(cls, prompt: str) -> str:
        if prompt not in CAPTION_TASKS:
            near = difflib.get_close_matches(prompt.upper(), CAPTION_TASKS, 1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"Florence-2 was trained on the prompts {', '.join(CAPTION_TASKS)}{hint}")
        return prompt


class FlorenceDetectConfig(FlorenceConfig, AnnotationConfig):
    """Settings of Florence-2 as a detector."""

    method: Literal["florence2_grounding"] = "florence2_grounding"
    prompts: tuple[str, ...] = Field(default=(), description="what is looked for; empty: what the caption names")
    nms_iou: float = Field(default=0.6, gt=0, le=1, description="from here the later of two boxes is dropped")
    max_boxes: int = Field(default=20, ge=1, description="of each modality")


class _Florence:
    """The model with its processor: pictures and prompts in, answers out."""

    def __init__(self, stage: ModelStage[Any]) -> None:
        from transformers import Florence2ForConditionalGeneration, Florence2Processor

        weights = stage.local()
        self.stage, self.config = stage, stage.config
        self.processor = Florence2Processor.from_pretrained(weights.path, local_files_only=True)
        self.model = stage.pretrained(Florence2ForConditionalGeneration, weights)

    def ask(self, pictures: Sequence[np.ndarray], prompts: Sequence[str], task: str) -> list[Any]:
        """The answer to each prompt about its picture (H, W, 3): text, or `bboxes` in pixels with `labels`."""
        inputs = self.processor(text=list(prompts), images=list(pictures), padding=True, return_tensors="pt")
        with self.stage.inference():
            tokens = self.model.generate(
                **inputs.to(self.stage.device),
                max_new_tokens=self.config.max_tokens,
                num_beams=self.config.beams,
                do_sample=False,
            )
        texts = self.processor.batch_decode(tokens, skip_special_tokens=False)
        return [
            self.processor.post_process_generation(
                text.replace("<pad>", ""), task=task, image_size=(picture.shape[1], picture.shape[0])
            )[task]
            for text, picture in zip(texts, pictures, strict=True)
        ]


class FlorenceCaption(ModelStage[FlorenceCaptionConfig]):
    """Fills `captions`, one of each modality that is captioned, and `caption`: their texts, equal ones once."""

    name = "caption"
    version = 1
    requires = frozenset({"images"})
    provides = frozenset({"captions", "caption"})

    def source(self) -> HubModel:
        return _source(self.config, self.name)

    def load(self) -> None:
        self.florence = _Florence(self)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        roles = self.config.roles
        wanted = [(s, image) for s in samples for image in s.images if roles is None or image.role in roles]
        prompts = [self.config.prompt] * len(wanted)
        answers = self.florence.ask([rgb(image) for _, image in wanted], prompts, self.config.prompt) if wanted else []
        said: dict[str, list[Caption]] = {sample.key: [] for sample in samples}
        for (sample, image), answer in zip(wanted, answers, strict=True):
            said[sample.key].append(Caption(role=image.role, text=answer))
        return [_captioned(sample, said[sample.key]) for sample in samples]


def _captioned(sample: Sample, captions: Sequence[Caption]) -> Sample:
    texts = dict.fromkeys(caption.text for caption in captions if caption.text)
    return sample.replace(captions=tuple(captions), caption=" ".join(texts))


class FlorenceDetect(ModelStage[FlorenceDetectConfig]):
    """Fills `boxes` by Florence-2's phrase grounding. It gives no scores, so that all are 1.

    A sample with the dataset's own mask needs no model.
    """

    name = "detect"
    version = 1
    provides = frozenset({"boxes"})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"images"} if self.config.prompts else {"images", "caption"})

    def source(self) -> HubModel:
        return _source(self.config, self.name)

    def load(self) -> None:
        self.florence = _Florence(self)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        boxes = {sample.key: list(annotated_boxes(sample, self.config)) for sample in samples}
        wanted = [
            (sample, image, self._prompt(sample))
            for sample in samples
            for image in sample.images
            if sample.annotation is None and self._prompt(sample)
        ]
        prompts = [GROUNDING + prompt for *_, prompt in wanted]
        answers = self.florence.ask([rgb(image) for _, image, _ in wanted], prompts, GROUNDING) if wanted else []
        for (sample, image, _), answer in zip(wanted, answers, strict=True):
            found = [
                Box(role=image.role, label=label, score=1.0, x0=x0, y0=y0, x1=x1, y1=y1)
                for (x0, y0, x1, y1), label in zip(answer["bboxes"], answer["labels"], strict=True)
            ]
            boxes[sample.key] += best_boxes(found, image, self.config.nms_iou, self.config.max_boxes)
        return [sample.replace(boxes=tuple(boxes[sample.key])) for sample in samples]

    def _prompt(self, sample: Sample) -> str:
        prompts = self.config.prompts
        return ". ".join(prompts) + "." if prompts else (sample.caption or "")


def _source(config: FlorenceConfig, stage: str) -> HubModel:
    return HubModel(
        config.model, config.revision, config.sha256, types=frozenset({"florence2"}), option=f"{stage}.model"
    )
