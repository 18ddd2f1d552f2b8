"""Small models as they come with the package, in a folder that takes the place of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.network.complexity import parameters
from rwkvfusion.model.shipped import CARD, SCORES

ROOT = "rwkvfusion.model.shipped.ROOT"
"""What a test sets to that folder."""


def score(mean: float, spread: float) -> dict[str, float]:
    return {"n": 30, "mean": mean, "low": mean - spread, "high": mean + spread}


def ship(root: Path, name: str, fuser: Fuser, **facts: Any) -> Path:
    """Write the folder of one; `facts` are on top of made ones."""
    fuser.save(root / name)
    known: dict[str, Any] = {
        "title": f"{name}, of random weights",
        "task": fuser.config.task,
        "parameters": parameters(fuser.network),
        "licence": "none",
        "trained_on": "nothing",
        "scores": {"no pairs": {"MI": score(3.6, 0.3), "Qcv": score(181.0, 20.0)}},
        "seconds": 0.5,
        "machine": "no machine",
        "command": "made for a test",
    }
    (root / name / SCORES).write_text(json.dumps(known | facts))
    (root / name / CARD).write_text(f"# {name}\n\nIts weights are random.\n")
    return root / name
