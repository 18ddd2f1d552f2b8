"""Built-in text encoding: captions to token vectors by hashing words and parts of words."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Sample, Text
from rwkvfusion.stages.guidance.stage import Stage, StageConfig

_WORD = re.compile(r"\w+|[^\w\s]")


class TextConfig(StageConfig):
    """Settings of the hashed token vectors."""

    method: Literal["hashed"] = "hashed"
    width: int = Field(default=256, ge=8, le=4096, description="values a token")
    max_tokens: int = Field(default=128, ge=1, description="what a caption has beyond these is cut off")
    ngrams: tuple[int, int] = Field(default=(3, 4), description="shortest and longest part of a word that is hashed")


class HashedText(Stage[TextConfig]):
    """Fills `text`: one unit vector a word, the sum of signed hashes of the word and its character n-grams.

    Like words share n-grams and lie near each other (as in fastText, without training); the same word has the
    same vector on every machine.
    """

    name = "text"
    version = 1
    requires = frozenset({"caption"})
    provides = frozenset({"text"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample.replace(text=Text.of(self.encode(sample.caption or ""))) for sample in samples]

    def encode(self, caption: str) -> np.ndarray:
        """(tokens, width) float32; no tokens for an empty caption."""
        words = _WORD.findall(unicodedata.normalize("NFKC", caption).lower())[: self.config.max_tokens]
        vectors = [_vector(word, self.config.width, *self.config.ngrams) for word in words]
        return np.array(vectors, np.float32).reshape(len(words), self.config.width)


@lru_cache(maxsize=65536)
def _vector(word: str, width: int, shortest: int, longest: int) -> np.ndarray:
    total = np.zeros(width, np.float32)
    for part in _parts(word, shortest, longest):
        total += _signs(part, width)
    return total / np.linalg.norm(total)


def _parts(word: str, shortest: int, longest: int) -> Iterator[str]:
    marked = f"<{word}>"
    yield marked
    for size in range(shortest, longest + 1):
        for start in range(len(marked) - size + 1):
            yield marked[start : start + size]


def _signs(part: str, width: int) -> np.ndarray:
    """`width` values of +1 or -1, nearly orthogonal to those of any other text."""
    data = hashlib.shake_128(part.encode("utf-8", "surrogatepass")).digest((width + 7) // 8)
    return np.unpackbits(np.frombuffer(data, np.uint8))[:width].astype(np.float32) * 2 - 1
