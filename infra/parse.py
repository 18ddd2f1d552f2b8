"""JSON that others wrote, or that was damaged."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: str | bytes) -> Any:
    """What `json.loads` gives; ValueError also for what is nested deeper than Python reads.

    Not pydantic's parser: that refuses the names of files that are no UTF-8, which `json.dumps` writes.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{len(data)} bytes are nested too deeply") from None
