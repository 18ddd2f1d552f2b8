"""Fuse pictures with an exported RWKVFusion network: NumPy and ONNX Runtime, nothing of the package that made it.

    python example.py MODEL.onnx A.png B.png -o FUSED.png       (Pillow reads and writes the files)

The network sees planes in which 0 is black and 1 is white. Of a luma network that is luma alone, and the chroma of the
pictures is fused beside it, by its strength.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

RED, GREEN, BLUE = 0.299, 0.587, 0.114
CB, CR = 2 * (1 - BLUE), 2 * (1 - RED)


def fuse(
    session: Any,
    images: list[np.ndarray],
    mask: np.ndarray | None = None,
    text: np.ndarray | None = None,
    scales: list[Any] | None = None,
) -> np.ndarray:
    """Fuse pictures of one scene.

    session: onnxruntime.InferenceSession of the file.
    images: (H, W) or (H, W, C) arrays, integers or floats on 0-1, in the order of the network's inputs.
    mask: (H, W) object indices, 0 = background; text: (tokens, width) of the encoder trained with; None is none.
    scales: of each picture the value that counts as 1, or (the value that counts as 0, that counts as 1); None is the
        model's own, or else the largest value of the type.
    Gives (H, W, C) of the type of the first picture; of a sharpening network, of the one that it sharpens.
    """
    told = session.get_modelmeta().custom_metadata_map
    luma_only, residual = json.loads(told["luma_only"]), json.loads(told["residual"])
    scales = scales or [None] * len(images)
    own = json.loads(told["scales"]) or [None] * len(images)
    # Eight bits are a picture as screens show it, whatever else a luma network saw.
    own = [None if luma_only and image.dtype == np.uint8 else scale for image, scale in zip(images, own, strict=True)]
    scales = [scale or default for scale, default in zip(scales, own, strict=True)]
    units = [unit(image, scale) for image, scale in zip(images, scales, strict=True)]
    planes = [to_planes(image, *ends) for image, ends in zip(images, units, strict=True)]
    names = [one.name for one in session.get_inputs()]
    feed = {name: (luma(image) if luma_only else image)[None] for name, image in zip(names, planes, strict=False)}
    if "mask" in names:
        feed["mask"] = np.zeros(planes[0].shape[1:], np.uint8)[None] if mask is None else mask.astype(np.uint8)[None]
    nothing = np.zeros((1, json.loads(told["text_width"])))
    feed["text"] = np.asarray(nothing if text is None or not len(text) else text, np.float32)[None]
    fused = session.run(None, feed)[0][0]
    if luma_only:
        fused = with_chroma(fused, planes, exposures=told["task"] == "mef")
    like = residual or 0
    if images[like].dtype.kind == "f" and scales[like] is None:
        fused = fused.clip(0, 1)
    return from_planes(fused, images[like].dtype, *units[like])


def unit(image: np.ndarray, scale: Any) -> tuple[float, float]:
    """The values that count as 0 and as 1."""
    if isinstance(scale, str):  # percentiles, such as "p1-p99"
        low, high = np.percentile(image, [float(end[1:]) for end in scale.split("-")])
        return float(low), float(high)
    if scale is None:
        return 0.0, 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    low, high = scale if isinstance(scale, list | tuple) else (0, scale)
    return float(low), float(high)


def to_planes(image: np.ndarray, black: float, white: float) -> np.ndarray:
    """(H, W) or (H, W, C) to (C, H, W) float32."""
    image = image[:, :, None] if image.ndim == 2 else image
    values = (image.astype(np.float32) - np.float32(black)) / np.float32(white - black)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def from_planes(planes: np.ndarray, dtype: np.dtype[Any], black: float, white: float) -> np.ndarray:
    """The inverse; integers are rounded half to even."""
    values = planes.astype(np.float64) * (white - black) + black
    if dtype.kind != "f":
        values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.ascontiguousarray(values.astype(dtype).transpose(1, 2, 0))


def is_grey(image: np.ndarray) -> bool:
    """Whether (C, H, W) shows no colour."""
    return len(image) == 1 or bool((image == image[:1]).all())


def luma(image: np.ndarray) -> np.ndarray:
    """(1 or 3, H, W) to its luma (1, H, W), BT.601 full range."""
    return image[:1] if is_grey(image) else RED * image[:1] + GREEN * image[1:2] + BLUE * image[2:]


def with_chroma(fused: np.ndarray, sources: list[np.ndarray], exposures: bool) -> np.ndarray:
    """The fused luma (1, H, W) with the sources' chroma, each weighed by its strength; itself where all are grey."""
    coloured = [image for image in sources if not is_grey(image)]
    if not coloured:
        return fused
    chroma = true_chroma(coloured, exposures)
    weight = np.abs(chroma).sum(axis=0)
    cb, cr = (chroma * np.abs(chroma)).sum(axis=0) / np.where(weight > 0, weight, 1)
    red, blue = CR * cr, CB * cb
    offsets = np.stack([red, -(RED * red + BLUE * blue) / GREEN, blue])
    # A colour that the luma has no room for is brought towards grey until it fits.
    seen = np.concatenate([fused, *sources])
    room = np.where(offsets > 0, seen.max(axis=0).clip(1) - fused, fused - seen.min(axis=0).clip(None, 0))
    return fused + (room / np.abs(offsets).clip(1e-12)).min(axis=0).clip(None, 1) * offsets


def true_chroma(sources: list[np.ndarray], exposures: bool) -> np.ndarray:
    """(N, 2, H, W): each picture's chroma; of exposures turned to the hue of the others where a channel is cut off."""
    lumas = np.stack([luma(image) for image in sources])
    chroma = np.stack(
        [np.concatenate([(i[2:] - y) / CB, (i[:1] - y) / CR]) for i, y in zip(sources, lumas, strict=True)]
    )
    tops = np.stack([image.max(axis=0, keepdims=True) / max(1, image.max()) for image in sources])
    cut = ((tops - 0.95) / 0.05).clip(0)
    if not exposures or len(sources) == 1 or not cut.any():
        return chroma
    trust = (1 - cut) * (lumas / 0.12).clip(0, 1) ** 2
    believed = trust.sum(axis=0)
    turned = lumas * (trust * chroma / lumas.clip(1e-12)).sum(axis=0) / believed.clip(1e-12)
    shorter = length(chroma) / length(turned).clip(1e-12)
    return chroma + cut * believed.clip(None, 1) * (shorter.clip(None, 1) * turned - chroma)


def length(chroma: np.ndarray) -> np.ndarray:
    """Of each pixel's offsets from grey."""
    return np.sqrt((chroma**2).sum(axis=1, keepdims=True))


def main() -> None:
    """Fuse files."""
    import onnxruntime
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--mask")
    asked = parser.parse_args()
    mask = None if asked.mask is None else np.asarray(Image.open(asked.mask))
    pictures = [np.asarray(Image.open(path)) for path in asked.pictures]
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # it takes twice the memory, and no less time
    fused = fuse(onnxruntime.InferenceSession(asked.model, options), pictures, mask)
    Image.fromarray(fused[:, :, 0] if fused.shape[2] == 1 else fused).save(asked.output)


if __name__ == "__main__":
    main()
