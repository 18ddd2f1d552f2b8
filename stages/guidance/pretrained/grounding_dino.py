"""Open-set detection by Grounding DINO, with fixed prompts or with what the caption names (Sect. 3.1, 4.1.2)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.display import rgb
from rwkvfusion.stages.guidance.pretrained.base import ModelConfig, quiet
from rwkvfusion.stages.guidance.pretrained.prompts import (
    PromptedConfig,
    PromptedDetector,
    joined,
    object_name,
    packed,
    sentences,
)

_MARKS = re.compile(r"[\s.!?]+")


class GroundingDinoConfig(ModelConfig, PromptedConfig):
    """Settings of Grounding DINO."""

    method: Literal["grounding_dino"] = "grounding_dino"
    model: str = Field(default="IDEA-Research/grounding-dino-base", description="hub id, or a local folder")
    revision: str | None = "12bdfa3120f3e7ec7b434d90674b3396eccf88eb"
    sha256: str | None = "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21"
    box_threshold: float = Field(default=0.3, ge=0, le=1, description="least score of a box")
    text_threshold: float = Field(default=0.25, ge=0, le=1, description="least score of a word in a box's label")


@dataclass(frozen=True, eq=False)
class Question:
    """A text to look for. `labels`: of each phrase in it, None where its words are the label; `phrases`: of each token
    the place of its phrase, -1 for full stops and the tokens around the text; `words`: of each token its word."""

    text: str
    labels: Sequence[str | None]
    phrases: np.ndarray
    words: Sequence[tuple[int, int]]

    def label(self, scores: np.ndarray, threshold: float, ignore: Sequence[str]) -> str | None:
        """The label of a box whose tokens have these `scores`; None where no word has one above `threshold`."""
        of_words = np.where(self.phrases >= 0, scores[: len(self.phrases)], 0)
        phrase = int(self.phrases[of_words.argmax()])
        tokens = np.flatnonzero((of_words > threshold) & (self.phrases == phrase)).tolist()
        if not tokens or self.labels[phrase] is not None:
            return self.labels[phrase] if tokens else None
        words = dict.fromkeys(self.words[token] for token in tokens)
        return object_name(" ".join(self.text[start:end] for start, end in words), ignore)


class GroundingDino(PromptedDetector[GroundingDinoConfig]):
    """Detects by Grounding DINO.

    A box's score is that of its best token. Its label is the prompt with its best word or, in a caption, the words
    above `text_threshold` in the sentence with its best word.
    """

    version = 1
    model_types = frozenset({"grounding-dino"})

    def load(self) -> None:
        weights = self.local()
        with quiet():
            from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor
            from transformers import GroundingDinoImageProcessorPil as Images

            self.processor = self.pretrained_processor(GroundingDinoProcessor, Images, weights)
            self.model = self.pretrained(GroundingDinoForObjectDetection, weights)

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        asked = [
            (place, image, question)
            for place, sample in enumerate(samples)
            if sample.annotation is None
            for question in self.questions(sample.caption or "")
            for image in sample.images
        ]
        images = {(place, image.role): image for place, image, _ in asked}
        pictures = {key: rgb(image) for key, image in images.items()}
        boxes: list[defaultdict[str, list[Box]]] = [defaultdict(list) for _ in samples]
        # Pictures or texts of other sizes would be padded, and padding shows in the last digits.
        for _, group in groupby(sorted(asked, key=_alike), key=_alike):
            members = list(group)
            arrays = [pictures[place, image.role] for place, image, _ in members]
            answers = self.detect([image for _, image, _ in members], arrays, members[0][2])
            for (place, image, _), answer in zip(members, answers, strict=True):
                boxes[place][image.role] += answer
        return [sample.replace(boxes=self.best(sample, own)) for sample, own in zip(samples, boxes, strict=True)]

    def detect(self, images: Sequence[Image], pictures: Sequence[np.ndarray], question: Question) -> list[list[Box]]:
        """All boxes above the thresholds in each of the `images`, which are of one size and decoded as `pictures`."""
        texts = [question.text] * len(images)
        inputs = self.processor(images=list(pictures), text=texts, return_tensors="pt").to(self.device)
        with self.inference():
            outputs = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.config.box_threshold,
            text_threshold=self.config.text_threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )
        tokens = outputs.logits.sigmoid()
        # The processor's labels mix words of all phrases with full stops; so only its boxes and scores are taken.
        return [
            list(self._boxes(image, question, result, scores[scores.amax(dim=-1) > self.config.box_threshold]))
            for image, result, scores in zip(images, results, tokens, strict=True)
        ]

    def _boxes(self, image: Image, question: Question, result: Any, tokens: Any) -> Iterator[Box]:
        rows = zip(result["boxes"].tolist(), result["scores"].tolist(), tokens.float().cpu().numpy(), strict=True)
        for (x0, y0, x1, y1), score, scores in rows:
            label = question.label(scores, self.config.text_threshold, self.config.ignore)
            if label is not None:
                yield Box(role=image.role, label=label, score=score, x0=x0, y0=y0, x1=x1, y1=y1)

    def questions(self, caption: str) -> list[Question]:
        """What the model is asked: prompts or sentences in lower case, each once, each ended by a full stop.

        More than its longest text holds is asked in several texts.
        """
        prompts: dict[str, str] = {}
        for prompt in self.config.prompts:
            prompts.setdefault(" ".join(_MARKS.split(prompt)).strip().lower(), prompt)
        parts = prompts or dict.fromkeys(part.lower() for part in sentences(caption))
        groups = packed(list(parts), self._fits)
        return [self._question(group, [prompts.get(part) for part in group]) for group in groups]

    def _fits(self, text: str) -> bool:
        return len(self.processor.tokenizer(text)["input_ids"]) <= int(self.model.config.max_text_len)

    def _question(self, parts: Sequence[str], labels: Sequence[str | None]) -> Question:
        text = joined(parts)
        tokens = self.processor.tokenizer(text)
        phrases, words, phrase = [], [], 0
        for token in range(len(tokens["input_ids"])):
            word = tokens.token_to_word(token)
            start, end = (0, 0) if word is None else tokens.word_to_chars(word)
            asked = text[start:end] not in ("", ".")
            phrases.append(phrase if asked else -1)
            words.append((start, end))
            phrase += text[start:end] == "."
        return Question(text, labels, np.array(phrases), words)


def _alike(one: tuple[int, Image, Question]) -> tuple[int, int, str]:
    return one[1].height, one[1].width, one[2].text
