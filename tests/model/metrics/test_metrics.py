"""The metrics against plain loops, closed forms, and scores that others published for their own fused images."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from golden import DATA, METRICS, Plane, golden, mean_over_rgb, needs_golden, read
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal import convolve2d
from scipy.stats import entropy as scipy_entropy

from rwkvfusion.model.metrics.luma.planes import Prepared, luma
from rwkvfusion.model.metrics.luma.statistics import squared_frequencies
from rwkvfusion.model.metrics.score import Picture, Scene, ScoreError, Scores, score
from rwkvfusion.model.metrics.table import Comparison, Convention, Metric, metrics_of

needs_msrs = pytest.mark.skipif(not (DATA / "dev" / "MSRS").is_dir(), reason="no MSRS beside the repository")


def planes(side: int = 44) -> st.SearchStrategy[Plane]:
    """Noise, or few grey levels in large blocks, so that flat patches and equal gradients are common."""
    noise = arrays(np.uint8, (side, side))
    blocks = arrays(np.uint8, (side // 11, side // 11)).map(lambda block: np.kron(block, np.ones((11, 11))))
    return st.one_of(noise, blocks).map(lambda plane: plane.astype(np.float64))


def random_plane(seed: int, height: int = 48, width: int = 52) -> Plane:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.float64)


# --- plain forms to compare with


def plain_qabf(fused: Plane, sources: list[Plane]) -> float:
    def edges(plane: Plane) -> tuple[Plane, Plane]:
        x = convolve2d(plane, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], mode="same")
        y = convolve2d(plane, [[1, 2, 1], [0, 0, 0], [-1, -2, -1]], mode="same")
        angle = np.empty_like(x)
        for at in np.ndindex(x.shape):
            angle[at] = math.pi / 2 if x[at] == 0 else math.atan(y[at] / x[at])
        return np.hypot(x, y), angle

    fused_g, fused_a = edges(fused)
    total = weight = 0.0
    for source in sources:
        g, a = edges(source)
        for at in np.ndindex(g.shape):
            low, high = sorted((g[at], fused_g[at]))
            ratio = fused_g[at] if low == high else low / high
            alignment = 1 - abs(a[at] - fused_a[at]) / (math.pi / 2)
            q = 0.9994 / (1 + math.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + math.exp(-22 * (alignment - 0.8)))
            total, weight = total + q * float(g[at]), weight + float(g[at])
    return total / weight


def plain_vif(fused: Plane, source: Plane) -> float:
    kept = whole = 0.0
    for scale, size in enumerate((17, 9, 5, 3)):
        grid = np.arange(size) - size // 2
        window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * (size / 5) ** 2))
        window /= window.sum()
        if scale > 0:
            source = convolve2d(source, window, mode="valid")[::2, ::2]
            fused = convolve2d(fused, window, mode="valid")[::2, ::2]
        for top, left in np.ndindex(source.shape[0] - size + 1, source.shape[1] - size + 1):
            r, d = source[top : top + size, left : left + size], fused[top : top + size, left : left + size]
            r, d = r - (window * r).sum(), d - (window * d).sum()
            var_r, var_d, cov = (window * r * r).sum(), (window * d * d).sum(), (window * r * d).sum()
            if var_r < 1e-10:
                continue
            gain = max(cov / (var_r + 1e-10), 0.0) if var_d >= 1e-10 else 0.0
            noise = max(var_d - gain * cov, 1e-10)
            kept += math.log10(1 + gain * gain * var_r / (noise + 2))
            whole += math.log10(1 + var_r / 2)
    return kept / whole


def plain_ssim(fused: Plane, source: Plane) -> float:
    scores = []
    for top, left in np.ndindex(fused.shape[0] - 6, fused.shape[1] - 6):
        x, y = (plane[top : top + 7, left : left + 7].ravel() for plane in (fused, source))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        (var_x, cov), (_, var_y) = np.cov(x, y)
        first = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
        scores.append(first * (2 * cov + c2) / (var_x + var_y + c2))
    return float(np.mean(scores))


def plain_mi(fused: Plane, source: Plane) -> float:
    joint = np.histogram2d(fused.ravel(), source.ravel(), bins=256, range=[[0, 256], [0, 256]])[0] / fused.size
    return float(scipy_entropy(joint.ravel(), np.outer(joint.sum(1), joint.sum(0)).ravel()))


# No shrinking: the plain loops take a second, and a smaller example would not say more.
@settings(max_examples=8, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(planes(), planes())
def test_metrics_equal_their_plain_forms(fused: Plane, source: Plane) -> None:
    assume(np.ptp(source) > 0)
    blend = np.floor((3 * source + fused) / 4)
    assert METRICS["Qabf"](blend, [source]) == pytest.approx(plain_qabf(blend, [source]), abs=1e-9)
    assert METRICS["SSIM"](blend, [source]) == pytest.approx(plain_ssim(blend, source), abs=1e-9)
    assert METRICS["MI"](blend, [source]) == pytest.approx(plain_mi(blend, source), abs=1e-9)
    assert METRICS["VIF"](blend, [source]) == pytest.approx(plain_vif(blend, source), abs=1e-8)


# --- properties


def on_planes(metric: Metric, fused: Plane, sources: list[Plane]) -> float:
    """Its value; MS-SSIM's of planes repeated to a size that it takes."""
    if metric.name == "MS-SSIM":
        fused, *sources = (np.tile(plane, (4, 4)) for plane in (fused, *sources))
    return metric.compute(fused, sources)


