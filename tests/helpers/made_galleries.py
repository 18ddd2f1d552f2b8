"""What galleries are made of: guided samples, pairs that were lost, scored pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made import scene
from made_datasets import pair, picture

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.score import Picture, Scene, score
from rwkvfusion.model.metrics.table import Convention
from rwkvfusion.pipelines.evaluate.report.pictures import EvaluationGallery
from rwkvfusion.pipelines.evaluate.results import Shown
from rwkvfusion.stages.dataset.manifest import Quarantined, read_manifest, write_manifest
from rwkvfusion.stages.dataset.sample import Box, Caption, Instance, Mask, Sample
from rwkvfusion.stages.guidance.rle import encode_rle

HEIGHT, WIDTH = 120, 160


def guided(key: str = "one", **changes: object) -> Sample:
    """A car in the visible picture, which is the only object; a lamp in the infrared one, which became none."""
    car, lamp = np.zeros((2, HEIGHT, WIDTH), bool)
    car[40:90, 20:60], lamp[60:110, 100:140] = True, True
    found = (("visible", "car", car, 20, 40, 60, 90), ("infrared", "lamp", lamp, 100, 60, 140, 110))
    guidance = dict(
        boxes=tuple(
            Box(role=role, label=label, score=0.5, x0=a, y0=b, x1=c, y1=d) for role, label, _, a, b, c, d in found
        ),
        instances=tuple(
            Instance(role=role, label=label, predicted_iou=0.9, stability=1, rle=encode_rle(mask))
            for role, label, mask, *_ in found
        ),
        mask=Mask(png=encode_png(car.astype(np.uint8)), labels=("car",)),
        captions=(Caption(role="visible", text="A car by day."), Caption(role="infrared", text="Warm lamp.")),
        caption="A car by day. Warm lamp.",
    )  # fmt: skip
    images = (picture("visible", scene(1, HEIGHT, WIDTH)), picture("infrared", scene(2, HEIGHT, WIDTH, 1)))
    whole = dict(key=key, dataset="made", split="train", task="vif", images=images) | guidance | changes
    return Sample(**whole)  # type: ignore[arg-type]


def lose(url: str, *keys: str, message: str = "it ends early", file: str = "") -> None:
    """Put pairs into the quarantine of the dataset's first shard, and those that are in it out of it."""
    lost = tuple(
        Quarantined(key=key, files=(file or f"vi/{key}.png",), stage="source", kind="damaged", message=message)
        for key in keys
    )
    manifest = read_manifest(Store(url), "train-000000")
    assert manifest is not None
    write_manifest(Store(url), manifest.model_copy(update={"quarantined": lost}))


def scored(scene: Scene, fused: dict[str, Picture], roles: tuple[str, ...], sample: Sample | None = None) -> Shown:
    """The pair with its scores, as an evaluation hands it to those who draw it."""
    scores = score(scene, fused)
    return Shown(scene.name, "made", "test", roles, scene, fused, scores.baselines, scores.rows, sample)


def luma_case(key: str, seed: int = 0, *, target: bool) -> Shown:
    """A guided pair; `ours` is the target, but for a part that is 16 levels brighter; `visible` a colour picture."""
    sample = pair(3 * seed, HEIGHT, WIDTH, key=key.replace(" ", "-"))
    sources = tuple(Picture(image.role, decode(image.data)) for image in sample.images)
    truth = scene(seed + 5, HEIGHT, WIDTH, 1) // 2
    ours = truth.copy()
    ours[10:30, 20:40] += 16
    fused = {"ours": Picture("ours", ours), "visible": Picture("theirs", scene(seed + 6, HEIGHT, WIDTH))}
    compared = Scene(key, "vif", sources, Picture("target", truth) if target else None)
    return scored(compared, fused, sample.roles, sample)


def write_evaluation(folder: Path, task: str, *cases: Shown) -> None:
    """The gallery of an evaluation of these pairs."""
    with EvaluationGallery(str(folder), task, Convention.Y, {"split": "test"}) as gallery:
        for write in [gallery.draw(one) for one in cases]:
            write()
