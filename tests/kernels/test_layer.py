"""The network's parts in one C++ call each against the same parts from torch's operations, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkvfusion.kernels import fused as fused_parts
from rwkvfusion.kernels import training
from rwkvfusion.kernels.backends import cpu
from rwkvfusion.kernels.bench import threads
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.layers import BRWKV
from rwkvfusion.model.network.mfm import ModalFusion
from rwkvfusion.model.network.network import DecoderLevel, RWKVFusion

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=str(cpu.unavailable()))


def layer(width: int, block: int, hidden_ratio: float = 2.0, **form: Any) -> BRWKV:
    made = BRWKV(width, hidden_ratio, form.pop("scan", 1), block, None, **form).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
            elif "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm().clamp_min(1e-6))


ALIGNED = [
    {"align": align, "scan": scan, "decay": decay, "epsilon": epsilon}
    for align, scan in (("aligned", 1), ("crossed", 1), ("crossed", 2))
    for decay, epsilon in (("relative", None), ("token", 1e-5))
]


# 64 tokens are a chunk: sizes around one, two and three of them, odd rests, and maps of one row or column.
@pytest.mark.parametrize("size", [(1, 1), (1, 63), (64, 1), (5, 13), (9, 7), (2, 65), (11, 17), (13, 10), (31, 33)])
@pytest.mark.parametrize("block", [0, 1])
def test_fused_is_the_layer(size: tuple[int, int], block: int) -> None:
    torch.manual_seed(0)
    made, x = layer(32, block), torch.randn(2, *size, 32)
    before = x.clone()
    with torch.no_grad():
        fused = made.fused(x.clone())
        exact = made.double().plain(x.double())
    assert fused is not None
    assert float((fused - exact).norm() / exact.norm()) < 3e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("form", ALIGNED, ids=lambda form: "-".join(map(str, form.values())))
@pytest.mark.parametrize("size", [(1, 1), (64, 1), (5, 13), (2, 65), (11, 17)])
@pytest.mark.parametrize("block", [0, 1])
def test_fused_is_the_aligned_layer(form: dict[str, Any], size: tuple[int, int], block: int) -> None:
    torch.manual_seed(0)
    made, x = layer(32, block, **form), torch.randn(2, *size, 32)
    with threads(1), torch.no_grad():
        fused = made.fused(x.clone())
    with threads(2), torch.no_grad():
        of_two = made.fused(x.clone())
    with torch.no_grad():
        exact = made.double().plain(x.double())
    assert fused is not None
    assert of_two is not None
    assert distance(fused, exact) < 3e-6
    assert torch.equal(fused, of_two)


@pytest.mark.parametrize("form", ALIGNED, ids=lambda form: "-".join(map(str, form.values())))
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (13, 10), (37, 61)])
@pytest.mark.parametrize(("width", "ratio", "n_threads"), [(16, 2.0, 1), (48, 1.0, 2)])
def test_gradients_are_those_of_the_layer(
    form: dict[str, Any], size: tuple[int, int], width: int, ratio: float, n_threads: int
) -> None:
    """Against float64, and as near to it as torch's own operations are."""
    torch.manual_seed(1)
    made, x = layer(width, 1, ratio, **form), torch.randn(2, *size, width, requires_grad=True)
    names, parameters = zip(*made.named_parameters(), strict=True)
    with threads(n_threads):
        result = made.fused(x)
        assert result is not None
        grad = torch.randn_like(result)
        ours = torch.autograd.grad(result, [x, *parameters], grad)
    plain = torch.autograd.grad(made.plain(x), [x, *parameters], grad)
    exact = copy.deepcopy(made).double()
    wide = x.detach().double().requires_grad_()
    expected = exact.plain(wide)
    wanted = torch.autograd.grad(expected, [wide, *exact.parameters()], grad.double())
    assert distance(result, expected) < 3e-6
    for name, one, other, true in zip(("x", *names), ours, plain, wanted, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == true.shape
        if size == (1, 1) and name in ("spatial.decay", "spatial.bonus"):  # nothing but rounding
            assert float(one.abs().max()) < 1e-4, name
        else:
            assert distance(one, true) < max(3e-6, 3 * distance(other, true)), name


@pytest.mark.parametrize("shape", [(1, 16), (2, 5, 13, 32), (3, 40, 33, 48)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_norm_and_its_gradients(shape: tuple[int, ...], n_threads: int) -> None:
    torch.manual_seed(2)
    x, gain = torch.randn(shape, requires_grad=True), torch.rand(shape[-1], requires_grad=True)
    grad = torch.randn(shape)
    with threads(n_threads):
        ours = training.rms_norm(x, gain, 1e-5)
        assert ours is not None
        found = torch.autograd.grad(ours, (x, gain), grad)
    wide = [t.detach().double().requires_grad_() for t in (x, gain)]
    exact = torch.nn.functional.rms_norm(wide[0], wide[1].shape, wide[1], 1e-5)
    wanted = torch.autograd.grad(exact, wide, grad.double())
    for one, true in zip((ours, *found), (exact, *wanted), strict=True):
        assert distance(one, true) < 2e-6


def test_gradients_of_part_of_the_weights_and_of_a_second_order() -> None:
    made = layer(16, 0, align="crossed")
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(name == "channel.key.weight")
    x = torch.randn(1, 6, 7, 16)
    made(x).sum().backward()
    assert made.channel.key.weight.grad is not None
    x.requires_grad_()
    (first,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.sampled_from([16, 48]),
    ratio=st.sampled_from([1.0, 3.0]),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_fused_at_any_size_and_number_of_threads(
    height: int, width: int, channels: int, ratio: float, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    made, x = layer(channels, seed % 2, ratio), torch.randn(1, height, width, channels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            fused = made.fused(x.clone())
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        exact = made.double().plain(x.double())
    assert fused is not None
    assert float((fused - exact).norm() / exact.norm()) < 5e-6


def test_what_it_cannot_do_goes_the_plain_way() -> None:
    x = torch.randn(1, 8, 8, 32)
    made = layer(32, 0)
    assert made.fused(x) is None  # a gradient is wanted
    assert layer(16, 0, align="aligned").double().fused(torch.randn(1, 8, 8, 16).double()) is None
    assert layer(16, 0, 1.1, align="aligned").fused(torch.randn(1, 8, 8, 16)) is None
    with torch.no_grad():
        assert made.double().fused(x.double()) is None
        assert layer(24, 0).fused(torch.randn(1, 8, 8, 24)) is None
        assert layer(24, 0, align="crossed").fused(torch.randn(1, 8, 8, 24)) is None
        assert BRWKV(32, 2.0, 3, 0, None, align="crossed").fused(x) is None
        assert BRWKV(32, 2.0, 2, 0, None).fused(x) is None
        assert BRWKV(32, 2.0, 1, 0, 4).fused(x) is None
        strong = layer(32, 0)
        strong.spatial.decay += 1e4
        assert strong.fused(x) is None


FORMS: dict[str, dict[str, Any]] = {
    "before": {},
    "lean": {"align": "crossed", "decay": "token", "gate_window": 32, "skip": "channel", "local": True},
    "chosen": {
        "align": "crossed",
        "scan": 2,
        "decay": "token",
        "gate_window": 32,
        "decoder_images": True,
        "skip": "channel",
        "local": True,
        "epsilon": 1e-5,
    },
}


@pytest.mark.parametrize("levels", [(1, 1), (2, 1)])
@pytest.mark.parametrize("size", [(24, 40), (61, 83), (128, 7)])
@pytest.mark.parametrize("form", FORMS)
def test_network_without_gradients_is_the_network(
    levels: tuple[int, ...], size: tuple[int, int], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fused part at once: pooled text, masks at full size and below, padding, decoder, a batch of two."""
    torch.manual_seed(1)
    config = NetworkConfig(
        (1, 3), 2, width=16, levels=levels, channel_factors=(1, 2), text_width=8, max_objects=5, **FORMS[form]
    )
    network = RWKVFusion(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith(("decay", "bonus")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    images = [torch.rand(2, 1, *size), torch.rand(2, 3, *size)]
    mask = torch.randint(0, 8, (2, *size), dtype=torch.uint8) * (torch.rand(2, *size) < 0.3)
    text, real = torch.randn(2, 6, 8), torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    calls = []
    for name in ("layer", "aligned", "upsample", "Fusion", "local"):
        real_call = getattr(fused_parts, name)
        monkeypatch.setattr(fused_parts, name, lambda *a, name=name, call=real_call: calls.append(name) or call(*a))
    kept = [t.clone() for t in (*images, mask, text)]
    with torch.no_grad():
        fused = {
            "guided": network(images, mask, text, real),
            "no mask": network(images, None, text, real),
            "no text": network(images, mask),
        }
    n_layers, aligned, images_twice = 2 * sum(levels) + 1, form != "before", form == "chosen"
    expected_calls = {
        "layer": 0 if aligned else 3 * n_layers,
        "aligned": 3 * n_layers if aligned else 0,
        "upsample": 6,
        "Fusion": (6 if images_twice else 3) * sum(levels),
        "local": 6 if aligned else 0,
    }
    assert {name: calls.count(name) for name in expected_calls} == expected_calls
    assert all(torch.equal(a, b) for a, b in zip(kept, (*images, mask, text), strict=True))
    exact = network.double()
    images, text = [image.double() for image in images], text.double()
    with torch.no_grad():
        expected = {
            "guided": exact(images, mask, text, real),
            "no mask": exact(images, None, text, real),
            "no text": exact(images, mask),
        }
    for name, ours in fused.items():
        assert float((ours - expected[name]).norm() / expected[name].norm()) < 2e-5, name
    assert float((expected["guided"] - expected["no mask"]).abs().max()) > 1e-3


@pytest.mark.parametrize("window", [None, 8, 24, 400])
@pytest.mark.parametrize("size", [(8, 8), (24, 72), (40, 136)])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_fusion_of_the_decoder(window: int | None, size: tuple[int, int], n_threads: int) -> None:
    """The gate's window is smaller than the map, and larger."""
    torch.manual_seed(3)
    config = NetworkConfig((1, 2), 1, width=32, gate_window=window, epsilon=1e-5)
    made = ModalFusion(config, 0, 0, guided=False)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, images = torch.randn(2, *size, 32), torch.rand(2, *size, 3)
    before = x.clone()
    with threads(n_threads), torch.no_grad():
        ours = made.fused(x, images, None, None)[0]
        exact = made.double()(x.double(), images.double(), None, None)[0]
    assert distance(ours, exact) < 3e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("skip", ["scalar", "channel"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 66)])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_upsampling_and_the_convolution_behind_it(skip: Any, size: tuple[int, int], n_threads: int) -> None:
    torch.manual_seed(4)
    level = DecoderLevel(NetworkConfig((1, 1), 1, width=32, skip=skip, local=True), 0, 0)
    assert level.local is not None
    with torch.no_grad():
        for parameter in (level.up.weight, level.skip, level.local.weight):
            parameter.copy_(torch.randn_like(parameter))
    x, encoded = torch.randn(2, *size, 32), torch.randn(2, 2 * size[0], 2 * size[1], 32)
    level.layers, images = torch.nn.Sequential(), encoded[..., :2]
    with torch.no_grad(), threads(n_threads):
        ours = level(x, encoded.clone(), images)
        exact = level.double()(x.double(), encoded.double(), images.double())
    assert distance(ours, exact) < 1e-6


@pytest.mark.parametrize("highest", [0, 1, 3])
def test_a_mask_of_few_objects_is_the_same_with_gradients_and_without(highest: int) -> None:
    """Without them only the objects that are there have a channel below full size."""
    torch.manual_seed(5)
    network = RWKVFusion(NetworkConfig((1, 1), 1, width=16, max_objects=5, text_width=8)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith(("decay", "bonus")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    images, mask = [torch.rand(2, 1, 32, 48) for _ in range(2)], torch.zeros(2, 32, 48, dtype=torch.uint8)
    mask[0, 4:20, 8:30] = highest
    with torch.no_grad():
        without = network(images, mask)
    assert distance(without, network.double()([image.double() for image in images], mask)) < 2e-5
