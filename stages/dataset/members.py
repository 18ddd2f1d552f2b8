"""What the members of a dataset's tars are called, alike in all samples wherever that can be; and where it cannot.

Readers of WebDataset take a member's name for its column, and the first samples for all: Hugging Face's drops what they
lack. So a role has one name throughout, `visible.png` say, whatever format single pictures have. They stay the source's
own bytes, which decoders know by their content, and meta.json has each picture's true format.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from rwkvfusion.infra.errors import printable
from rwkvfusion.infra.pictures.decode import ImageError, decode, extension_of
from rwkvfusion.infra.pictures.encode import encode_png, encode_tiff
from rwkvfusion.infra.storage import sha256
from rwkvfusion.stages.dataset.sample import Image, Sample

LOSSLESS = ("png", "tif")
Members = Mapping[str, Mapping[str, int]]
"""How many samples have each member of a tar, by the format that it holds."""


def count_members(samples: Iterable[Sample], chosen: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """What the tar of `samples` holds."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        pictures = {image.role: image for image in sample.pictures}
        for name in sample.members(chosen):
            role, _, ending = name.partition(".")[2].partition(".")
            counts[f"{role}.{ending}"][pictures[role].ext if role in pictures else ending] += 1
    return {name: dict(sorted(formats.items())) for name, formats in sorted(counts.items())}


def total_members(parts: Iterable[Members]) -> dict[str, dict[str, int]]:
    """The sum of several shards'."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for part in parts:
        for name, formats in part.items():
            total[name].update(formats)
    return {name: dict(sorted(formats.items())) for name, formats in sorted(total.items())}


def differences(members: Members, n_samples: int) -> list[str]:
    """What readers that expect the same of every sample should know, in sentences."""
    lines = []
    for name, formats in members.items():
        if len(formats) > 1:
            counts = ", ".join(f"{n} {form}" for form, n in sorted(formats.items(), key=lambda one: (-one[1], one[0])))
            lines.append(
                f"{name} is of several formats ({counts}): under one name, as the source has them;"
                " shard.uniform=true makes one format of them"
            )
        count = sum(formats.values())
        if count < n_samples:
            lines.append(f"{name} is in {count} of {n_samples} samples")
    return lines


def made_uniform(sample: Sample, chosen: Mapping[str, str]) -> Sample:
    """The sample with each picture in the format that its member is called after, re-encoded without loss.

    What its file was stays with it. A picture that the format cannot hold makes the sample a failed one.
    """
    if sample.error is not None:
        return sample
    try:
        images = tuple(_as(image, chosen) for image in sample.images)
        target = sample.target and _as(sample.target, chosen)
    except ImageError as error:
        return sample.failed("source", "not_uniform", f"shard.uniform: {error}")
    return sample.replace(images=images, target=target)


def _as(image: Image, chosen: Mapping[str, str]) -> Image:
    wanted = chosen.get(image.role, image.ext)
    if image.ext == wanted or wanted not in LOSSLESS:
        return image
    array = decode(image.data)
    try:
        data = encode_png(array) if wanted == "png" and array.shape[2] in (1, 3) else encode_tiff(array)
        if extension_of(data) != wanted:
            raise ImageError(f"PNG cannot hold {array.shape[2]} bands of {array.dtype}")
    except ImageError as error:
        raise ImageError(
            f"{printable(image.path)} is {image.ext}, and most of its role are {wanted}: {error}"
        ) from None
    return image.model_copy(
        update={"data": data, "ext": wanted, "channels": array.shape[2], "sha256": sha256(data),
                "original_ext": image.ext, "original_sha256": image.sha256}
    )  # fmt: skip
