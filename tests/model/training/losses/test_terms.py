"""The terms beside the paper's: against the exact metrics, their gradients, and pictures that have nothing in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from rwkvfusion.model.metrics.luma import edges as metric_edges
from rwkvfusion.model.metrics.luma import fidelity, perception, structure
from rwkvfusion.model.metrics.luma.planes import Plane, luma, prepared, stretched
from rwkvfusion.model.training.losses import loss as loss_module
from rwkvfusion.model.training.losses.config import TERMS, LossConfig, loss_preset
from rwkvfusion.model.training.losses.filters import edges
from rwkvfusion.model.training.losses.loss import Terms, training_loss
from rwkvfusion.model.training.losses.perception import qabf, qcb
from rwkvfusion.model.training.losses.presets import NAMES
from rwkvfusion.model.training.losses.similarity import ssim7, vif

OFF = dict.fromkeys(TERMS, 0.0)


def only(*terms: str, **settings: object) -> LossConfig:
    """Those terms with weight 1, and no other."""
    return LossConfig.model_validate({**OFF, **dict.fromkeys(terms, 1.0), **settings}).resolved("vif")


def noise(n: int, *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(0.05 + 0.9 * torch.rand(n, *shape, generator=generator, dtype=dtype))


def objects_of(images: Tensor) -> Tensor:
    """A mask of the same size with two objects in the first sample and none in the others."""
    mask = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8)
    mask[0, 3:8, 4:9], mask[0, 10:14, 2:12] = 1, 7
    return mask


def value(fused: Tensor, sources: list[Tensor], config: LossConfig) -> tuple[Tensor, Terms]:
    return training_loss(fused, sources, config, mask=objects_of(fused), target=sources[0].flip(-1))


# --- against the metrics


def photographs() -> tuple[Plane, Plane]:
    """Two sensors of one scene, from a photograph that one sees inverted, blurred and in one half dimmed.

    Black at the rim, whose edges against the zeros beyond it the metric counts and crops cannot have.
    """
    first = data.camera()[64:304, 100:420]
    second = cv2.GaussianBlur(255 - first, (0, 0), 1.5).astype(np.float64)
    second[:, 160:] = 0.4 * second[:, 160:] + 20
    fade = np.minimum(*np.meshgrid(*(np.minimum(np.arange(n), n - 1 - np.arange(n)) for n in (320, 240)))) / 32
    fade = np.minimum(fade, 1)
    return np.floor(fade * first + 0.5), np.floor(fade * second + 0.5)


def msrs(root: Path) -> tuple[Plane, Plane]:
    folder = root / "dev" / "MSRS" / "test"
    name = min(path.name for path in (folder / "vi").iterdir())
    planes = [cv2.imread(str(folder / kind / name), cv2.IMREAD_COLOR)[..., ::-1] for kind in ("vi", "ir")]
    return luma(planes[0]), luma(planes[1])


FUSED: dict[str, Callable[[Plane, Plane], Plane]] = {
    "maximum": np.maximum,
    "mean": lambda a, b: (a + b) / 2,
    "nearer the first": lambda a, b: 0.7 * np.maximum(a, b) + 0.3 * a,
}


def unit(*planes: Plane) -> Tensor:
    return torch.from_numpy(np.stack(planes)).float()[:, None, None] / 255


def check_against_metrics(a: Plane, b: Plane, fused: Plane, *, orientation: float) -> None:
    """`orientation`: how much of Qabf is due to what the metric has for the angle of edges that are all but level."""
    found, sources, extent = unit(fused)[0], unit(a, b), (fused.shape[0], fused.shape[1])
    assert float(ssim7(found, sources)) == pytest.approx(structure.ssim(fused, [a, b]), abs=0.001)
    assert float(vif(found, sources, floor=0)) == pytest.approx(fidelity.vif(fused, [a, b]), abs=0.001)
    assert float(vif(found, sources)) == pytest.approx(fidelity.vif(fused, [a, b]), abs=0.025)
    exact = metric_edges.qabf(fused, [a, b])
    assert float(qabf(edges(found), edges(sources), slack=0)) == pytest.approx(exact, abs=orientation)
    assert float(qabf(edges(found), edges(sources))) == pytest.approx(exact, abs=0.05)
    # It does not stretch grey levels to 0-255, as a crop does not know those of its picture.
    levels = [stretched(prepared(plane)) for plane in (fused, a, b)]
    assert float(qcb(unit(levels[0])[0], unit(*levels[1:]), extent=extent)) == pytest.approx(
        perception.qcb(fused, [a, b]), abs=0.04
    )


@pytest.mark.parametrize("how", FUSED)
def test_forms_with_gradients_are_those_of_the_metrics(how: str) -> None:
    a, b = photographs()
    check_against_metrics(a, b, np.floor(FUSED[how](a, b) + 0.5), orientation=0.03)


@pytest.mark.parametrize("how", FUSED)
def test_they_are_on_pictures_of_two_sensors(how: str, real_data: Path) -> None:
    a, b = msrs(real_data)
    check_against_metrics(a, b, np.floor(FUSED[how](a, b) + 0.5), orientation=0.012)


def test_they_rank_pictures_as_the_metrics_do() -> None:
    """Of pictures between the mean and the sharper source, each form prefers those that its metric does."""
    a, b = photographs()
    pictures = [np.floor((1 - t) * (a + b) / 2 + t * np.maximum(a, b) + 0.5) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    sources = unit(a, b)
    forms: list[tuple[Callable[[Tensor], Tensor], Callable[..., float]]] = [
        (lambda f: ssim7(f, sources), structure.ssim),
        (lambda f: vif(f, sources), fidelity.vif),
        (lambda f: qabf(edges(f), edges(sources)), metric_edges.qabf),
    ]
    for form, metric in forms:
        wanted = [metric(picture, [a, b]) for picture in pictures]
        found = [float(form(unit(picture)[0])) for picture in pictures]
        assert np.argsort(found).tolist() == np.argsort(wanted).tolist()


# --- gradients


@pytest.mark.parametrize("n_sources", [2, 3])
@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_right(term: str, n_sources: int) -> None:
    fused, *sources = noise(n_sources + 1, 1, 1, 17, 18)
    # Also beyond 0-1, for the term that is about that.
    fused = (1.2 * fused - 0.1 if term == "clamp" else fused).requires_grad_()
    config = only(term, steeper_gain=1.02, anchor_to="steeper")
    # What is around objects has no gradient by intent, so that is held still.
    moving = objects_of(fused)[:, None] > 0 if term == "objects" else torch.ones_like(fused, dtype=torch.bool)
    still = fused.detach().clone()
    assert torch.autograd.gradcheck(lambda x: value(torch.where(moving, x, still), sources, config)[0], fused)


@pytest.mark.parametrize("term", [term for term in TERMS if term != "target" and "target_" not in term])
def test_the_order_of_sources_does_not_matter(term: str) -> None:
    fused, *sources = noise(4, 1, 1, 24, 24)
    config, mask = only(term, anchor_to="exposed"), objects_of(fused)
    values = [
        float(training_loss(fused, [sources[i] for i in order], config, mask=mask)[0])
        for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))
    ]
    assert values == pytest.approx([values[0]] * 3)
    assert values[0] > 0 or term == "clamp"


PLAIN = {"black": 0.0, "grey": 0.5, "white": 1.0}


@pytest.mark.parametrize("n_sources", [2, 3])
@pytest.mark.parametrize("level", PLAIN)
@pytest.mark.parametrize("fused_is", ["the same", "another", "noise"])
def test_pictures_with_nothing_in_them_have_finite_losses_and_gradients(
    level: str, fused_is: str, n_sources: int
) -> None:
    flat = torch.full((2, 1, 48, 48), PLAIN[level])
    fused = {"the same": flat, "another": 0.7 - flat / 2, "noise": noise(1, *flat.shape, dtype=torch.float32)[0]}
    for sources in ([flat] * n_sources, [flat] * (n_sources - 1) + [noise(1, *flat.shape, dtype=torch.float32)[0]]):
        for name in ("steeper", "sharper", "exposed"):
            picture = fused[fused_is].clone().requires_grad_()
            loss, terms = value(picture, sources, only(*TERMS, anchor_to=name))
            loss.backward()
            assert all(map(torch.isfinite, terms.values())), terms
            assert picture.grad is not None
            assert bool(torch.isfinite(picture.grad).all())
            # A crop of rounding noise must not outweigh those with something in them.
            assert float(picture.grad.abs().sum()) < 1e3


def test_terms_are_best_where_all_sources_are_one_and_the_picture_is_it() -> None:
    a, _ = photographs()
    picture = unit(a)[0]
    _, terms = training_loss(picture, [picture, picture], only(*(set(TERMS) - {"target_edges"}), steeper_gain=1.0))
    for name, term in terms.items():
        # Its sigmoids do not reach 1.
        assert float(term) == pytest.approx(0, abs={"qabf": 0.02, "vif": 1e-3}.get(name, 1e-4)), name


def test_small_crops_have_the_scales_that_fit() -> None:
    for side in (11, 16, 17, 24, 40, 41):
        fused, *sources = noise(3, 1, 1, side, side)
        fused.requires_grad_()
        loss, terms = value(fused, sources, loss_preset("vif"))
        loss.backward()
        assert (float(terms["vif"]) < 2) == (side >= 17)
        assert fused.grad is not None
        assert bool(torch.isfinite(fused.grad).all())


# --- what a term asks for


def test_steeper_asks_for_the_signed_edges_of_the_steeper_source() -> None:
    weak = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    weak[..., 8:] = 0.2
    strong = 0.9 - 3 * weak
    config = only("steeper", steeper_gain=1.0)
    for order in ([weak, strong], [strong, weak]):
        assert float(training_loss(strong, order, config)[0]) == pytest.approx(0, abs=1e-12)
        assert float(training_loss(1 - strong, order, config)[0]) > 0.1
    steep = 0.5 + 1.02 * (strong - 0.6)
    assert float(training_loss(steep, [weak, strong], only("steeper", steeper_gain=1.02))[0]) == pytest.approx(
        0, abs=1e-12
    )


def test_nearer_is_the_distance_to_the_nearer_source() -> None:
    fused = torch.linspace(0, 1, 121, dtype=torch.float64).reshape(1, 1, 11, 11)
    sources = [torch.zeros_like(fused), torch.full_like(fused, 0.8)]
    expected = torch.minimum(fused, (fused - 0.8).abs()).mean()
    assert float(training_loss(fused, sources, only("nearer"))[0]) == pytest.approx(float(expected))


def test_what_lies_outside_is_drawn_back_and_counts_as_clamped_elsewhere() -> None:
    fused, a, b = noise(3, 1, 1, 48, 48)
    outside = fused.clone()
    outside[..., 10:20, 10:20] = 1.5
    for term in ("ssim7", "qabf", "vif", "qcb", "steeper"):
        found = [float(training_loss(x, [a, b], only(term))[0]) for x in (outside, outside.clamp(0, 1))]
        assert found[0] == found[1]
    assert float(training_loss(outside, [a, b], only("clamp"))[0]) == pytest.approx(0.5 * 100 / 48**2)


def test_a_target_counts_where_a_batch_has_one() -> None:
    fused, a, b, truth = noise(4, 2, 1, 16, 16)
    names = ("target", "target_edges", "target_squared")
    config = only(*names, "nearer")
    _, without = training_loss(fused, [a, b], config)
    # Ranks add up their terms: all must have the same ones.
    assert {name: float(without[name]) for name in names} == dict.fromkeys(names, 0.0)
    assert float(without["nearer"]) > 0
    _, terms = training_loss(fused, [a, b], config, target=truth)
    assert float(terms["target"]) == pytest.approx(float((fused - truth).abs().mean()))
    assert float(terms["target_squared"]) == pytest.approx(float(((fused - truth) ** 2).mean()))
    assert float(terms["target_edges"]) > 0
    _, terms = training_loss(truth, [a, b], config, target=truth)
    assert {float(terms[name]) for name in names} == {0.0}


# --- the sum


def test_the_loss_is_the_sum_of_its_terms_by_their_weights() -> None:
    fused, *sources = noise(3, 2, 1, 48, 48)
    config = loss_preset("vif")
    loss, terms = value(fused, sources, config)
    assert set(terms) == {name for name in TERMS if getattr(config, name)}
    assert float(loss) == pytest.approx(sum(getattr(config, name) * float(term) for name, term in terms.items()))
    assert not any(term.requires_grad for term in terms.values())


def test_terms_without_weight_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("it was computed")

    fused, *sources = noise(3, 1, 1, 16, 16)
    for name in set(TERMS) - {"nearer"}:
        monkeypatch.setitem(loss_module._TERMS, name, never)
    assert set(training_loss(fused, sources, only("nearer"))[1]) == {"nearer"}


def test_half_precision_is_computed_in_float32() -> None:
    images = [image.to(torch.bfloat16) for image in noise(3, 1, 1, 48, 48)]
    config = only(*TERMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = value(images[0], images[1:], config)[0]
    exact = value(images[0].double(), [image.double() for image in images[1:]], config)[0]
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-4)


def test_filters_made_in_inference_mode_serve_training() -> None:
    fused, *sources = noise(3, 1, 1, 53, 47)
    with torch.inference_mode():
        value(fused, sources, only(*TERMS))
    fused.requires_grad_()
    value(fused, sources, only(*TERMS))[0].backward()
    assert fused.grad is not None


def test_every_weight_has_a_term_and_every_term_a_weight() -> None:
    assert set(loss_module._TERMS) == set(TERMS)
    settings = {"intensity_mode", "steeper_gain", "anchor_to", "object_lift", "others"}
    assert set(TERMS) == set(LossConfig.model_fields) - settings
    assert set(NAMES) == set(LossConfig.model_fields)
    assert all(field.description for field in LossConfig.model_fields.values())
