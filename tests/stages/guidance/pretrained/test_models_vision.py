"""Florence-2 and Grounding DINO as stages: what the libraries give for one picture, whatever it is batched with."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import scene
from PIL import Image as PilImage
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.weights import WeightsError
from rwkvfusion.stages.dataset.sample import Box, Caption, Image, Sample, from_table, to_table
from rwkvfusion.stages.guidance.builtin.detect import AnnotatedBoxes, AnnotatedBoxesConfig
from rwkvfusion.stages.guidance.builtin.segment import AnnotatedMasks, AnnotatedMasksConfig
from rwkvfusion.stages.guidance.pretrained.florence import (
    FlorenceCaption,
    FlorenceCaptionConfig,
    FlorenceDetect,
    FlorenceDetectConfig,
)
from rwkvfusion.stages.guidance.pretrained.grounding_dino import GroundingDino, GroundingDinoConfig, Question
from rwkvfusion.stages.guidance.pretrained.prompts import joined, object_name, packed, prompt_of, sentences
from rwkvfusion.stages.guidance.rle import decode_rle
from rwkvfusion.stages.guidance.stage import Stage, run
from rwkvfusion.stages.source.files import open_picture

PROMPTS = ("People", "Forklift", "red  Car", "Street lamp")
TEXT = "people. forklift. red car. street lamp."
MODELS: dict[str, Path] = {}
S = TypeVar("S", bound=Stage[Any])


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("models")
    MODELS["caption"] = tiny.florence(root / "caption")
    MODELS["ground"] = tiny.florence(root / "ground", grounds=True)
    MODELS["dino"] = tiny.grounding_dino(root / "dino")


def picture(array: np.ndarray, role: str) -> Image:
    return open_picture(role, f"{role}.png", encode_png(array)).image


def pair(number: int, height: int, width: int, deep: bool = False, **more: Any) -> Sample:
    first, second = scene(number, height, width), 255 - scene(number + 100, height, width, channels=1)
    if deep:
        first, second = first.astype(np.uint16) * 37 + 5, second.astype(np.uint16) * 11
    images = (picture(first, "visible"), picture(second, "infrared"))
    return Sample(key=f"s{number}", dataset="d", split="train", task="vif", images=images, **more)


def pairs() -> list[Sample]:
    """Colour, grey and 16 bit, of four sizes, two of them equal; a failed one among them."""
    captions = ["A red car on the road. Two people near a lamp!", "a dog in the street", "A white bus; a tree.", ""]
    sizes = [(96, 128, False), (150, 90, True), (96, 128, False), (40, 64, True)]
    # As the caption stage leaves them: one that a dataset has itself would not be made anew.
    made = [
        pair(i, *size, caption=text, captions=(Caption(role="visible", text=text),))
        for i, (size, text) in enumerate(zip(sizes, captions, strict=True))
    ]
    return [*made[:2], pair(7, 64, 64).failed("source", "unreadable", "no"), *made[2:]]


def good(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.error is None]


def as_library_sees(image: Image) -> PilImage.Image:
    array = decode(image.data)
    if array.dtype != np.uint8:
        low, high = np.percentile(array, (0.5, 99.5))
        array = np.clip((array - low) * 255.0 / (high - low), 0, 255).astype(np.uint8)
    return PilImage.fromarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def loaded(stage: S) -> S:
    stage.load()
    return stage


def captioner(**more: Any) -> FlorenceCaption:
    return FlorenceCaption(FlorenceCaptionConfig(model=str(MODELS["caption"]), **more))


def grounder(**more: Any) -> FlorenceDetect:
    return FlorenceDetect(FlorenceDetectConfig(model=str(MODELS["ground"]), **more))


def dino(**more: Any) -> GroundingDino:
    return GroundingDino(GroundingDinoConfig(model=str(MODELS["dino"]), **more))


@cache
def by_the_library(kind: str, folder: Path) -> tuple[Any, Any]:
    """The processor and the model of a folder as the library's manual says."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32)
    return transformers.AutoProcessor.from_pretrained(folder), model.eval()


def florence_says(folder: Path, prompt: str, image: Image, beams: int, length: int = 90) -> tuple[Any, list[int]]:
    """The processor, and the tokens of the answer, by the library alone."""
    processor, model = by_the_library("Florence2ForConditionalGeneration", folder)
    inputs = processor(text=prompt, images=as_library_sees(image), return_tensors="pt")
    with torch.no_grad():
        (tokens,) = model.generate(**inputs, max_new_tokens=length, num_beams=beams, do_sample=False)
    return processor, tokens.tolist()


