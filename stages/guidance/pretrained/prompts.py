"""Detectors that are told in words what to look for: their settings, the texts they are asked, the labels of what they
answer, and which of their boxes stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import cv2
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated_boxes
from rwkvfusion.stages.guidance.pretrained.base import ModelStage

_SENTENCE = re.compile(r"[^.!?]+")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SMALL = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "its", "their", "his", "her", "some", "several", "of", "in",
     "on", "at", "to", "from", "by", "with", "and", "or", "is", "are")
)  # fmt: skip


class PromptedConfig(AnnotationConfig):
    """Settings of a detector that is told what to look for."""

    prompts: tuple[str, ...] = Field(default=(), description="what is looked for; empty: what the caption names")
    ignore: tuple[str, ...] = Field(
        default=("image", "picture", "photo", "photograph", "background", "foreground", "scene", "view", "mood",
                 "atmosphere", "left", "right", "top", "bottom", "side", "center", "middle"),
        description="without prompts: words that name no object; boxes labelled by such words alone are dropped",
    )  # fmt: skip
    nms_iou: float = Field(default=0.6, gt=0, le=1, description="from here the weaker of two boxes is dropped")
    max_boxes: int = Field(default=20, ge=1, description="of each modality")


P = TypeVar("P", bound=PromptedConfig)


class PromptedDetector(ModelStage[P]):
    """A detector that is told what to look for. Fills `boxes`; a sample with the dataset's own mask needs no model."""

    name = "detect"
    provides = frozenset({"boxes"})

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"images"} if self.config.prompts else {"images", "caption"})

    def best(self, sample: Sample, candidates: Mapping[str, Sequence[Box]]) -> tuple[Box, ...]:
        """The sample's boxes, out of all candidates of each modality, by role."""
        if sample.annotation is not None:
            return annotated_boxes(sample, self.config)
        return tuple(box for i in sample.images for box in best_boxes(candidates.get(i.role, ()), i, self.config))


def best_boxes(boxes: Sequence[Box], image: Image, config: PromptedConfig) -> list[Box]:
    """The best `max_boxes` of one modality, clipped to its picture, without those of less than a pixel.

    Of two boxes with an IoU above `nms_iou` the better stays, whatever their labels: one object found as car and as
    truck is one. Values are rounded, so that the size of a batch does not show in them.
    """
    clipped = [_clip(box, image) for box in boxes]
    inside = [box for box in clipped if box.x1 - box.x0 >= 1 and box.y1 - box.y0 >= 1]
    inside.sort(key=lambda box: (-box.score, box.x0, box.y0, box.x1, box.y1, box.label))
    corners = [(box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0) for box in inside]
    # The order stands for the score: equal scores are kept in it.
    ranks = [float(len(inside) - place) for place in range(len(inside))]
    places = sorted(int(place) for place in cv2.dnn.NMSBoxes(corners, ranks, 0.0, config.nms_iou)) if inside else []
    return [inside[place] for place in places[: config.max_boxes]]


def _clip(box: Box, image: Image) -> Box:
    x0, x1 = (round(min(max(x, 0.0), float(image.width)), 2) for x in (box.x0, box.x1))
    y0, y1 = (round(min(max(y, 0.0), float(image.height)), 2) for y in (box.y0, box.y1))
    return Box(role=box.role, label=box.label, score=round(box.score, 4), x0=x0, y0=y0, x1=x1, y1=y1)


def sentences(text: str) -> list[str]:
    """The sentences of `text` without their marks, each once, in order."""
    parts = (" ".join(part.split()).strip(" ,;:") for part in _SENTENCE.findall(text))
    return list(dict.fromkeys(part for part in parts if _WORD.search(part)))


def joined(parts: Sequence[str]) -> str:
    """Phrases or sentences as one text, each ended by a full stop."""
    return ". ".join(parts) + "." if parts else ""


def packed(parts: Sequence[str], fits: Callable[[str], bool]) -> list[list[str]]:
    """`parts` in as few groups as their order allows, so that the text of each group `fits`.

    A part that does not fit alone loses its last words.
    """
    groups: list[list[str]] = []
    for part in parts:
        if groups and fits(joined([*groups[-1], part])):
            groups[-1].append(part)
        elif shorter := _shortened(part, fits):
            groups.append([shorter])
    return groups


def _shortened(part: str, fits: Callable[[str], bool]) -> str:
    words = part.split()
    while words and not fits(joined([" ".join(words)])):
        words.pop()
    return " ".join(words)


def object_name(phrase: str, ignore: Sequence[str]) -> str | None:
    """A phrase as a label: lower case, without articles and other small words around it.

    So that `A man` in one modality and `the man` in another are one label. None where nothing is left, or only words
    to `ignore`.
    """
    words = _WORD.findall(phrase.lower())
    while words and words[0] in _SMALL:
        words.pop(0)
    while words and words[-1] in _SMALL:
        words.pop()
    return None if all(word in ignore for word in words) else " ".join(words)


def prompt_of(phrase: str, prompts: Sequence[str]) -> str | None:
    """The prompt, as the user wrote it, that a detector's `phrase` is, is a part of, or contains; None if none is.

    Of several an equal one, then the one with most words in common, then the first.
    """
    answer = _WORD.findall(phrase.lower())

    def likeness(prompt: str) -> tuple[bool, int]:
        words = _WORD.findall(prompt.lower())
        return answer == words, len(set(answer) & set(words) - _SMALL)

    def is_candidate(prompt: str) -> bool:
        words = _WORD.findall(prompt.lower())
        within = bool(answer and words) and (" ".join(answer) in " ".join(words) or " ".join(words) in " ".join(answer))
        return within or likeness(prompt)[1] > 0

    return max(filter(is_candidate, prompts), key=likeness, default=None)