@settings(max_examples=25, deadline=None)
@given(planes(), planes())
def test_sums_over_sources_are_sums(fused: Plane, source: Plane) -> None:
    others = [source, fused, np.flipud(source)]
    for name in ("MI", "VIF", "SSIM"):
        single = sum(METRICS[name](fused, [other]) for other in others)
        assert METRICS[name](fused, others) == pytest.approx(single, abs=1e-9)


def test_a_source_as_the_fused_image_scores_the_best_there_is() -> None:
    source, other = random_plane(1), random_plane(2)
    scores = {name: on_planes(metric, source, [source]) for name, metric in metrics_of(Comparison.SOURCES).items()}
    for name in ("Qcb", "Qy", "SCD", "MS-SSIM", "MEF-SSIM"):
        assert scores[name] == pytest.approx(1), name
    assert (scores["Nabf"], scores["Qcv"]) == (0, 0)
    assert scores["MI"] == pytest.approx(scores["EN"] * math.log(2))
    assert scores["VIF"] == pytest.approx(1, abs=1e-7)
    assert scores["SSIM"] == pytest.approx(1)
    assert scores["PSNR"] == math.inf
    # The gain of both sigmoids at their best: Xydeas-Petrovic's constants do not reach 1.
    assert scores["Qabf"] == pytest.approx(0.9994 * 0.9879 / (1 + math.exp(-22 * 0.2)), abs=1e-3)
    for name in ("MI", "VIF", "Qcb", "Qabf", "Qy", "SSIM", "PSNR", "SCD", "MEF-SSIM"):
        assert METRICS[name](other, [source]) < scores[name], name
    assert METRICS["Nabf"](other, [source]) > 0.1


def test_closed_forms() -> None:
    ramp = np.tile(np.arange(64.0), (64, 1))
    assert METRICS["SF"](ramp, []) == pytest.approx(1)
    assert METRICS["AG"](2 * ramp, []) == pytest.approx(math.sqrt(2))
    assert METRICS["EN"](ramp, []) == pytest.approx(6)
    assert METRICS["SD"](ramp, []) == pytest.approx(math.sqrt((64**2 - 1) / 12))
    assert METRICS["PSNR"](ramp + 5, [ramp]) == pytest.approx(20 * math.log10(255 / 5))
    assert METRICS["PSNR"](ramp, [ramp + 1, ramp + 3]) == pytest.approx(10 * math.log10(255**2 / 5))
    # Columns against rows share nothing; columns against a relabelling of themselves share all.
    assert METRICS["MI"](ramp, [ramp.T]) == pytest.approx(0, abs=1e-12)
    assert METRICS["MI"](ramp, [255 - 3 * ramp]) == pytest.approx(math.log(64))


@pytest.mark.parametrize("level", [0, 77, 255])
def test_flat_images_give_the_documented_numbers(level: int) -> None:
    flat, busy = np.full((48, 52), level, np.uint8), random_plane(3).astype(np.uint8)
    values = scored(flat, [busy, flat])
    assert [values[name] for name in ("MI", "EN", "SD", "SF", "AG")] == [0, 0, 0, 0, 0]
    assert values["VIF"] == pytest.approx(1, abs=1e-6)  # 0 of the busy source, and 1 for the flat one
    assert (values["SCD"], values["Nabf"]) == (0, 0)
    # It has none of the contrast of the one source, and all of the other, which weighs nothing where that one has some.
    assert values["Qcb"] == pytest.approx(0, abs=1e-3)
    assert values["Qy"] == pytest.approx(1)
    same = scored(flat, [flat])
    assert same["PSNR"] == math.inf
    assert [same[name] for name in ("Qcb", "Qy", "Qcv", "Nabf")] == [1, pytest.approx(1), 0, 0]
    assert scored(flat, [np.zeros((48, 52), np.uint8)])["Qabf"] == 0


