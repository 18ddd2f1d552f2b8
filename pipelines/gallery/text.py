"""Text in `view`: fonts, wrapping, blocks of words, and labels on pictures that keep out of each other's way."""

from __future__ import annotations

import bisect
import unicodedata
from collections.abc import Sequence
from functools import cache

from PIL import Image as Pil
from PIL import ImageDraw, ImageFont

from rwkvfusion.infra.errors import RwkvFusionError

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont

PAPER, INK, FAINT, BLACK = (242, 243, 245), (20, 20, 20), (95, 95, 95), (0, 0, 0)
MAX_LINES = 12


@cache
def font(size: int) -> Font:
    """The font that Pillow brings, plainly laid out: the same everywhere, and `--` stays two signs.

    It has ASCII and little else: what it has no sign for, such as Chinese, shows as a frame.
    """
    found = ImageFont.load_default(size)
    if not isinstance(found, Font):
        raise RwkvFusionError("this Pillow was built without FreeType and cannot write: install its wheel from PyPI")
    return found.font_variant(layout_engine=ImageFont.Layout.BASIC)


def line_height(face: Font) -> int:
    """Pixels from one line to the next."""
    return round(face.size * 1.3)


def clean(text: str) -> str:
    """One line, as near to the signs the font has as can be: without accents and what is invisible, plain dashes."""
    letters = []
    for letter in unicodedata.normalize("NFKD", " ".join(text.split())):
        category = unicodedata.category(letter)
        if category == "Pd":
            letters.append("-")
        elif category != "Mn" and letter.isprintable():
            letters.append(letter)
    return " ".join(unicodedata.normalize("NFC", "".join(letters)).split())


def shorten(text: str, face: Font, room: float) -> str:
    """`text` if it fits `room` pixels, else as much as does, and an ellipsis."""
    text = clean(text)
    if _fitting(text, face, room) == len(text):
        return text
    return f"{text[: _fitting(text, face, room - face.getlength('…'))].rstrip()}…"


def wrap(text: str, face: Font, room: float) -> list[str]:
    """Lines of at most `room` pixels, broken at spaces, or within a word that is longer; at most MAX_LINES."""
    lines: list[str] = []
    rest = clean(text)
    while rest:
        if len(lines) == MAX_LINES - 1:
            return [*lines, shorten(rest, face, room)]
        end = max(1, _fitting(rest, face, room))
        if end < len(rest) and " " in rest[: end + 1]:
            end = rest.rindex(" ", 0, end + 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def _fitting(text: str, face: Font, room: float) -> int:
    """How many of the first letters fit `room` pixels. No letter is narrower than a pixel, so few are measured."""
    ends = range(1, min(len(text), int(room)) + 1)
    return bisect.bisect_right(ends, room, key=lambda end: face.getlength(text[:end]))


def block(lines: Sequence[str], face: Font, width: int, ink: Colour = INK, paper: Colour = PAPER) -> Pil.Image:
    """Lines of text on paper, `width` pixels wide."""
    step = line_height(face)
    image = Pil.new("RGB", (width, max(1, step * len(lines))), paper)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((0, step * number + step / 2), line, ink, face, anchor="lm")
    return image


class Labels:
    """Writes outlined labels on one picture, where they hide least of each other and of the boxes to be seen."""

    def __init__(self, picture: Pil.Image, face: Font, boxes: Sequence[Rectangle]) -> None:
        self._pen, self._face, self._size = ImageDraw.Draw(picture), face, picture.size
        self._stroke = max(1, round(face.size / 7))
        self._boxes, self._written = boxes, list[Rectangle]()

    def extent(self, text: str) -> tuple[float, float]:
        """Width and height in pixels, with the outline."""
        return self._face.getlength(text) + 2 * self._stroke, self._face.size + 2 * self._stroke

    def beside(self, text: str, box: Rectangle, ink: Colour) -> None:
        """Near `box`, rather outside than inside, rather above than below."""
        text = shorten(text, self._face, self._size[0] - 2 * self._stroke)
        width, height = self.extent(text)
        x0, y0, x1, y1 = box
        ends, middle = (x0, x1 - width), (y0 + y1 - height) / 2
        places = [(x, y) for y in (y0 - height, y1) for x in ends] + [(x1, middle), (x0 - width, middle)]
        places += [(x, y) for y in (y0, y1 - height, y0 - 2 * height, y1 + height) for x in ends]
        self._write(text, places, ink)

    def over(self, text: str, x: float, y: float, ink: Colour) -> None:
        """Centred on a point."""
        width, height = self.extent(text)
        self._write(text, [(x - width / 2, y - height / 2)], ink)

    def _write(self, text: str, places: Sequence[tuple[float, float]], ink: Colour) -> None:
        width, height = self.extent(text)
        options = []
        for order, (x, y) in enumerate(places):
            x, y = max(0.0, min(x, self._size[0] - width)), max(0.0, min(y, self._size[1] - height))
            place = (x, y, x + width, y + height)
            hidden = 4 * sum(_hidden(other, place) for other in self._written)
            hidden += sum(_hidden(box, place) for box in self._boxes)
            options.append((hidden + order / 20, place))
        x0, y0, x1, y1 = min(options)[1]
        self._written.append((x0, y0, x1, y1))
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        self._pen.text(middle, text, ink, self._face, anchor="mm", stroke_width=self._stroke, stroke_fill=BLACK)


def _hidden(box: Rectangle, under: Rectangle) -> float:
    """The share of `box` that lies under the other."""
    width, height = min(box[2], under[2]) - max(box[0], under[0]), min(box[3], under[3]) - max(box[1], under[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0.0, width) * max(0.0, height) / area if area > 0 else 0.0