def dino_finds(text: str, image: Image) -> list[tuple[tuple[float, ...], float, str]]:
    """Boxes, scores and phrases by the library alone, best first, without those that have no word."""
    processor, model = by_the_library("AutoModelForZeroShotObjectDetection", MODELS["dino"])
    inputs = processor(images=as_library_sees(image), text=text, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    (result,) = processor.post_process_grounded_object_detection(
        outputs, inputs.input_ids, threshold=0.3, text_threshold=0.25, target_sizes=[(image.height, image.width)]
    )
    corners = result["boxes"].clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2)).tolist()
    rows = zip(map(tuple, corners), result["scores"].tolist(), result["text_labels"], strict=True)
    kept = [
        (box, score, phrase)
        for box, score, phrase in rows
        if phrase.replace("[SEP]", "").strip(" .") and min(box[2] - box[0], box[3] - box[1]) >= 1
    ]
    return sorted(kept, key=lambda one: (-round(one[1], 4), *(round(value, 2) for value in one[0])))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def suppressed(
    rows: list[tuple[tuple[float, ...], float, str]], iou: float
) -> list[tuple[tuple[float, ...], float, str]]:
    kept: list[tuple[tuple[float, ...], float, str]] = []
    for row in rows:
        if all(overlap(row[0], other[0]) <= iou for other in kept):
            kept.append(row)
    return kept


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x0, box.y0, box.x1, box.y1


@pytest.mark.parametrize(("beams", "task"), [(3, "<MORE_DETAILED_CAPTION>"), (1, "<DETAILED_CAPTION>")])
def test_captions_are_the_librarys(beams: int, task: str) -> None:
    found = good(run(loaded(captioner(beams=beams, prompt=task)), pairs()))
    for sample in found:
        for image, caption in zip(sample.images, sample.captions, strict=True):
            processor, tokens = florence_says(MODELS["caption"], task, image, beams)
            assert caption.role == image.role
            assert caption.text == processor.decode(tokens, skip_special_tokens=True).strip()
        assert sample.caption == " ".join(dict.fromkeys(caption.text for caption in sample.captions))
    assert len({caption.text for sample in found for caption in sample.captions}) > 3
    assert len({len(caption.text.split()) for sample in found for caption in sample.captions}) > 1


def test_answers_end_where_they_are_told_to() -> None:
    (image, _) = pairs()[0].images
    (short,) = run(loaded(captioner(max_tokens=7)), pairs()[:1])
    processor, tokens = florence_says(MODELS["caption"], "<MORE_DETAILED_CAPTION>", image, 3, length=7)
    assert short.captions[0].text == processor.decode(tokens, skip_special_tokens=True).strip()


def test_equal_captions_count_once_and_only_the_wanted_modalities_are_captioned() -> None:
    one = pair(1, 64, 64)
    twice = one.replace(images=(one.images[0], one.images[0].model_copy(update={"role": "infrared"})))
    (found,) = run(loaded(captioner()), [twice])
    assert found.caption == found.captions[0].text == found.captions[1].text
    stage = loaded(captioner(roles=("infrared", "mri")))
    near, far = (
        image.model_copy(update={"role": role}) for image, role in zip(one.images, ("near", "far"), strict=True)
    )
    found, lacking = run(stage, [one, one.replace(images=(near, far))])
    assert [caption.role for caption in found.captions] == ["infrared"]
    assert lacking.error is not None
    assert "near, far" in lacking.error.message


def test_grounded_boxes_are_the_librarys() -> None:
    everything, best = grounder(prompts=PROMPTS, nms_iou=1.0, max_boxes=99, beams=2), grounder(prompts=PROMPTS, beams=2)
    seen = 0
    for all_, few in zip(good(run(loaded(everything), pairs())), good(run(loaded(best), pairs())), strict=True):
        for image in all_.images:
            task = "<CAPTION_TO_PHRASE_GROUNDING>"
            processor, tokens = florence_says(MODELS["ground"], f"{task}{joined(PROMPTS)}", image, beams=2)
            answer = processor.post_process_generation(
                processor.decode(tokens), task=task, image_size=(image.width, image.height)
            )[task]
            rows = zip(map(tuple, answer["bboxes"]), answer["labels"], strict=True)
            expected = {box for box, phrase in rows if prompt_of(phrase, PROMPTS) or object_name(phrase, ())}
            boxes = [box for box in all_.boxes or () if box.role == image.role]
            assert {corners(box) for box in boxes} == expected
            assert {box.score for box in boxes} <= {1.0}
            seen += len(boxes)
        assert set(few.boxes or ()) <= set(all_.boxes or ())
        for role in few.roles:
            kept = [corners(box) for box in few.boxes or () if box.role == role]
            assert all(overlap(a, b) <= 0.6 for i, a in enumerate(kept) for b in kept[:i])
    assert seen > 8


