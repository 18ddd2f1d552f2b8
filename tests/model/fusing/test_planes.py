"""Colour: an exact inverse, agreement with Pillow's JPEG YCbCr, and the chroma rule pixel by pixel."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from rwkvfusion.model.fusing import planes as planes_module
from rwkvfusion.model.fusing.planes import fuse_chroma, is_grey, rgb_to_ycbcr, true_chroma, with_chroma, ycbcr_to_rgb

unit_planes = arrays(np.float32, (3, 2, 3), elements=st.floats(0, 1, width=32))


@given(unit_planes)
def test_the_inverse_is_exact(planes: np.ndarray) -> None:
    rgb = torch.from_numpy(planes)
    assert torch.allclose(ycbcr_to_rgb(rgb_to_ycbcr(rgb)), rgb, rtol=0, atol=1e-6)
    assert torch.allclose(rgb_to_ycbcr(ycbcr_to_rgb(rgb)), rgb, rtol=0, atol=1e-6)
    double = rgb.double()
    assert torch.allclose(ycbcr_to_rgb(rgb_to_ycbcr(double)), double, rtol=0, atol=1e-14)


def test_it_is_the_ycbcr_of_jpeg() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pillow = torch.from_numpy(np.array(Image.fromarray(rgb).convert("YCbCr"))).double().permute(2, 0, 1)
    ours = rgb_to_ycbcr(torch.from_numpy(rgb).double().permute(2, 0, 1)[None] / 255)[0] * 255
    ours[1:] += 0.5  # JPEG puts neutral chroma at 128, not 127.5
    assert (ours - pillow).abs().max() <= 1.0


def test_grey_is_neutral() -> None:
    grey = torch.linspace(0, 1, 256).reshape(1, 16, 16).repeat(3, 1, 1)
    luma, cb, cr = rgb_to_ycbcr(grey)
    assert torch.allclose(luma, grey[0], atol=1e-6)
    assert torch.allclose(cb, torch.full_like(cb, 0.5), atol=1e-6)
    assert torch.allclose(cr, torch.full_like(cr, 0.5), atol=1e-6)


@settings(max_examples=50)
@given(arrays(np.float64, (3, 5), elements=st.floats(0, 1)), st.permutations(range(3)))
def test_chroma_rule_pixel_by_pixel(values: np.ndarray, order: list[int]) -> None:
    planes = [torch.from_numpy(row) for row in values]
    fused = fuse_chroma(planes)
    for column, pixel in enumerate(values.T):
        weights = [abs(value - 0.5) for value in pixel]
        expected = 0.5
        if sum(weights) > 0:
            expected = sum(v * w for v, w in zip(pixel, weights, strict=True)) / sum(weights)
        assert fused[column].item() == pytest.approx(expected, abs=1e-9)
        assert min(pixel.min(), 0.5) - 1e-12 <= fused[column].item() <= max(pixel.max(), 0.5) + 1e-12
    shuffled = [planes[index] for index in order]
    assert torch.allclose(fuse_chroma(shuffled), fused, rtol=0, atol=1e-12)


def test_colour_passes_grey_modalities() -> None:
    colour = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    grey = torch.full((4, 5), 0.5)
    neutral = torch.stack([grey, grey])
    assert torch.allclose(fuse_chroma([neutral, colour, neutral]), colour, rtol=0, atol=1e-7)
    assert torch.equal(fuse_chroma([grey, grey]), grey)


@settings(max_examples=100)
@given(
    arrays(np.float32, (1, 2, 3), elements=st.floats(0, 1, width=32)),
    arrays(np.float32, (2, 3, 2, 3), elements=st.floats(0, 1, width=32)),
)
def test_a_colour_fits_into_its_luma(fused: np.ndarray, values: np.ndarray) -> None:
    sources = list(torch.from_numpy(values))
    made = with_chroma(torch.from_numpy(fused), sources)
    if made.shape[0] == 1:
        assert all(is_grey(source) for source in sources)
        return
    assert made.min() >= -1e-6
    assert made.max() <= 1 + 1e-6
    luma, cb, cr = rgb_to_ycbcr(made)
    assert torch.allclose(luma, torch.from_numpy(fused)[0], rtol=0, atol=1e-5)
    # Of the hue that the rules give, and nowhere stronger.
    asked = fuse_chroma([rgb_to_ycbcr(source)[1:] for source in sources if not is_grey(source)]) - 0.5
    assert torch.allclose((cb - 0.5) * asked[1], (cr - 0.5) * asked[0], rtol=0, atol=1e-5)
    assert ((cb - 0.5).abs() <= asked[0].abs() + 1e-5).all()


@settings(max_examples=100)
@given(arrays(np.float64, (2, 3, 2, 3), elements=st.floats(0, 1)))
def test_no_chroma_becomes_stronger(values: np.ndarray) -> None:
    sources = list(torch.from_numpy(values))
    for source, chroma in zip(sources, true_chroma(sources, [1, 1]), strict=True):
        before = (rgb_to_ycbcr(source)[1:] - 0.5).square().sum(dim=0)
        assert ((chroma - 0.5).square().sum(dim=0) <= before + 1e-12).all()
        assert torch.equal(true_chroma([source], [1])[0], rgb_to_ycbcr(source)[1:])


@settings(max_examples=100)
@given(arrays(np.float64, 3, elements=st.floats(0, 1)), st.floats(1.5, 4))
def test_a_colour_that_one_exposure_cuts_off_has_the_hue_of_the_other(colour: np.ndarray, gain: float) -> None:
    """Of two exposures the short one shows the whole colour; the hue is the direction of its chroma."""
    assume(np.ptp(colour) > 0.1)
    short = torch.from_numpy(colour)[:, None, None] * 0.9
    assume(rgb_to_ycbcr(short)[0] >= 0.12)
    long = (short * gain).clamp(max=1)
    before = fuse_chroma([rgb_to_ycbcr(one)[1:] for one in (short, long)])
    after = fuse_chroma(true_chroma([short, long], [1, 1]))

    def apart(chroma: torch.Tensor) -> float:
        own = (rgb_to_ycbcr(short)[1:] - 0.5).flatten()
        return 1 - torch.nn.functional.cosine_similarity((chroma - 0.5).flatten(), own, dim=0).item()

    assert apart(after) <= apart(before) + 1e-12
    assert long.max() < 1 or apart(after) < 1e-12
    assert long.max() > 0.95 or torch.equal(before, after)


def test_only_exposures_have_the_hue_of_each_other() -> None:
    """An infrared that is stored as colour, and is not wholly grey, takes no colour from a lamp that is cut off."""
    lamp = torch.tensor([1.0, 0.8, 0.5])[:, None, None].expand(3, 4, 4)
    infrared = torch.full((3, 4, 4), 0.5)
    infrared[2, 0, 0] = 0.504
    luma = rgb_to_ycbcr(lamp)[:1]
    assert (with_chroma(luma, [lamp, infrared])[:, 1:] - lamp[:, 1:]).abs().max() < 1e-6
    assert (with_chroma(luma, [lamp, infrared], exposures=True)[:, 1:] - lamp[:, 1:]).abs().max() > 0.1


def test_strips_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.rand(3, 3, 7, 5, generator=torch.Generator().manual_seed(1)) * 1.4
    sources, luma = list(pictures[:2]), pictures[2, :1].clamp_max(1)
    for exposures in (False, True):
        whole = with_chroma(luma, sources, exposures=exposures)
        with monkeypatch.context() as patched:
            patched.setattr(planes_module, "_STRIP", 10)
            assert torch.equal(with_chroma(luma, sources, exposures=exposures), whole)


def test_a_colour_that_fits_stays_to_the_bit() -> None:
    colour = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    luma = rgb_to_ycbcr(colour)[:1]
    exact = ycbcr_to_rgb(torch.cat([luma, fuse_chroma([rgb_to_ycbcr(colour)[1:]])]))
    assert torch.equal(with_chroma(luma, [colour, luma]), exact)
    # Of a declared scale, values beyond 1 keep their colour.
    bright = colour + 1
    assert (with_chroma(luma + 1, [bright, luma]) - bright).abs().max() < 1e-5