def test_black_patches_of_a_source_do_not_decide_qy() -> None:
    """Where rounding decides, the MATLAB form has values in the hundreds."""
    source = random_plane(6, 64, 64)
    source[:, :40] = 0
    other = np.kron(random_plane(7, 8, 8), np.ones((8, 8)))
    for fused in (source, other, np.maximum(source, other), np.floor((source + other) / 2)):
        assert -1 <= METRICS["Qy"](fused, [source, other]) <= 1


LEAST = {"AG": 2, "Nabf": 2, "SSIM": 7, "Qy": 7, "VIF": 41, "MEF-SSIM": 41, "MS-SSIM": 161}
LEAST_RELEASED = {"AG": 2, "Qcb": 2, "SSIM": 11, "Qcv": 16, "VIF": 41}


@pytest.mark.parametrize(("convention", "least"), [(Convention.Y, LEAST), (Convention.RWKVFUSION, LEAST_RELEASED)])
def test_tiny_planes_are_refused_with_the_least_size(convention: Convention, least: dict[str, int]) -> None:
    metrics = metrics_of(Comparison.SOURCES, convention)
    for name, side in least.items():
        for height, width in ((side, side + 3), (side + 3, side)):
            a, b = random_plane(8, height, width), random_plane(9, height, width)
            assert math.isfinite(metrics[name].compute(np.maximum(a, b), [a, b])), name
            with pytest.raises(ValueError, match=f"^{name} needs {side} pixels each way, not "):
                metrics[name].compute(a[: side - 1, : side - 1], [b[: side - 1, : side - 1]])
    for name in metrics.keys() - least:
        assert math.isfinite(metrics[name].compute(np.full((1, 1), 7.0), [np.full((1, 1), 9.0)])) or name == "Qy", name


# --- score


def scores_of(fused: npt.NDArray[Any], sources: Sequence[npt.NDArray[Any]]) -> Scores:
    """As `score` has them, of pictures that may be (H, W)."""
    pictures = [
        Picture(name, np.atleast_3d(values))
        for name, values in (("fused", fused), *((f"source {i}", source) for i, source in enumerate(sources)))
    ]
    return score(Scene("x", "vif", tuple(pictures[1:])), {"fused": pictures[0]})


def scored(fused: npt.NDArray[Any], sources: Sequence[npt.NDArray[Any]]) -> dict[str, float]:
    return scores_of(fused, sources).rows[Comparison.SOURCES]["fused"]


