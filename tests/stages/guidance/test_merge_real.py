"""Merging on annotated masks of real sets, made unsatisfactory in each modality on its own (`perturb`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from made_datasets import pair, picture
from perturb import LABEL, MEDIUM, MILD, STRONG, Strength, iou, perturbed, score

from rwkvfusion.stages.dataset.sample import Instance, Rle
from rwkvfusion.stages.guidance.annotation import AnnotationConfig, annotated
from rwkvfusion.stages.guidance.merge import MergeConfig, merge
from rwkvfusion.stages.guidance.rle import cut, decode_rle, encode_rle

MASKS = {"FusionDataset": "dev/FusionDataset/label", "MSRS": "dev/MSRS/train/mask"}
SEEDS = range(8)
EVEN = {"mild": (MILD, MILD), "medium": (MEDIUM, MEDIUM), "strong": (STRONG, STRONG)}
MODALITIES = ("visible", "infrared")

Pictures = tuple[tuple[Rle, ...], ...]


@cache
def true_objects(folder: Path) -> Pictures:
    """The annotated objects of each picture, as the stages read them."""
    found = []
    for path in sorted(folder.iterdir()):
        annotation = picture("annotation", np.zeros((1, 1, 1), np.uint8)).model_copy(update={"data": path.read_bytes()})
        sample = pair(0).replace(annotation=annotation)
        found.append(tuple(one.rle for one in annotated(sample, AnnotationConfig())))
    return tuple(found)


def draws(pictures: Pictures, strengths: tuple[Strength, Strength], seed: int) -> Iterator[list[list[Instance]]]:
    """What each modality sees of each picture."""
    rng = np.random.default_rng(seed)
    areas = [sum(truth.counts[1::2]) for truths in pictures for truth in truths]
    for truths in pictures:
        masks = [decode_rle(truth) for truth in truths]
        yield [perturbed(masks, *of, areas, rng) for of in zip(MODALITIES, strengths, strict=True)]


def ways(seen: Sequence[list[Instance]], shape: tuple[int, int]) -> dict[str, list[Rle]]:
    """All objects that each way of using both modalities finds."""
    together = [one for instances in seen for one in instances]
    sets = {"merged": together, **dict(zip(MODALITIES, seen, strict=True))}
    merged = {
        name: [encode_rle(found.mask) for found in merge(ones, shape, MergeConfig())] for name, ones in sets.items()
    }
    rles = [one.rle for one in together]
    return merged | {"concatenated": rles, "painted": painted(rles, shape)}


def painted(rles: Sequence[Rle], shape: tuple[int, int]) -> list[Rle]:
    """What is left to see of each mask where later ones are painted over earlier ones."""
    pieces = cut(rles, shape)
    left = [row & ~pieces.cover[i + 1 :].any(axis=0) for i, row in enumerate(pieces.cover)]
    return [encode_rle(pieces.mask(row, shape)) for row in left if row.any()]


def scores(pictures: Pictures, strengths: tuple[Strength, Strength], seeds: range) -> dict[str, np.ndarray]:
    """(seeds, 2) mean IoU of objects and IoU of the foreground, means over the set, by way."""
    rows: dict[str, list[list[tuple[float, float]]]] = {}
    for seed in seeds:
        for truths, seen in zip(pictures, draws(pictures, strengths, seed), strict=True):
            for way, found in ways(seen, (truths[0].height, truths[0].width)).items():
                rows.setdefault(way, []).append([score(truths, found)])
    return {way: np.reshape(row, (len(seeds), len(pictures), 2)).mean(axis=1) for way, row in rows.items()}


def test_the_scores_punish_what_is_missed_found_twice_in_parts_or_false() -> None:
    a, b = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    a[:4, :4] = b[4:, 4:] = True
    left, right = a & (np.arange(8) < 2), a & (np.arange(8) >= 2)

    def of(truths: list[np.ndarray], found: list[np.ndarray]) -> tuple[float, float]:
        return score([encode_rle(mask) for mask in truths], [encode_rle(mask) for mask in found])

    assert [of([a, b], [b, a]), of([a], [left]), of([a], [b]), of([a], [])] == [(1, 1), (0.5, 0.5), (0, 0), (0, 0)]
    assert [of([a, b], [a]), of([a], [a, a]), of([a], [a, b])] == [(0.5, 0.5), (0.5, 1), (0.5, 0.5)]
    assert of([a], [left, right]) == (0.25, 1)


def test_estimates_tell_of_the_truth_without_giving_it_away(real_data: Path) -> None:
    pictures = true_objects(real_data / MASKS["MSRS"])
    rows = []
    for seed in range(3):
        for truths, seen in zip(pictures, draws(pictures, (MEDIUM, MEDIUM), seed), strict=True):
            masks = [decode_rle(truth) for truth in truths]
            for one in [one for instances in seen for one in instances]:
                mask = decode_rle(one.rle)
                rows.append((max(iou(mask, truth) for truth in masks), one.predicted_iou, one.label == LABEL))
    quality, predicted, right = np.array(rows).T
    true, false = predicted[quality > 0], predicted[quality == 0]
    assert 0.4 < np.corrcoef(quality[quality > 0], true)[0, 1] < 0.9
    assert false.mean() < true.mean() - 0.05
    assert np.mean(false > np.quantile(true, 0.25)) > 0.15
    assert 0.9 < right.mean() < 1


@pytest.mark.parametrize("strength", EVEN)
@pytest.mark.parametrize("name", MASKS)
def test_merged_objects_are_nearer_the_truth_than_either_modality_or_both_concatenated(
    name: str, strength: str, real_data: Path
) -> None:
    found = scores(true_objects(real_data / MASKS[name]), EVEN[strength], SEEDS)
    # Over forty other seeds the least mean gains are 0.06 and 0.08, and nine in ten of the seeds gain.
    for way in set(found) - {"merged"}:
        gain = found["merged"] - found[way]
        objects, foreground = gain.mean(axis=0)
        assert objects > (0.02 if way in MODALITIES else 0.04), way
        assert (gain[:, 0] > 0).mean() > 0.5, way
        # Of pixels alone concatenation loses little: it omits none, and what comes twice counts once.
        assert foreground > (0 if way in MODALITIES else -0.05), way


@pytest.mark.parametrize("name", MASKS)
def test_where_one_modality_is_much_worse_merging_still_beats_its_mean_and_concatenation(
    name: str, real_data: Path
) -> None:
    # The better modality alone would do better still: no object of the worse is omitted, and some of those are false.
    found = scores(true_objects(real_data / MASKS[name]), (MILD, STRONG), SEEDS)
    objects = {way: values[:, 0].mean() for way, values in found.items()}
    assert objects["merged"] > np.mean([objects[role] for role in MODALITIES]) + 0.05
    assert objects["merged"] > max(objects["concatenated"], objects["painted"]) + 0.05
