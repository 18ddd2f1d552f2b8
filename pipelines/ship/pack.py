"""Makes packs of prepared datasets: `python -m rwkvfusion.pipelines.ship.pack DATASET... -o vif.npz`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import cv2
import numpy as np

from rwkvfusion.model.fusing.planes import luma, to_planes
from rwkvfusion.model.training.decoded import Decoded
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.pipelines.console import say
from rwkvfusion.pipelines.ship.packed import Pack, Sample, write
from rwkvfusion.stages.dataset.task import LUMA_TASKS

_TEXT_WIDTH = 256
_NIGHT = 64
"""Mean grey level below which a picture is one of the night."""


def samples_of(data: TrainingSet) -> Iterator[Sample]:
    """Every sample of `data` as luma of 8 bits."""
    for shard in data.shards:
        for sample in shard.read():
            one = Decoded.of(sample)
            arrays = [*one.images, *([one.target] if one.target is not None else [])]
            yield Sample(
                one.key,
                tuple(_plane(array) for array in arrays),
                one.mask,
                None if one.text is None else one.text.astype(np.float16),
                one.names_sides,
                one.names_heights,
            )


def pictures_of(samples: list[Sample], roles: int) -> list[Sample]:
    """The target of each sample, else its first modality: pictures that exposures are made of. Those of nights are left
    out, whose scene no longer exposure would show."""
    found = [one.planes[roles if len(one.planes) > roles else 0] for one in samples]
    both = zip(samples, found, strict=True)
    return [Sample(one.key, (plane,)) for one, plane in both if plane.mean() >= _NIGHT]


def halves_of(samples: list[Sample], roles: int) -> list[Sample]:
    """The first modality of each sample at half its size, sharp to the pixel then: as all sources and the target."""
    halves = [
        (one.key, cv2.resize(one.planes[0], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)) for one in samples
    ]
    return [Sample(key, (half,) * (roles + 1)) for key, half in halves if half.mean() >= _NIGHT]


def held_out_last(samples: list[Sample], count: int) -> list[Sample]:
    """`samples` with `count` of the most frequent size last, spread over them."""
    size, many = Counter(one.planes[0].shape for one in samples).most_common(1)[0]
    places = [i for i, one in enumerate(samples) if one.planes[0].shape == size]
    held = {places[i * many // count] for i in range(min(count, many - 1))}
    return [one for i, one in enumerate(samples) if i not in held] + [samples[i] for i in sorted(held)]


def _plane(array: np.ndarray) -> np.ndarray:
    return np.rint(255 * luma(to_planes(array, None)).numpy()[0]).clip(0, 255).astype(np.uint8)


@click.command()
@click.argument("datasets", nargs=-1, required=True)
@click.option("--split", "splits", multiple=True, default=("train",), show_default=True)
@click.option("--held-out", default=6, show_default=True, help="Samples to watch a training by.")
@click.option("--limit", type=click.IntRange(1), help="At most N samples of each dataset, evenly spread.")
@click.option("--pictures", is_flag=True, help="For mef: the pictures alone, of which a training makes exposures.")
@click.option("--sharp", multiple=True, metavar="DATASET", help="For mff: another, of which pictures alone go along.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def pack(
    datasets: tuple[str, ...],
    splits: tuple[str, ...],
    held_out: int,
    limit: int | None,
    pictures: bool,
    sharp: tuple[str, ...],
    output: Path,
) -> None:
    """Pack DATASETS, which `prepare` made, for a machine that has torch and numpy alone."""
    samples, texts, seen = list[Sample](), list[object](), dict[str, str]()
    for url in datasets:
        data = TrainingSet.open([url], splits)
        if data.task not in LUMA_TASKS:
            raise click.UsageError(f"{url} is of {data.task}: a pack holds pictures that are fused by their luma")
        survey, found = data.survey(), list(samples_of(data))
        if limit is not None and limit < len(found):
            found = [found[i * len(found) // limit] for i in range(limit)]
        samples += pictures_of(found, len(survey.roles)) if pictures else found
        texts.append(survey.text)
        seen |= {Path(where).name: proof for where, proof in data.fingerprints.items()}
        task, roles = data.task, survey.roles
    if pictures:
        task, roles, texts = "mef", ("under", "over"), [None]
    width = next((one.text.shape[1] for one in samples if one.text is not None), _TEXT_WIDTH)
    samples = held_out_last(samples, held_out)
    for url in sharp:
        data = TrainingSet.open([url], splits)
        samples = halves_of(list(samples_of(data)), len(roles)) + samples
        seen |= {Path(where).name: proof for where, proof in data.fingerprints.items()}
    about = {"datasets": seen, "text": texts[0] if all(text == texts[0] for text in texts) else None}
    made = Pack(task, roles, width, tuple(samples), held_out, about)
    write(output, made)
    say(f"{output}: {len(samples)} samples of {task}, {os.path.getsize(output) / 1e6:.1f} MB")


if __name__ == "__main__":
    pack()
