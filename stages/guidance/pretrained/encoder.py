"""Text encoding by a transformers encoder: T5 (Sect. 3.1), or any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Sample, Text
from rwkvfusion.stages.guidance.pretrained.base import ModelConfig, ModelStage, quiet


class TextEncoderConfig(ModelConfig):
    """Settings of the text encoder."""

    method: Literal["encoder"] = "encoder"
    model: str = Field(default="google-t5/t5-base", description="hub id, or a local folder that holds the model")
    revision: str | None = "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"
    sha256: str | None = "a90903540cc02cbeb7ff9f823f1a80eb778c7e22426a0e620b01c77a5ec8f5b4"
    max_tokens: int = Field(default=256, ge=1, description="what a caption has beyond these is cut off")


class TextEncoder(ModelStage[TextEncoderConfig]):
    """Fills `text` with the last hidden states of a caption's real tokens, with those the tokenizer adds (`</s>`).

    Captions are padded to one length in a batch and the padding is masked, so that it changes nothing but rounding.
    """

    name = "text"
    version = 1
    requires = frozenset({"caption"})
    provides = frozenset({"text"})

    def load(self) -> None:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer

        weights = self.local()
        kind = type(AutoConfig.from_pretrained(weights.path, local_files_only=True))
        # To AutoModel T5 is an encoder and a decoder; here only the encoder is needed.
        family = AutoModelForTextEncoding if kind in AutoModelForTextEncoding._model_mapping else AutoModel
        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(weights.path, local_files_only=True)
        # Checkpoints of masked language models have no pooler, which the hidden states do without.
        model = self.pretrained(family, weights, unused=("pooler.",))
        self.model = model.get_encoder() if model.config.is_encoder_decoder else model

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        vectors = self.encode([sample.caption or "" for sample in samples])
        return [sample.replace(text=Text.of(rows)) for sample, rows in zip(samples, vectors, strict=True)]

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """(tokens, width) float32 of each caption; no tokens for an empty one."""
        texts = [caption for caption in captions if caption.strip()]
        vectors = iter(self._encode(texts) if texts else [])
        empty = np.zeros((0, self.model.config.hidden_size), np.float32)
        return [next(vectors) if caption.strip() else empty for caption in captions]

    def _encode(self, captions: list[str]) -> list[np.ndarray]:
        # Beyond its own limit a model has no positions, or none it was trained on.
        longest = min(self.config.max_tokens, self.tokenizer.model_max_length)
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(
            self.device
        )
        with self.inference():
            hidden = self.model(**tokens).last_hidden_state
        real = tokens["attention_mask"].bool()
        return [rows[mask].float().cpu().numpy() for rows, mask in zip(hidden, real, strict=True)]
