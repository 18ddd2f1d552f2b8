"""A small retraining: raw pairs of which each source holds one half of the scene, and its recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from made import scene
from PIL import Image

NAME = "rwkvfusion-vif"
STEPS = 20


def write_halves(root: Path, seeds: Iterable[int], split: str = "train", *, faint: bool = False) -> None:
    """Pairs in the layout of MSRS, grey where the other one has its half; `faint`: hardly to be seen."""
    for seed in seeds:
        visible, infrared = scene(seed, 48, 64), scene(seed + 1000, 48, 64, channels=1)
        is_left = np.broadcast_to(np.arange(64)[None, :, None] < 32, (48, 64, 1))
        seen = is_left if seed % 2 else ~is_left
        for folder, array, has in (("vi", visible, seen), ("ir", infrared, ~seen)):
            path = root / split / folder / f"{'faint' if faint else 'half'}-{seed:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown = 120 + array // 16 if faint else array
            Image.fromarray(np.where(has, shown, 128).astype(np.uint8).squeeze()).save(path)


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
