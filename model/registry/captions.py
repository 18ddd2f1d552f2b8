"""Captions to token vectors, as a model's training data had them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from rwkvfusion.model.fusing.fuser import FuserError


def encoder_of(text: Mapping[str, Any] | None, width: int) -> CaptionEncoder:
    """The encoder of a model with this `FuserConfig.text` and text width: one for all models that have the same."""
    return _encoder(json.dumps(text, sort_keys=True), width)


@lru_cache(maxsize=4)
def _encoder(text: str, width: int) -> CaptionEncoder:
    return CaptionEncoder(json.loads(text), width)


class CaptionEncoder:
    """Encodes texts for one model.

    `text`: what `FuserConfig.text` says; None, where it was not noted: the built-in vectors, of the model's `width`.
    """

    def __init__(self, text: Mapping[str, Any] | None, width: int) -> None:
        self._text, self._width = text, width
        self._lock = threading.Lock()
        self._loaded: Any = None

    def encode(self, caption: str) -> np.ndarray:
        """(tokens, width), rounded as in shards. FuserError for what is no text, WeightsError for lack of weights."""
        if not isinstance(caption, str):
            raise FuserError(f"a caption is a text, or an array (tokens, {self._width}), not {type(caption).__name__}")
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            vectors = self._loaded(caption)
        return np.asarray(vectors, np.float16)

    def _load(self) -> Any:
        settings = dict(self._text["config"]) if self._text else {"width": self._width}
        if settings.get("method", "hashed") == "hashed":
            from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig

            return HashedText(TextConfig(**settings)).encode
        # Slow to import, and most models do without.
        from rwkvfusion.stages.guidance.pretrained.encoder import TextEncoder, TextEncoderConfig

        weights = self._text["weights"] if self._text else {}
        stage = TextEncoder(
            TextEncoderConfig(**settings, **{k: weights[k] for k in ("model", "revision")}, sha256=None)
        )
        stage.check()
        if stage.weights is None or stage.weights.sha256 != weights["sha256"]:
            raise FuserError(
                f"captions of this model are encoded by {weights['model']} with SHA-256 {weights['sha256'][:12]}, and"
                " those here are others: give the caption as an encoded array (tokens, width)"
            )
        stage.load()
        return lambda caption: stage.encode([caption])[0]