@pytest.mark.parametrize("iou", [1.0, 0.3])
def test_detections_are_the_librarys(iou: float) -> None:
    found = good(run(loaded(dino(prompts=PROMPTS, nms_iou=iou, max_boxes=99)), pairs()))
    labels = set()
    for sample in found:
        for image in sample.images:
            boxes = [box for box in sample.boxes or () if box.role == image.role]
            expected = suppressed(dino_finds(TEXT, image), iou)
            assert len(boxes) == len(expected) > 3
            for box, (where, score, phrase) in zip(boxes, expected, strict=True):
                assert box.score == pytest.approx(score, abs=1e-4)
                assert corners(box) == pytest.approx(where, abs=0.02)
                assert box.label in PROMPTS
                # The library shows parts of words, the label is the whole.
                assert any(word in box.label.lower() for word in re.findall(r"\w+", phrase))
                labels.add(box.label)
    assert len(labels) > 1


def test_only_the_best_boxes_are_kept() -> None:
    everything, best = ([loaded(dino(prompts=PROMPTS, max_boxes=n)).process([pairs()[0]])[0]] for n in (99, 4))
    for role in best[0].roles:
        boxes = [[box for box in one.boxes or () if box.role == role] for one in (everything[0], best[0])]
        assert boxes[1] == boxes[0][:4]
        assert [box.score for box in boxes[0]] == sorted((box.score for box in boxes[0]), reverse=True)


def test_without_prompts_the_caption_is_asked() -> None:
    found = run(loaded(dino(nms_iou=1.0, max_boxes=99, ignore=("road",))), pairs())
    image = found[0].images[0]
    boxes = [box for box in found[0].boxes or () if box.role == image.role]
    expected = dino_finds("a red car on the road. two people near a lamp.", image)
    # Phrases of small or ignored words alone name nothing.
    assert {box.score for box in boxes} <= {round(score, 4) for _, score, _ in expected}
    assert len(boxes) > 3
    for box in boxes:
        words = box.label.split()
        assert set(words) <= {"red", "car", "on", "the", "road"} or set(words) <= {"two", "people", "near", "a", "lamp"}
        assert words != ["road"]
        assert words[0] not in ("a", "the", "on")
    assert found[-1].caption == ""
    assert found[-1].boxes == ()


def test_what_is_longer_than_the_model_reads_is_asked_in_parts() -> None:
    stage = loaded(dino(nms_iou=1.0, max_boxes=999))
    words = [word for word in tiny.WORDS if len(word) > 2]
    said = [f"{a} {b} {c}" for a in words[:9] for b in words[9:15] for c in words[15:17]]
    questions = stage.questions(". ".join(said))
    assert len(questions) > 1
    assert [part for question in questions for part in question.text.strip(".").split(". ")] == said
    assert all(len(stage.processor.tokenizer(question.text)["input_ids"]) <= 256 for question in questions)
    sample = pair(0, 64, 96, caption=". ".join(said))
    (found,) = run(stage, [sample])
    scores = [round(s, 4) for question in questions for _, s, _ in dino_finds(question.text, sample.images[0])]
    boxes = [box for box in found.boxes or () if box.role == "visible"]
    assert 0 < len(boxes) <= len(scores)
    assert all(min(abs(box.score - score) for score in scores) < 2e-4 for box in boxes)
    (endless,) = stage.questions(" ".join(["house"] * 400))
    assert endless.text == " ".join(["house"] * 253) + "."
    prompted = loaded(dino(prompts=tuple(said)))
    assert [label for question in prompted.questions("") for label in question.labels] == said
    (grounded,) = run(loaded(grounder()), [sample])
    assert grounded.error is None


@pytest.mark.parametrize(
    "make",
    [captioner, grounder, lambda **k: grounder(prompts=PROMPTS, **k), dino, lambda **k: dino(prompts=PROMPTS, **k)],
    ids=["caption", "ground", "ground-prompts", "dino", "dino-prompts"],
)
def test_a_batch_gives_what_one_at_a_time_gives_in_order(make: Any) -> None:
    samples = pairs()
    together = run(loaded(make(resources={"batch_size": 8})), samples)
    alone = loaded(make(resources={"batch_size": 1}))
    assert together == run(alone, list(reversed(samples)))[::-1]
    assert together[2] is samples[2]
    assert [sample.key for sample in together] == [sample.key for sample in samples]
    assert all(sample.error is None for i, sample in enumerate(together) if i != 2)
    # What went through the cache is written as the same bytes.
    for sample in good(together):
        (again,) = from_table(to_table([sample]))
        assert again.members() == sample.members()


