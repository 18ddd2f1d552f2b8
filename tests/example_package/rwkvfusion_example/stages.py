from collections.abc import Sequence

import numpy as np
from pydantic import Field

from rwkvfusion.stages.dataset.sample import Box, Image, Sample
from rwkvfusion.stages.guidance.display import grey, view
from rwkvfusion.stages.guidance.stage import Stage, StageConfig


class BrightestConfig(StageConfig):
    side: int = Field(default=16, ge=2, description="of the box, in pixels")


class Brightest(Stage[BrightestConfig]):
    """A box around the brightest pixel of each picture."""

    name = "detect"  # detect, caption, segment or text: whose method it is
    version = 1  # raised whenever its output changes
    requires = frozenset({"images"})
    provides = frozenset({"boxes"})

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        return [sample.replace(boxes=tuple(self._box(image) for image in sample.images)) for sample in samples]

    def _box(self, image: Image) -> Box:
        plane = grey(view(image, max(image.height, image.width)))
        y, x = (int(place) for place in np.unravel_index(plane.argmax(), plane.shape))
        half = self.config.side // 2
        x0, y0 = max(0, x - half), max(0, y - half)
        x1, y1 = min(image.width, x + half), min(image.height, y + half)
        return Box(role=image.role, label="brightest", score=float(plane[y, x]) / 255, x0=x0, y0=y0, x1=x1, y1=y1)