def test_luma_is_matlabs_rgb2gray() -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [10, 200, 33], [1, 2, 3]]], np.uint8)
    assert luma(rgb).tolist() == [[76, 150, 29], [255, 124, 2]]
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for same in (
        grey,
        grey[..., None],
        np.dstack([grey] * 3),
        grey * np.uint16(257),
        grey / 255,
        grey / np.float32(255),
    ):
        np.testing.assert_array_equal(luma(same), grey)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.full((4, 4), 200.0), "200"),
        (np.full((4, 4), np.nan), "nan"),
    ],
)
def test_luma_refuses_what_it_would_have_to_guess(image: npt.NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        luma(image)


def test_what_cannot_be_scored_is_named() -> None:
    image = np.zeros((48, 52), np.uint8)
    with pytest.raises(ScoreError, match=r"source 1 is 48x52.*source 0 is 52x48"):
        scores_of(image, [image, image.T])
    with pytest.raises(ScoreError, match="fused: a float image must lie in 0-1"):
        scores_of(image + 2.5, [image])
    with pytest.raises(ScoreError, match="source 0: a float image must lie in 0-1"):
        scores_of(image, [image + 2.5])
    with pytest.raises(ScoreError, match="'mean' is the name of a line"):
        score(Scene("x", "vif", (Picture("a", image[:, :, None]),)), {"mean": Picture("b", image[:, :, None])})
    small = scores_of(image[:40], [image[:40]])
    assert small.undefined[Comparison.SOURCES]["VIF"] == "VIF needs 41 pixels each way, not 40x52"
    assert math.isnan(small.rows[Comparison.SOURCES]["fused"]["VIF"])
    assert list(small.rows[Comparison.SOURCES]) == ["source a alone", "mean", "maximum", "fused"]


def test_what_is_infinite_has_a_reason() -> None:
    image = random_plane(5, 176, 176).astype(np.uint8)
    scores = score(Scene("x", "mff", (Picture("a", image[:, :, None]),), Picture("t", image[:, :, None])), {})
    assert scores.undefined == {
        Comparison.SOURCES: {"PSNR": "infinite: no error"},
        Comparison.TARGET: {"PSNR_ref": "infinite: no error"},
    }


def test_the_convention_of_the_released_code_is_the_mean_over_red_green_and_blue() -> None:
    visible, fused = (
        np.stack([random_plane(seed + 3 * k) for k in range(3)], axis=2).astype(np.uint8) for seed in (1, 2)
    )
    infrared = random_plane(3).astype(np.uint8)[:, :, None]
    scene = Scene("x", "vif", (Picture("a", visible), Picture("b", infrared)))
    row = score(scene, {"f": Picture("f", fused)}, Convention.RWKVFUSION).rows[Comparison.SOURCES]["f"]
    assert METRICS.keys() - row.keys() == {"Nabf", "MS-SSIM", "MEF-SSIM"}
    grey = np.dstack([infrared] * 3)
    for name in ("MI", "Qabf", "SCD", "SD"):
        assert row[name] == pytest.approx(mean_over_rgb(METRICS[name], fused, visible, grey)), name
    # VIF goes from the fused picture to each source.
    swapped = sum(mean_over_rgb(METRICS["VIF"], source, fused) for source in (visible, grey))
    assert row["VIF"] == pytest.approx(swapped)
    with pytest.raises(ScoreError, match="convention rwkvfusion is of vif, mif, mef, mff: pansharpening has y"):
        score(Scene("x", "pansharpening", scene.sources), {}, Convention.RWKVFUSION)


def test_smallest_image_of_every_scale() -> None:
    small = random_plane(4, 41, 41)
    assert METRICS["VIF"](small, [np.fliplr(small)]) == pytest.approx(plain_vif(small, np.fliplr(small)), abs=1e-8)


# --- what a scene's pictures share


def test_pictures_scored_together_have_the_scores_that_each_has_alone() -> None:
    a, b = random_plane(11, 176, 180).astype(np.uint8), np.kron(random_plane(12, 22, 18), np.ones((8, 10)))
    sources = (Picture("a", a[:, :, None]), Picture("b", b.astype(np.uint8)[:, :, None]))
    fused = {f"f{i}": Picture("f", random_plane(i, 176, 180).astype(np.uint8)[:, :, None]) for i in range(3)}
    for task in ("vif", "mef"):
        scene = Scene("x", task, sources, Picture("t", np.maximum(a, b.astype(np.uint8))[:, :, None]))
        together = score(scene, fused)
        for name, picture in fused.items():
            alone = score(scene, {name: picture})
            for comparison, rows in alone.rows.items():
                assert rows[name] == together.rows[comparison][name]
        row = together.rows[Comparison.SOURCES]["f0"]
        assert list(row) == list(metrics_of(Comparison.SOURCES, task=task))
        assert ("MEF-SSIM" in row) == (task == "mef")
        planes = [luma(picture.values) for picture in (fused["f0"], *sources)]
        assert row == {
            name: metric.compute(planes[0], planes[1:])
            for name, metric in metrics_of(Comparison.SOURCES, task=task).items()
        }


def test_what_metrics_make_of_a_plane_is_made_once_for_all_threads() -> None:
    sources = [Prepared(random_plane(13 + i, 176, 176)) for i in range(2)]
    pictures = [random_plane(20 + i, 176, 176) for i in range(4)]
    metrics = metrics_of(Comparison.SOURCES)
    expected = [[metric.compute(f, [s.plane for s in sources]) for metric in metrics.values()] for f in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda f: [metric.compute(f, sources) for metric in metrics.values()], pictures))
    assert found == expected
    calls: list[Prepared] = []

    def make(plane: Prepared) -> int:
        calls.append(plane)
        return len(calls)

    assert [sources[0].once(make), sources[0].once(make)] == [1, 1]
    sources[0].forget()
    assert sources[0].once(make) == 2


# --- published scores


def stretched(plane: Plane) -> Plane:
    return np.floor((plane - plane.min()) / np.ptp(plane) * 255 + 0.5)


@needs_golden
def test_vifb_scores_are_met_in_their_own_convention() -> None:
    """VIFB: per channel, MI of stretched images, SF over the planes side by side and divided by height * width."""
    n_compared = 0
    for image, method, published in golden("vifb"):
        fused, visible, infrared = (
            read(DATA / "golden" / "vifb" / folder / f"{image}.jpg") for folder in (method, "VI", "IR")
        )
        qabf = mean_over_rgb(METRICS["Qabf"], fused, visible, infrared)
        mi = mean_over_rgb(
            lambda f, s: METRICS["MI"](stretched(f), [stretched(source) for source in s]), fused, visible, infrared
        )
        side_by_side = np.hstack(list(np.moveaxis(fused, 2, 0))).astype(np.float64)
        height, width = side_by_side.shape
        rows, columns = squared_frequencies(side_by_side)
        sf = math.sqrt(rows * (width - 1) / width + columns * (height - 1) / height)
        expected = [published[name] for name in ("Qabf", "Mutinf", "Spatial_frequency")]
        assert [qabf, mi, sf] == pytest.approx(expected, rel=5e-5)
        n_compared += 1
    assert n_compared == 24


