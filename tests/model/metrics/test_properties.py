"""What holds for every metric of every comparison and convention, on pictures of any kind and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import crops
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rwkvfusion.model.metrics.distortions import FullResolution
from rwkvfusion.model.metrics.score import Picture, Scene, ScoreError, Scores, score
from rwkvfusion.model.metrics.table import Comparison, Convention, Metric, metrics_of

Plane = npt.NDArray[np.float64]
Turn = Callable[[Plane], Plane]


def transposed(picture: Plane) -> Plane:
    return np.swapaxes(picture, 0, 1)


FLIPS: Mapping[str, Turn] = {"left to right": np.fliplr, "upside down": np.flipud}

# Metrics that see which way round a picture is, and why.
NOT_FLIPPED = {
    "Qabf": "an edge of exactly 90 degrees counts as +90, however near its neighbours are to -90: as published",
    "VIF": "every second pixel is kept, from the first on, of planes of an even side",
    "Qcb of rwkvfusion": "frequency 0 is between two, so that waves to one side are not seen as those to the other",
    "Qcv of rwkvfusion": "as Qcb",
    "Dl": "its interpolation lays coarse pixels half a pixel from the middle of the fine ones",
    "Ds": "as Dl",
    "HQNR": "of both",
}
NOT_TRANSPOSED = {"Qabf": "as above", "Nabf": "a pixel without an edge has an angle of 0, as published"}


def kinds(height: int, width: int) -> st.SearchStrategy[Plane]:
    """Noise, few grey levels in blocks, one grey level, one bright pixel, a ramp."""
    noise = arrays(np.uint8, (height, width))
    blocks = arrays(np.uint8, (-(-height // 8), -(-width // 8))).map(
        lambda block: np.kron(block, np.ones((8, 8), np.uint8))[:height, :width]
    )
    flat = st.integers(0, 255).map(lambda level: np.full((height, width), level, np.uint8))

    def bright(at: int) -> Plane:
        plane = np.zeros(height * width, np.uint8)
        plane[at] = 255
        return plane.reshape(height, width)

    pixel = st.integers(0, height * width - 1).map(bright)
    ramp = st.just(np.add.outer(np.arange(height) * 3, np.arange(width) * 2).astype(np.uint8))
    return st.one_of(noise, blocks, flat, pixel, ramp).map(lambda plane: plane.astype(np.float64))


def sizes(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


def luma_metrics() -> list[tuple[Convention, Comparison, Metric]]:
    return [
        (convention, comparison, metric)
        for convention in Convention
        for comparison in (Comparison.SOURCES, Comparison.TARGET)
        for metric in metrics_of(comparison, convention).values()
    ]


def scored(
    fused: Plane, sources: list[Plane], convention: Convention = Convention.Y, task: str = "mef", target: bool = True
) -> Scores:
    """Of one plane; the first source is the target too."""
    pictures = [Picture(f"source {i}", plane.astype(np.uint8)[:, :, None]) for i, plane in enumerate(sources)]
    scene = Scene("x", task, tuple(pictures), pictures[0] if target else None)
    return score(scene, {"fused": Picture("fused", fused.astype(np.uint8)[:, :, None])}, convention)


def check_complete(scores: Scores, task: str, convention: Convention) -> None:
    """Every metric has a value in its range, or a reason why not."""
    for comparison, rows in scores.rows.items():
        metrics = metrics_of(comparison, convention, task)
        reasons = scores.undefined.get(comparison, {})
        for name, row in rows.items():
            assert list(row) == list(metrics)
            for metric in metrics.values():
                value = row[metric.name]
                assert math.isfinite(value) or reasons[metric.name], (name, metric.name, value)
                summands = 2 if "sum over" in metric.summary and comparison is Comparison.SOURCES else 1
                low, high = (summands * end for end in metric.range)
                assert math.isnan(value) or low - 1e-9 <= value <= high + 1e-9, (name, metric.name, value)
        for metric_name in reasons:
            assert not all(math.isfinite(row[metric_name]) for row in rows.values()), metric_name


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(Convention), sizes(1, 24))
def test_pictures_of_any_kind_and_size_give_a_number_or_a_reason(
    data: st.DataObject, convention: Convention, size: tuple[int, int]
) -> None:
    fused, first, second = (data.draw(kinds(*size)) for _ in range(3))
    check_complete(scored(fused, [first, second], convention), "mef", convention)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(Convention), sizes(41, 60))
def test_of_pictures_that_are_large_enough_too(
    data: st.DataObject, convention: Convention, size: tuple[int, int]
) -> None:
    fused, first, second = (data.draw(kinds(*size)) for _ in range(3))
    check_complete(scored(fused, [first, second], convention), "mef", convention)
    for of_fused in (first, np.maximum(first, second)):
        check_complete(scored(of_fused, [first, second], convention), "mef", convention)


@settings(max_examples=20, deadline=None)
@given(st.data(), sizes(41, 60))
def test_the_order_of_the_sources_does_not_matter(data: st.DataObject, size: tuple[int, int]) -> None:
    fused, first, second = (data.draw(kinds(*size)) for _ in range(3))
    for convention in Convention:
        there, back = (
            scored(fused, sources, convention, target=False).rows[Comparison.SOURCES]["fused"]
            for sources in ([first, second], [second, first])
        )
        assert there == pytest.approx(back, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("convention", Convention)
def test_of_a_picture_large_enough_for_every_metric_as_well(convention: Convention) -> None:
    fused, sources = crops.large_pair()
    there, back = (scored(fused, order, convention) for order in (sources, sources[::-1]))
    check_complete(there, "mef", convention)
    row = there.rows[Comparison.SOURCES]["fused"]
    assert all(math.isfinite(value) for value in row.values()), row
    assert row == pytest.approx(back.rows[Comparison.SOURCES]["fused"], rel=1e-9)


def turned_values(metric: Metric, comparison: Comparison) -> tuple[float, dict[str, float]]:
    """Of a picture whose sides blocks of 16x16 and four halvings leave whole, and of it turned."""
    fused, sources = crops.large_pair()
    others = sources if comparison is Comparison.SOURCES else sources[:1]
    values = {
        name: metric.compute(*(np.ascontiguousarray(turn(fused)), [np.ascontiguousarray(turn(one)) for one in others]))
        for name, turn in {**FLIPS, "transposed": transposed}.items()
    }
    return metric.compute(fused, others), values


@pytest.mark.parametrize(
    ("convention", "comparison", "metric"), luma_metrics(), ids=lambda one: getattr(one, "name", one)
)
def test_a_picture_may_be_turned(convention: Convention, comparison: Comparison, metric: Metric) -> None:
    names = {metric.name, f"{metric.name} of {convention}"}
    value, turned = turned_values(metric, comparison)
    for name, other in turned.items():
        exceptions = NOT_TRANSPOSED if name == "transposed" else NOT_FLIPPED
        # An exception without a need is none.
        assert (other == pytest.approx(value, rel=1e-9)) == (not names & set(exceptions)), name


def test_a_cube_may_be_turned() -> None:
    fused, target = (picture[:64, :96] for picture in crops.cubes(64, 96))
    for metric in metrics_of(Comparison.REDUCED).values():
        value = metric.compute(fused, target, 2047.0, 4)
        for turn in (*FLIPS.values(), transposed):
            turned = metric.compute(*(np.ascontiguousarray(turn(picture)) for picture in (fused, target)), 2047.0, 4)
            assert turned == pytest.approx(value, rel=1e-9), metric.name
    pictures = crops.scene_without_target()
    there, back = (
        FullResolution(low, pan, ratio=4, gains=(0.3,) * 4).distortions(result)
        for result, low, pan in (pictures, [np.ascontiguousarray(transposed(picture)) for picture in pictures])
    )
    assert there == pytest.approx(back, rel=1e-9)


BEST = {"VIF": 1, "Qcb": 1, "Qy": 1, "Qcv": 0, "SSIM": 1, "PSNR": math.inf, "SCD": 1, "Nabf": 0, "MS-SSIM": 1,
        "MEF-SSIM": 1, "PSNR_ref": math.inf, "SSIM_ref": 1}  # fmt: skip
ALONE = {"SF", "EN", "SD", "AG"}
"""Of the fused picture alone: these know no best."""


@pytest.mark.parametrize("convention", Convention)
def test_a_picture_fused_of_itself_has_the_best_value(convention: Convention) -> None:
    _, (source, _) = crops.large_pair()
    scores = scored(source, [source], convention)
    values = scores.rows[Comparison.SOURCES]["fused"] | scores.rows[Comparison.TARGET]["fused"]
    assert values.pop("MI") == pytest.approx(values["EN"] * math.log(2))
    # The gains of both sigmoids: the constants of Xydeas and Petrovic do not reach 1.
    assert values.pop("Qabf") == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), abs=1e-3)
    assert {name: value for name, value in values.items() if name not in ALONE} == pytest.approx(
        {name: best for name, best in BEST.items() if name in values}, abs=1e-6
    )
    assert scores.undefined[Comparison.SOURCES]["PSNR"]
    assert scores.undefined[Comparison.TARGET]["PSNR_ref"]


# --- values that are no numbers


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("convention", Convention)
def test_pictures_that_are_no_numbers_are_refused_by_name(wrong: float, convention: Convention) -> None:
    good, bad = np.full((44, 48, 1), 0.5), np.full((44, 48, 1), 0.5)
    bad[3, 4] = wrong
    for fused, source in ((bad, good), (good, bad)):
        of_fused, of_source = (Picture("bad" if one is bad else "good", one) for one in (fused, source))
        with pytest.raises(ScoreError, match="bad: a float image must lie in 0-1"):
            score(Scene("x", "vif", (of_source,)), {"fused": of_fused}, convention)


def cube_scene(with_target: bool) -> tuple[Scene, Plane]:
    fused, low, pan = (picture.astype(np.float64) for picture in crops.scene_without_target())
    target = Picture("target", fused + 5.0) if with_target else None
    return Scene("x", "pansharpening", (Picture("pan", pan), Picture("ms", low)), target), fused


@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_of_sharpening_what_is_not_finite_has_a_reason(wrong: float, with_target: bool) -> None:
    """Its pictures are any floats; and a result with a hole is found out by every metric."""
    scene, fused = cube_scene(with_target)
    fused[10, 11, 2] = wrong
    with np.errstate(all="ignore"):
        scores = score(scene, {"fused": Picture("fused", fused)})
    (comparison,) = scores.rows
    row = scores.rows[comparison]["fused"]
    assert not any(math.isfinite(value) for value in row.values()), row
    assert set(scores.undefined[comparison]) == set(row)
    assert all(math.isfinite(value) for value in scores.rows[comparison]["GSA"].values())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.sampled_from([0.0, 1.0, 800.0]))
def test_of_cubes_of_any_size_too(height: int, width: int, bands: int, with_target: bool, level: float) -> None:
    """One pixel, flat, black."""
    rng = np.random.default_rng(height * 100 + width * 10 + bands)
    low = np.full((height, width, bands), level) if level < 800 else rng.uniform(0, level, (height, width, bands))
    pan = (
        np.full((4 * height, 4 * width, 1), level) if level < 800 else rng.uniform(0, level, (4 * height, 4 * width, 1))
    )
    fused = np.repeat(np.repeat(low, 4, axis=0), 4, axis=1)
    target = Picture("target", fused * 1.0) if with_target else None
    with np.errstate(all="ignore"):
        scores = score(
            Scene("x", "pansharpening", (Picture("pan", pan), Picture("ms", low)), target),
            {"fused": Picture("fused", fused)},
        )
    check_complete(scores, "pansharpening", Convention.Y)
