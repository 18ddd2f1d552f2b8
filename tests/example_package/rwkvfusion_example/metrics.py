from collections.abc import Sequence

import numpy as np

from rwkvfusion.model.metrics.luma.planes import Prepared, of_planes
from rwkvfusion.model.metrics.table import Comparison, PackagedMetric


@of_planes
def spread(fused: Prepared, sources: Sequence[Prepared]) -> float:
    """Grey levels between the 5th and the 95th percentile; planes are float64 (H, W) in 0-255."""
    low, high = np.percentile(fused.plane, (5, 95))
    return float(high - low)


SPREAD = PackagedMetric(
    name="SPREAD",
    better="higher",
    range=(0, 255),
    needs="nothing",
    colour="luma",
    summary="grey levels between the 5th and the 95th percentile",
    source="this package",
    compute=spread,
    comparison=Comparison.SOURCES,
    version="1",
)
