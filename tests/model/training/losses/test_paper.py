"""The paper's terms (eq. 19-23): against other programs, and by values that are known."""

from typing import Any

import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity as reference_ssim
from torch import Tensor

from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.losses.loss import Terms, training_loss
from rwkvfusion.model.training.losses.paper import sobel, structural_similarity


def fusion_loss(fused: Tensor, sources: list[Tensor], **settings: Any) -> tuple[Tensor, Terms]:
    return training_loss(fused, sources, LossConfig(**settings).resolved("vif", paper=True))


def sharpening_loss(fused: Tensor, target: Tensor, **settings: Any) -> tuple[Tensor, Terms]:
    return training_loss(fused, (), LossConfig(**settings).resolved("hmif", paper=True), target=target)


def images(n: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.rand(n, *shape, generator=generator, dtype=dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_ssim_is_that_of_scikit_image(dtype: torch.dtype, tolerance: float) -> None:
    a, b = images(2, 2, 3, 24, 31, dtype=dtype)
    b = 0.7 * a + 0.3 * b
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    pairs = zip(a.flatten(0, 1).double().numpy(), b.flatten(0, 1).double().numpy(), strict=True)
    expected = sum(reference_ssim(x, y, **options) for x, y in pairs) / 6
    assert float(structural_similarity(a, b)) == pytest.approx(expected, abs=tolerance)
    assert float(structural_similarity(a, a)) == pytest.approx(1)


def test_sobel_is_that_of_scipy() -> None:
    (a,) = images(1, 1, 1, 13, 17)
    plane = a[0, 0].numpy()
    expected = abs(ndimage.sobel(plane, 0, mode="nearest")) + abs(ndimage.sobel(plane, 1, mode="nearest"))
    torch.testing.assert_close(sobel(a)[0, 0], torch.from_numpy(expected))


def test_terms_have_known_values_on_plain_images() -> None:
    """Flat images have no edges, and the SSIM of flats is its luminance term."""
    fused, first, second = (torch.full((1, 1, 16, 16), value, dtype=torch.float64) for value in (0.5, 0.25, 1.0))
    total, terms = fusion_loss(fused, [first, second], intensity=3, gradient=5, ssim=7)
    similarity = [(2 * 0.5 * s + 1e-4) / (0.25 + s * s + 1e-4) for s in (0.25, 1.0)]
    assert float(terms["intensity"]) == pytest.approx(0.75)
    assert float(terms["gradient"]) == pytest.approx(0, abs=1e-12)
    assert float(terms["ssim"]) == pytest.approx(2 - sum(similarity))
    assert float(total) == pytest.approx(3 * 0.75 + 7 * (2 - sum(similarity)))
    _, terms = fusion_loss(fused, [first, second], intensity_mode="max")
    assert float(terms["intensity"]) == pytest.approx(0.5)
    total, terms = sharpening_loss(fused, first, ssim=0.5)
    assert float(total) == pytest.approx(0.25 + 0.5 * (1 - similarity[0]))


def test_the_gradient_term_asks_for_the_stronger_edge_of_either_sign() -> None:
    weak = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    weak[..., 8:] = 0.2
    strong = 1 - 4 * weak
    for order in ([weak, strong], [strong, weak]):
        assert float(fusion_loss(strong, order)[1]["gradient"]) == 0
        assert float(fusion_loss(1 - strong, order)[1]["gradient"]) == pytest.approx(0, abs=1e-12)
        assert float(fusion_loss(weak, order)[1]["gradient"]) > 0.1


def test_gradients_are_right_and_half_precision_is_computed_in_float32() -> None:
    fused, first, second = images(3, 1, 2, 11, 12)
    fused.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fusion_loss(x, [first, second], intensity_mode="max")[0], fused)
    assert torch.autograd.gradcheck(lambda x: fusion_loss(x, [first, second])[0], fused)
    assert torch.autograd.gradcheck(lambda x: sharpening_loss(x, first)[0], fused)
    half = [image.detach().to(torch.bfloat16) for image in (fused, first, second)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = fusion_loss(half[0], half[1:])[0]
    exact = fusion_loss(half[0].double(), [image.double() for image in half[1:]])[0]
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-5)


def test_errors_name_what_is_wrong() -> None:
    a, b = images(2, 1, 1, 16, 16)
    with pytest.raises(ValueError, match="two or more sources"):
        fusion_loss(a, [b])
    with pytest.raises(ValueError, match="one shape"):
        fusion_loss(a, [b, b[..., 1:]])
    with pytest.raises(ValueError, match="at least 11 x 11"):
        sharpening_loss(a[..., :10], b[..., :10])