def test_what_can_go_into_one_call_does() -> None:
    samples = [pair(i, *size) for i, size in enumerate([(48, 64), (64, 48), (48, 64)])]
    for make, calls in ((captioner, 1), (lambda: dino(prompts=PROMPTS), 2)):
        stage = loaded(make())
        seen = []
        model = stage.model if isinstance(stage, GroundingDino) else stage.florence.model.model.vision_tower
        model.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        run(stage, samples)
        assert len(seen) == calls


def annotated_pair() -> Sample:
    classes = np.zeros((96, 128), np.uint8)
    classes[10:40, 10:60] = 2
    classes[50:90, 70:100] = 1
    classes[0:2, 0:2] = 1
    return pair(3, 96, 128, annotation=picture(classes, "mask"), caption="a car")


@pytest.mark.parametrize("make", [grounder, dino, lambda **k: AnnotatedBoxes(AnnotatedBoxesConfig(**k))])
def test_annotated_samples_need_no_model(make: Any) -> None:
    stage = make(labels={1: "car", 2: "person"})
    (found,) = stage.process([annotated_pair()])  # nothing is loaded
    assert [(box.role, box.label, box.score, corners(box)) for box in found.boxes] == [
        ("visible", "car", 1.0, (70, 50, 100, 90)),
        ("visible", "person", 1.0, (10, 10, 60, 40)),
    ]
    (masked,) = AnnotatedMasks(AnnotatedMasksConfig(labels={1: "car"})).process([found])
    assert [instance.label for instance in masked.instances or ()] == ["car", "class 2"]
    for instance, box in zip(masked.instances or (), found.boxes, strict=True):
        x, y, w, h = cv2.boundingRect(decode_rle(instance.rle).astype(np.uint8))
        assert (x, y, x + w, y + h) == corners(box)


def test_annotated_samples_go_with_others_in_a_batch() -> None:
    stage = loaded(dino(prompts=PROMPTS))
    plain = pairs()[0]
    first, second = stage.process([annotated_pair(), plain])
    assert [box.label for box in first.boxes or ()] == ["class 1", "class 2"] or len(first.boxes or ()) == 2
    assert [second] == stage.process([plain])
    (bare,) = AnnotatedBoxes(AnnotatedBoxesConfig()).process([plain])
    assert bare.boxes == ()


def test_a_stage_reads_captions_only_where_it_has_no_prompts() -> None:
    for make in (grounder, dino):
        assert make().requires == {"images", "caption"}
        assert make(prompts=("car",)).requires == {"images"}