@needs_golden
def test_tno_scores_are_met() -> None:
    """Linfeng-Tang: gray, SF on 0-1, MI in bits and blurred at 255 by uint8 saturation, PSNR of an error on 0-1."""
    n_compared = 0
    for image, method, published in golden("tno"):
        fused, visible, infrared = (
            luma(read(DATA / "golden" / "tno" / folder / image)) for folder in (method, "vi", "ir")
        )
        scores = {name: METRICS[name](fused, [visible, infrared]) for name in ("EN", "SF", "PSNR", "MI", "Qabf")}
        assert scores["EN"] == pytest.approx(published["EN"], abs=1e-9)
        assert scores["SF"] / 255 == pytest.approx(published["SF"], abs=1e-9)
        assert scores["PSNR"] + 20 * math.log10(255) == pytest.approx(published["PSNR"], abs=1e-9)
        assert -0.036 < scores["MI"] / math.log(2) - published["MI"] < 0
        assert scores["Qabf"] == pytest.approx(published["Qabf"], abs=0.011)
        n_compared += 1
    assert n_compared == 16


# Measured by other code on other pairs of the same split, in the order of COLUMNS.
COLUMNS = {
    Convention.Y: ("MI", "VIF", "SF", "Qcb", "Qabf", "Qy", "SSIM"),
    Convention.RWKVFUSION: ("MI", "VIF", "SF", "Qcb", "Qabf", "Qy"),
}
MEASURED = {
    Convention.Y: {
        "visible": (4.782, 1.046, 10.20, 0.661, 0.650, 1.000, 1.382),
        "mean": (1.834, 0.691, 5.81, 0.509, 0.364, 0.663, 1.438),
        "maximum": (4.532, 1.049, 10.59, 0.552, 0.712, 0.975, 1.388),
    },
    Convention.RWKVFUSION: {
        "visible": (4.756, 1.024, 10.32, 0.700, 0.664, 0.990),
        "mean": (1.582, 0.796, 6.19, 0.507, 0.370, 0.826),
        "maximum": (4.077, 0.883, 10.72, 0.590, 0.694, 0.975),
    },
}


def in_colour_of(picture: npt.NDArray[np.uint8], plane: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)
    colours[..., 0] = plane
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_YCrCb2RGB))


@needs_msrs
@pytest.mark.slow
@pytest.mark.parametrize("convention", [*Convention])
def test_msrs_floor_lines(convention: Convention) -> None:
    """Visible alone, and the mean and the pixelwise maximum of the luma under the visible picture's colour."""
    root = DATA / "dev" / "MSRS" / "test"
    ours: dict[str, list[list[float]]] = {}
    for path in sorted((root / "vi").iterdir())[::11]:
        visible, infrared = read(path), read(root / "ir" / path.name)
        grey = cv2.cvtColor(visible, cv2.COLOR_RGB2YCrCb)[..., 0]
        lines = {
            "visible": visible,
            "mean": in_colour_of(visible, (grey.astype(float) + infrared + 1) // 2),
            "maximum": in_colour_of(visible, np.maximum(grey, infrared)),
        }
        if convention is Convention.Y:
            lines |= {"maximum": np.maximum(luma(visible), infrared).astype(np.uint8)}
            lines |= {"mean": ((luma(visible) + infrared + 1) // 2).astype(np.uint8)}
        scene = Scene(path.name, "vif", (Picture("a", visible), Picture("b", np.atleast_3d(infrared))))
        pictures = {f"our {name}": Picture(name, np.atleast_3d(values)) for name, values in lines.items()}
        rows = score(scene, pictures, convention).rows[Comparison.SOURCES]
        for name in lines:
            ours.setdefault(name, []).append([rows[f"our {name}"][metric] for metric in COLUMNS[convention]])
    for name, values in ours.items():
        means = dict(zip(COLUMNS[convention], np.mean(values, axis=0), strict=True))
        expected = dict(zip(COLUMNS[convention], MEASURED[convention][name], strict=True))
        assert means == pytest.approx(expected, rel=0.07), name
