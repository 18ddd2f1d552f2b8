"""Labels and boxes: what is read of a file, and what is one object."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvfusion.model.detection.boxes import SAME, Boxes, LabelError, iou, read_labels, united

HEIGHT, WIDTH = 480, 640


def label_of(box: list[float], number: int) -> str:
    x0, y0, x1, y1 = box
    parts = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    return f"{number} " + " ".join(f"{part:.9f}" for part in parts) + "\n"


@st.composite
def boxes(draw: st.DrawFn, most: int = 6) -> Boxes:
    sides = st.integers(1, 100)
    rows = [
        [x, y, x + draw(sides), y + draw(sides)]
        for x, y in draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 350)), max_size=most))
    ]
    return Boxes.of(rows, draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))


@given(boxes())
def test_labels_that_are_written_are_read(given_boxes: Boxes) -> None:
    rows = zip(given_boxes.xyxy.tolist(), given_boxes.classes.tolist(), strict=True)
    read = read_labels("\n".join(label_of(*row) for row in rows), "x.txt", 3, HEIGHT, WIDTH)
    np.testing.assert_allclose(read.xyxy, given_boxes.xyxy, atol=1e-5)
    assert read.classes.tolist() == given_boxes.classes.tolist()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1", "is not `class cx cy w h`"),
        ("0 0.5 0.5 0.1 nan", "is not `class cx cy w h`"),
        ("person 0.5 0.5 0.1 0.1", "is not `class cx cy w h`"),
        ("7 0.5 0.5 0.1 0.1", "class 7 is not one of the 3: name all with --classes"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not one of the 3"),
        ("0 320 240 10 20", "as boxes in pixels do"),
        ("0 0.99 0.5 0.1 0.1", "leaves the picture"),
        ("0 0.5 0.5 0 0.1", "is empty"),
    ],
)
def test_a_wrong_line_is_named(line: str, words: str) -> None:
    with pytest.raises(LabelError, match=r"set/00012N\.txt, line 3") as error:
        read_labels(f"0 0.5 0.5 0.1 0.1\n\n{line}\n", "set/00012N.txt", 3, HEIGHT, WIDTH)
    assert words in str(error.value)


@given(boxes(), boxes())
def test_overlap_is_what_counting_pixels_says(first: Boxes, second: Boxes) -> None:
    def mask(box: np.ndarray) -> np.ndarray:
        plane = np.zeros((HEIGHT, WIDTH), bool)
        x0, y0, x1, y1 = box.astype(int)
        plane[y0:y1, x0:x1] = True
        return plane

    counted = [[(mask(a) & mask(b)).sum() / (mask(a) | mask(b)).sum() for b in second.xyxy] for a in first.xyxy]
    np.testing.assert_allclose(iou(first.xyxy, second.xyxy), np.reshape(counted, (len(first), len(second))))


@given(st.lists(boxes(), min_size=1, max_size=3))
def test_united_keeps_the_first_set_and_shows_every_object_once(sets: list[Boxes]) -> None:
    objects = united(sets)
    assert objects.xyxy[: len(sets[0])].tolist() == sets[0].xyxy.tolist()
    for number in range(3):
        there = objects.of_class(number)
        for one in sets:
            # Each labelled box is there, or one of another set that is the same object.
            assert (iou(one.of_class(number), there) >= SAME).any(axis=1).all()
    again = united([objects, *sets])
    assert again.xyxy.tolist() == objects.xyxy.tolist()
