"""Words in pictures, in one font that is everywhere the same."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from rwkvfusion.infra.errors import RwkvFusionError

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

PAPER, INK = (242, 243, 245), (20, 20, 20)
MAX_LINES = 12


@cache
def font(size: int) -> Font:
    """The font that Pillow brings, plainly laid out: the same everywhere. It has ASCII and little else."""
    default = ImageFont.load_default(size)
    if not isinstance(default, Font):
        raise RwkvFusionError("this Pillow was built without FreeType and cannot write: install its wheel from PyPI")
    return default.font_variant(layout_engine=ImageFont.Layout.BASIC)


def text_size(width: int) -> int:
    """Of the letters, in pixels, for columns of `width`."""
    return max(11, width // 25)


def write(text: str, size: int, width: int, ink: Colour = INK, paper: Colour = PAPER) -> Pil.Image:
    """Text on paper `width` pixels wide, in as many lines as it takes."""
    face, step = font(size), step_of(size)
    lines = wrap(text, face, width)
    image = Pil.new("RGB", (width, max(1, step * len(lines))), paper)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number + step / 2), line, ink, face, anchor="lm")
    return image


def wrap(text: str, face: Font, room: float) -> list[str]:
    """The words in lines of at most `room` pixels; what is longer ends in an ellipsis, as does line MAX_LINES."""
    lines: list[str] = []
    for word in ascii_words(text):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (len(lines) == MAX_LINES or face.getlength(longer) <= room):
            lines[-1] = longer
        else:
            lines.append(word)
    return [shorten(line, face, room) for line in lines]


def ascii_words(text: str) -> list[str]:
    """The words without accents, of the signs that the font has; others become question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("–", "-").replace("—", "-"))
    return "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode().split()


def shorten(text: str, face: Font, room: float) -> str:
    """As much of the text as `room` pixels hold, with an ellipsis where that is not all."""
    if face.getlength(text) <= room:
        return text
    # No letter is narrower than a pixel.
    text = text[: int(room)]
    while text and face.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def step_of(size: int) -> int:
    """Pixels from one line to the next."""
    return round(size * 1.3)
