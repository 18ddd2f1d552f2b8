"""Texts as open-set detectors take them, and what they call an object as labels that can be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

_SENTENCE = re.compile(r"[^.!?]+")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SMALL = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "its", "their", "his", "her", "some", "several", "of", "in",
     "on", "at", "to", "from", "by", "with", "and", "or", "is", "are")
)  # fmt: skip


def sentences(text: str) -> list[str]:
    """The sentences of `text` without their marks, each once, in order."""
    found = (" ".join(part.split()).strip(" ,;:") for part in _SENTENCE.findall(text))
    return list(dict.fromkeys(part for part in found if _WORD.search(part)))


def joined(parts: Sequence[str]) -> str:
    """Phrases or sentences as one text, each ended by a full stop."""
    return ". ".join(parts) + "." if parts else ""


def packed(parts: Sequence[str], fits: Callable[[str], bool]) -> list[list[str]]:
    """`parts` in as few groups as their order allows, so that the text of each group `fits`.

    A part that does not fit alone loses its last words.
    """
    groups: list[list[str]] = []
    for part in parts:
        if groups and fits(joined([*groups[-1], part])):
            groups[-1].append(part)
        elif shorter := _shortened(part, fits):
            groups.append([shorter])
    return groups


def _shortened(part: str, fits: Callable[[str], bool]) -> str:
    words = part.split()
    while words and not fits(joined([" ".join(words)])):
        words.pop()
    return " ".join(words)


def object_name(phrase: str, ignore: Sequence[str]) -> str | None:
    """A phrase as a label: lower case, without articles and other small words around it.

    So that `A man` in one modality and `the man` in another are one label. None where nothing is left, or only words
    to `ignore`.
    """
    words = _WORD.findall(phrase.lower())
    while words and words[0] in _SMALL:
        words.pop(0)
    while words and words[-1] in _SMALL:
        words.pop()
    return None if all(word in ignore for word in words) else " ".join(words)


def prompt_of(phrase: str, prompts: Sequence[str]) -> str | None:
    """The prompt, as the user wrote it, that a detector's `phrase` is, is a part of, or contains; None if none is."""
    ranked = sorted(_candidates(phrase, prompts), reverse=True)
    return prompts[-ranked[0][-1]] if ranked else None


def _candidates(phrase: str, prompts: Sequence[str]) -> Iterator[tuple[bool, int, int]]:
    """Whether it is the prompt, how many words they share, and the prompt's place, negative: the first goes first."""
    said = _WORD.findall(phrase.lower())
    for place, prompt in enumerate(prompts):
        words = _WORD.findall(prompt.lower())
        shared = len(set(said) & set(words) - _SMALL)
        if shared or (said and words and (" ".join(said) in " ".join(words) or " ".join(words) in " ".join(said))):
            yield said == words, shared, -place
