"""What a network may be beside the paper's letter: how scans are aligned, decays, the gate's window, decoder, heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.kernels.reference import biwkv_reference
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.layers import BRWKV, Order
from rwkvfusion.model.network.mfm import ModalFusion, Text, box_mean, pool
from rwkvfusion.model.network.network import RWKVFusion

BASE = NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=6, max_objects=4)
FORMS = [
    {"align": "aligned"},
    {"align": "crossed"},
    {"align": "crossed", "scan": 2},
    {"align": "crossed", "scan": 3, "decay": "token"},
    {"align": "crossed", "window": 4},
    {"decay": "token"},
    {"gate_window": 16},
    {"decoder_images": True},
    {"skip": "channel", "local": True},
    {"head": "maximum"},
    {"head": "weights", "in_channels": (1, 1, 1)},
    {"epsilon": 1e-5},
]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module with weights away from their start, which leaves much at zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith(("decay", "bonus")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 24)])
def test_every_form_runs_at_every_size_and_trains_every_parameter(form: dict, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    config = replace(BASE, **form)
    made = shaken(RWKVFusion(config))
    pictures = [torch.rand(2, 1, *size) for _ in config.in_channels]
    mask, text = torch.randint(0, 3, (2, *size)), torch.randn(2, 3, 6)
    out = made(pictures, mask, text)
    assert out.shape == (2, 1, *size)
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())
    with torch.no_grad():
        torch.testing.assert_close(made(pictures, mask, text), out.detach(), rtol=1e-4, atol=1e-5)
    twice = {name: value for name, value in config.__dict__.items()}
    assert NetworkConfig(**twice) == config


@pytest.mark.parametrize(
    ("align", "scan", "orders"),
    [
        ("aligned", 1, (Order.COLUMNS,)),
        ("crossed", 1, (Order.COLUMNS,)),
        ("crossed", 2, (Order.ROWS, Order.COLUMNS)),
    ],
)
@pytest.mark.parametrize("decay", ["relative", "token"])
def test_mixing_of_aligned_scans_is_equation_7_of_each_pixel(
    align: str, scan: int, orders: tuple[Order, ...], decay: str
) -> None:
    """Against the plain sum in float64: each group of the inner channels in its own order, the same pixel in all."""
    torch.manual_seed(0)
    height, width, channels = 5, 7, 4
    layer = shaken(BRWKV(channels, 2.0, scan, 1, None, align=align, decay=decay)).double()
    x = torch.randn(2, height, width, channels, dtype=torch.float64)
    spatial, groups = layer.spatial, len(orders)
    assert spatial.out.in_features == channels * groups * (2 if align == "aligned" else 1)
    tokens = layer.spatial_norm(x)
    lam = spatial.decay / (height * width) if decay == "relative" else spatial.decay.exp()
    packed = (tokens @ spatial.receptance_key_value.weight.T).chunk(groups, dim=3)
    mixed = []
    for group, order, rates, bonus in zip(packed, orders, lam.chunk(groups), spatial.bonus.chunk(groups), strict=True):
        line = group.transpose(1, 2) if order is Order.COLUMNS else group
        r, k, v = line.flatten(1, 2).chunk(3, dim=2)
        y = torch.sigmoid(r) * biwkv_reference(k, v, rates, bonus)
        mixed.append(
            y.unflatten(1, line.shape[1:3]).transpose(1, 2) if order is Order.COLUMNS else y.reshape(2, 5, 7, -1)
        )
    expected = x + torch.cat(mixed, dim=3) @ spatial.out.weight.T
    expected = expected + layer.channel(layer.channel_norm(expected))
    torch.testing.assert_close(layer.plain(x), expected)


@pytest.mark.parametrize(("levels", "middle"), [((1, 1), 1), ((2, 1, 1), 2)])
def test_of_a_level_crossed_scans_are_of_rows_and_of_columns(levels: tuple[int, ...], middle: int) -> None:
    config = replace(BASE, align="crossed", levels=levels, channel_factors=(1,) * len(levels), middle=middle)
    made = RWKVFusion(config)
    for encoder, decoder in zip(made.encoder, reversed(made.decoder), strict=True):
        for ours, theirs in zip(encoder.layers, decoder.layers, strict=True):
            assert {ours.brwkv.orders, theirs.orders} == {(Order.ROWS,), (Order.COLUMNS,)}


def test_two_crossed_scans_treat_rows_and_columns_alike() -> None:
    """A transposed map and exchanged halves of the inner channels give the transposed result."""
    torch.manual_seed(0)
    layer = shaken(BRWKV(4, 2.0, 2, 0, None, align="crossed")).double()
    x = torch.randn(1, 6, 9, 4, dtype=torch.float64)
    before = layer.plain(x)
    spatial = layer.spatial
    with torch.no_grad():
        for parameter, dim in ((spatial.receptance_key_value.weight, 0), (spatial.out.weight, 1)):
            parameter.copy_(torch.cat(parameter.chunk(2, dim)[::-1], dim))
        for parameter in (spatial.decay, spatial.bonus):
            parameter.copy_(torch.cat(parameter.chunk(2)[::-1]))
    torch.testing.assert_close(layer.plain(x.transpose(1, 2)).transpose(1, 2), before)


@pytest.mark.parametrize("side", [1, 4, 5, 99])
def test_box_mean(side: int) -> None:
    x = torch.randn(2, 7, 10, 3, dtype=torch.float64)
    high, wide = min(side, 7), min(side, 10)
    for row in range(7):
        for column in range(10):
            top, left = min(max(row - high // 2, 0), 7 - high), min(max(column - wide // 2, 0), 10 - wide)
            part = x[:, top : top + high, left : left + wide]
            torch.testing.assert_close(box_mean(x, side)[:, row, column], part.mean(dim=(1, 2)))


def test_a_gate_of_a_window_sees_no_further_and_one_over_all_is_the_papers() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 96, 8)
    near = ModalFusion(replace(BASE, gate_window=32), 0, 0)
    changed = x.clone()
    changed[:, :, 64:] += 1
    with torch.no_grad():
        same = (near.gate(x) - near.gate(changed)).abs().amax(dim=(0, 1, 3))
        # Two squares of 8 pixels on either side of the own, and half a square of the interpolation.
        assert float(same[:36].max()) < 1e-6
        assert float(same[64:].min()) > 0.1
        wide, whole = (ModalFusion(replace(BASE, gate_window=side), 0, 0) for side in (400, None))
        torch.testing.assert_close(wide.gate(x), whole.gate(x))
        # A map as large as the window has the one gate that its pooled squares would give.
        crop = ModalFusion(replace(BASE, gate_window=96), 0, 0)
        torch.testing.assert_close(crop.gate(x), F.gelu(box_mean(pool(x, crop.pool), 96 // crop.pool))[:, :1, :1])


def test_the_text_has_its_share_at_any_size() -> None:
    """Where w does not decay, a text token of a picture four times the window counts as four."""
    torch.manual_seed(0)
    config = replace(BASE, gate_window=32)
    exchange = shaken(ModalFusion(config, 0, 0)).text
    exchange.spatial.decay.data.zero_()
    exchange.spatial.bonus.data.zero_()
    pooled, words = torch.randn(1, 8, 8, 8), torch.randn(1, 3, 8)
    with torch.no_grad():
        louder, _ = exchange.exchange(pooled, Text(words, torch.zeros(1, 3, dtype=torch.bool)))
        exchange.window = None
        often, _ = exchange.exchange(pooled, Text(words.repeat(1, 4, 1), torch.zeros(1, 12, dtype=torch.bool)))
    torch.testing.assert_close(louder, often, rtol=1e-5, atol=1e-5)


def test_heads_begin_at_what_they_choose_from() -> None:
    torch.manual_seed(0)
    pictures = [torch.rand(1, 1, 24, 24) for _ in range(3)]
    config = replace(BASE, in_channels=(1, 1, 1))
    with torch.no_grad():
        largest = RWKVFusion(replace(config, head="maximum"))(pictures)
        torch.testing.assert_close(largest, torch.stack(pictures).amax(dim=0), rtol=0, atol=0)
        mean = RWKVFusion(replace(config, head="weights", preference=0.0))(pictures)
        torch.testing.assert_close(mean, torch.stack(pictures).mean(dim=0))
        a, b = pictures[:2]
        two = RWKVFusion(replace(BASE, head="weights"))([a, b])
        weight = torch.sigmoid(20 * (a - b))
        torch.testing.assert_close(two, weight * a + (1 - weight) * b)


def test_images_keep_their_bits_under_autocast() -> None:
    """bfloat16 holds 8 bits: stem, modalities and head are computed in the images' own type."""
    torch.manual_seed(0)
    made = RWKVFusion(replace(BASE, width=16)).eval()
    ramp = torch.linspace(0, 1, 2048).reshape(1, 1, 32, 64)
    seen: list[Tensor] = []
    made.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = made([ramp, ramp])
    assert seen[0].dtype == torch.float32
    assert len(out.unique()) > 1500
    torch.testing.assert_close(seen[0], F.conv2d(torch.cat((ramp, ramp), 1), made.stem.weight, padding=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"align": "both"}, "align must be mirrored or aligned or crossed"),
        ({"decay": "none"}, "decay must be"),
        ({"gate_window": -3}, "gate_window"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"head": "weights", "in_channels": (1,)}, "head weights chooses between"),
        ({"head": "maximum", "in_channels": (1, 3), "out_channels": 1}, "of 1 channels"),
        ({"head": "weights", "residual": 1}, "sharpened"),
    ],
)
def test_impossible_forms_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **change)