def with_tensors(source: Path, folder: Path, change: Any) -> Path:
    """A copy of the checkpoint with its tensors changed."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


FIRST = {
    "caption": "model.language_model.encoder.layers.0.fc1.weight",
    "dino": "model.encoder.layers.0.text_enhancer_layer.fc1.weight",
}


@pytest.mark.parametrize("kind", ["caption", "dino"])
def test_incomplete_weights_are_refused_and_never_made_up(kind: str, tmp_path: Path) -> None:
    make = {"caption": FlorenceCaption, "dino": GroundingDino}[kind]
    settings: Any = {"caption": FlorenceCaptionConfig, "dino": GroundingDinoConfig}[kind]
    name = FIRST[kind]
    cut = with_tensors(MODELS[kind], tmp_path / "cut", lambda tensors: tensors.pop(name))
    with pytest.raises(WeightsError, match=rf"not a complete \w+: 1 tensor is missing .*{name}") as error:
        make(settings(model=str(cut))).load()
    assert "\n" not in str(error.value)
    bent = with_tensors(
        MODELS[kind], tmp_path / "bent", lambda tensors: tensors.update({name: tensors[name][1:].clone()})
    )
    with pytest.raises(WeightsError, match=f"another shape, e.g. {name}"):
        make(settings(model=str(bent))).load()
    other = {"caption": "dino", "dino": "caption"}[kind]
    with pytest.raises(WeightsError, match="model"):
        make(settings(model=str(MODELS[other]))).load()


def test_weights_kept_in_half_precision_are_computed_in_full(tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()})

    folder = with_tensors(MODELS["caption"], tmp_path / "half", halve)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float16"}))
    stage = loaded(FlorenceCaption(FlorenceCaptionConfig(model=str(folder))))
    assert {parameter.dtype for parameter in stage.florence.model.parameters()} == {torch.float32}
    assert good(run(stage, pairs()))[0].caption


def test_loading_says_nothing_and_leaves_the_users_settings(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    run(loaded(captioner()), pairs()[:1])
    run(loaded(dino()), pairs()[:1])
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_defaults_of_model_revision_and_hash_go_together() -> None:
    published = FlorenceCaptionConfig()
    assert published.revision
    assert published.sha256
    own = FlorenceCaptionConfig(model=str(MODELS["caption"]))
    assert (own.revision, own.sha256) == (None, None)
    moved = GroundingDinoConfig(revision="a" * 40)
    assert (moved.revision, moved.sha256) == ("a" * 40, None)
    assert GroundingDinoConfig(model="x/y", sha256="b" * 64).sha256 == "b" * 64
    assert FlorenceDetectConfig(model=published.model, revision=published.revision).sha256 == published.sha256
    for config in (published, own, moved):
        assert type(config).model_validate(config.model_dump()) == config


def test_a_wrong_task_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean <DETAILED_CAPTION>"):
        FlorenceCaptionConfig(prompt="<detailed_captions>")
    with pytest.raises(ValidationError, match="trained on the prompts <CAPTION>"):
        FlorenceCaptionConfig(prompt="<OD>")


@pytest.mark.parametrize(
    ("phrase", "name"),
    [("A man", "man"), ("the  Man,", "man"), ("a man on", "man"), ("man on a horse", "man on a horse"), ("the", None),
     ("The image", None), ("background image", None), ("a t-shirt.", "t-shirt"), ("[SEP]", "sep"), ("", None)],
)  # fmt: skip
def test_labels_can_be_compared(phrase: str, name: str | None) -> None:
    assert object_name(phrase, ("image", "background")) == name


@pytest.mark.parametrize(
    ("phrase", "prompt"),
    [("car", "Car"), ("cars", "Car"), ("a red car", "Car"), ("school bus", "School Bus"), ("bus", "School Bus"),
     ("motor", "Motorcycle"), ("tree", None), ("", None), ("the", None)],
)  # fmt: skip
def test_phrases_are_called_by_their_prompts(phrase: str, prompt: str | None) -> None:
    assert prompt_of(phrase, ("School Bus", "Motorcycle", "Car", "Carriage")) == prompt


def test_a_box_is_called_by_the_phrase_of_its_best_word() -> None:
    # [CLS] red bus . a t ##ree . [SEP]
    phrases = np.array([-1, 0, 0, -1, 1, 1, 1, -1, -1])
    words = [(0, 0), (0, 3), (4, 7), (7, 8), (9, 10), (11, 15), (11, 15), (15, 16), (0, 0)]
    text = "red bus. a tree."
    fixed = Question(text, ("Red bus", "Tree"), phrases, words)
    free = Question(text, (None, None), phrases, words)

    def scores(**at: float) -> np.ndarray:
        return np.array(
            [0.9, at.get("red", 0), at.get("bus", 0), 0.95, 0.3, at.get("t", 0), at.get("ree", 0), 0.9, 0.9]
        )

    assert fixed.label(scores(red=0.3, ree=0.5), 0.25, ()) == "Tree"
    assert free.label(scores(red=0.3, ree=0.5), 0.25, ()) == "tree"
    assert free.label(scores(red=0.3, bus=0.4), 0.25, ()) == "red bus"
    assert free.label(scores(), 0.25, ()) is None  # an article alone
    assert fixed.label(scores(red=0.2), 0.5, ()) is None
    assert free.label(scores(ree=0.5), 0.25, ("tree",)) is None


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5).map(" ".join), max_size=20),
    st.integers(3, 30),
)
def test_texts_are_packed_whole_and_in_order(parts: list[str], room: int) -> None:
    groups = packed(parts, lambda text: len(text) <= room)
    assert all(0 < len(joined(group)) <= room for group in groups)
    kept = [part for group in groups for part in group]
    assert len(kept) == len(parts)
    assert all(
        whole.startswith(part) and (part == whole or len(whole) + 1 > room)
        for part, whole in zip(kept, parts, strict=True)
    )
    # Not one more text than is needed.
    assert all(len(joined([*group, after[0]])) > room for group, after in pairwise(groups))


@given(st.text(max_size=60))
def test_sentences_lose_no_words(text: str) -> None:
    found = sentences(text)
    assert len(found) == len(set(found))
    assert all(not set(part) & set(".!?") and part == " ".join(part.split()) for part in found)
    assert set(re.findall(r"[^\W_]+", text)) == set(re.findall(r"[^\W_]+", " ".join(found)))
