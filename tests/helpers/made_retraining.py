"""A small retraining: raw pairs of which each source holds one half of the scene, and its recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from made import scene
from made_datasets import pair, picture
from PIL import Image

from rwkvfusion.stages.dataset.sample import Sample

NAME = "rwkvfusion-vif"
STEPS = 20


def halves(seed: int, *, faint: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Visible (48, 64, 3) and infrared (48, 64, 1), grey where the other has its half; `faint`: hardly to be seen."""
    is_left = np.broadcast_to(np.arange(64)[None, :, None] < 32, (48, 64, 1))
    seen = is_left if seed % 2 else ~is_left
    arrays = scene(seed, 48, 64), scene(seed + 1000, 48, 64, channels=1)
    shown = [120 + array // 16 if faint else array for array in arrays]
    visible, infrared = (
        np.where(has, array, 128).astype(np.uint8) for array, has in zip(shown, (seen, ~seen), strict=True)
    )
    return visible, infrared


def half(seed: int) -> Sample:
    """`halves` as a sample."""
    images = (picture(role, array) for role, array in zip(("visible", "infrared"), halves(seed), strict=True))
    return pair(seed).replace(images=tuple(images), mask=None, text=None)


def write_halves(root: Path, seeds: Iterable[int], split: str = "train", *, faint: bool = False) -> None:
    """`halves` in the layout of MSRS."""
    for seed in seeds:
        for folder, array in zip(("vi", "ir"), halves(seed, faint=faint), strict=True):
            path = root / split / folder / f"{'faint' if faint else 'half'}-{seed:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.squeeze()).save(path)


def recipe(folder: Path, tracking: str | None = None, **changes: Any) -> dict[str, Any]:
    """Of `retrain`: datasets grow (train) and held (test), a model that is judged by SF alone, within wide limits.

    MLflow is at `tracking`, or a file.
    """
    prepare = {
        name: {
            "source": {"layout": "msrs", "root": str(folder / "raw" / name)},
            "name": name, "masks": "none", "output": str(folder / "out"), "shard": {"pairs": 4},
        }
        for name in ("grow", "held")
    }  # fmt: skip
    train = {
        "data": {"url": str(folder / "out/grow"), "crop": [32, 32], "batch": 4, "prefetch": 1, "final_pairs": 0},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "optim": {"warmup": 2, "lr": 4e-3, "ema": 0.9},
        "steps": STEPS, "log_every": 2, "checkpoint_every": 4, "validate": {"every": 0},
        "register": {"measure": 0},
        "tracking": {"uri": tracking or f"sqlite:///{folder}/mlflow.db"}, "output": str(folder / "train"),
    }  # fmt: skip
    promote = {
        "name": NAME, "sets": {"held": {"url": str(folder / "out/held"), "splits": ["test"]}},
        "gate": {"metrics": ["SF"], "loss": 100.0}, "pixels": {"clipped": 1.0, "tiles": None},
        "costs": {"time": None, "memory": None, "parameters": None}, "worst": 2, "jobs": 1,
    }  # fmt: skip
    return {"prepare": prepare, "train": train, "promote": promote, "state": str(folder / "state"), **changes}


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """As a file."""
    path = folder / "retrain.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
