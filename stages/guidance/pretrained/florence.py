"""Florence-2: captions (Sect. 3.1) and the boxes of the phrases in a text, by transformers' own classes."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from rwkvfusion.stages.dataset.sample import Box, Caption, Image, Name, Sample
from rwkvfusion.stages.guidance.display import rgb
from rwkvfusion.stages.guidance.pretrained.base import ModelConfig, ModelStage, quiet
from rwkvfusion.stages.guidance.pretrained.prompts import (
    PromptedConfig,
    PromptedDetector,
    joined,
    object_name,
    packed,
    prompt_of,
    sentences,
)

CAPTION_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"
MODEL_TYPES = frozenset({"florence2"})


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
    roles: tuple[Name, ...] | None = Field(default=None, description="modalities that are captioned; null: all")

    @field_validator("prompt")
    @classmethod
    def _task(cls, prompt: str) -> str:
        if prompt not in CAPTION_TASKS:
            near = difflib.get_close_matches(prompt.upper(), CAPTION_TASKS, 1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"Florence-2 was trained on the prompts {', '.join(CAPTION_TASKS)}{hint}")
        return prompt


class FlorenceDetectConfig(FlorenceConfig, PromptedConfig):
    """Settings of Florence-2 as a detector."""

    method: Literal["florence2_grounding"] = "florence2_grounding"


class _Florence:
    """The model with its processor: pictures and prompts in, answers out."""

    def __init__(self, stage: ModelStage[Any]) -> None:
        weights = stage.local()
        self.stage, self.config = stage, stage.config
        with quiet():
            from transformers import CLIPImageProcessorPil, Florence2ForConditionalGeneration, Florence2Processor

            self.processor = stage.pretrained_processor(Florence2Processor, CLIPImageProcessorPil, weights)
            self.model = stage.pretrained(Florence2ForConditionalGeneration, weights)
        self.positions = int(self.model.config.text_config.max_position_embeddings)

    def ask(self, pictures: Sequence[np.ndarray], prompts: Sequence[str], task: str) -> list[Any]:
        """The answer to each prompt about its picture (H, W, 3): text, or `bboxes` in pixels with `labels`."""
        inputs = self.processor(text=list(prompts), images=list(pictures), padding=True, return_tensors="pt")
        with self.stage.inference():
            tokens = self.model.generate(
                **inputs.to(self.stage.device),
                max_new_tokens=min(self.config.max_tokens, self.positions - 1),
                num_beams=self.config.beams,
                do_sample=False,
            )
        texts = self.processor.batch_decode(tokens, skip_special_tokens=False)
        return [
            # Answers are padded to the longest of the batch, and the processor takes padding for a part of captions.
            self.processor.post_process_generation(
                text.replace("<pad>", ""), task=task, image_size=(picture.shape[1], picture.shape[0])
            )[task]
            for text, picture in zip(texts, pictures, strict=True)
        ]

    def texts(self, parts: Sequence[str]) -> list[str]:
        """`parts` as texts to be grounded, none longer than the model can read beside a picture."""
        tokenizer = self.processor.tokenizer
        around = len(tokenizer(self.processor.task_prompts_with_input[GROUNDING])["input_ids"])
        room = self.positions - self.processor.num_image_tokens - around
        return [joined(group) for group in packed(parts, lambda text: len(tokenizer(text)["input_ids"]) <= room)]


class FlorenceCaption(ModelStage[FlorenceCaptionConfig]):
    """Fills `captions`, one of each modality that is captioned, and `caption`: their texts, equal ones once."""

    name = "caption"
    version = 1
    requires = frozenset({"images"})
    provides = frozenset({"captions", "caption"})
    model_types = MODEL_TYPES

    def load(self) -> None:
        self.florence = _Florence(self)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        asked = [
            (sample.key, image) for sample in samples if sample.own_caption is None for image in self._captioned(sample)
        ]
        prompts = [self.config.prompt] * len(asked)
        answers = self.florence.ask([rgb(image) for _, image in asked], prompts, self.config.prompt) if asked else []
        captions: defaultdict[str, list[Caption]] = defaultdict(list)
        for (key, image), answer in zip(asked, answers, strict=True):
            captions[key].append(Caption(role=image.role, text=answer))
        return [self._with(sample, captions[sample.key]) if sample.key in captions else sample for sample in samples]

    def _with(self, sample: Sample, captions: Sequence[Caption]) -> Sample:
        joined = " ".join(dict.fromkeys(caption.text for caption in captions if caption.text))
        return sample.replace(captions=tuple(captions), caption=joined)

    def _captioned(self, sample: Sample) -> list[Image]:
        roles = self.config.roles
        images = [image for image in sample.images if roles is None or image.role in roles]
        if not images:
            raise ValueError(
                f"none of the modalities {', '.join(sample.roles)} is in caption.roles: set it to one of them"
            )
        return images


class FlorenceDetect(PromptedDetector[FlorenceDetectConfig]):
    """Detects by Florence-2's phrase grounding. It gives no scores, so that all are 1."""

    version = 1
    model_types = MODEL_TYPES

    def load(self) -> None:
        self.florence = _Florence(self)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        pictures: list[np.ndarray] = []
        asked: list[tuple[str, str, str]] = []
        for sample in samples:
            texts = self._texts(sample)
            for image in sample.images if texts else ():
                pictures += [rgb(image)] * len(texts)
                asked += [(sample.key, image.role, GROUNDING + text) for text in texts]
        answers = self.florence.ask(pictures, [prompt for *_, prompt in asked], GROUNDING) if asked else []
        boxes: dict[str, defaultdict[str, list[Box]]] = {sample.key: defaultdict(list) for sample in samples}
        for (key, role, _), answer in zip(asked, answers, strict=True):
            boxes[key][role] += self._boxes(role, answer)
        return [sample.replace(boxes=self.best(sample, boxes[sample.key])) for sample in samples]

    def _texts(self, sample: Sample) -> list[str]:
        if sample.annotation is not None:
            return []
        return self.florence.texts(self.config.prompts or sentences(sample.caption or ""))

    def _boxes(self, role: str, answer: dict[str, Any]) -> list[Box]:
        boxes = []
        for (x0, y0, x1, y1), phrase in zip(answer["bboxes"], answer["labels"], strict=True):
            label = prompt_of(phrase, self.config.prompts) or object_name(phrase, self.config.ignore)
            if label is not None:
                boxes.append(Box(role=role, label=label, score=1.0, x0=x0, y0=y0, x1=x1, y1=y1))
        return boxes
