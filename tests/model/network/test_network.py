import math
from dataclasses import asdict, fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.network.layers import Order, merge, orders_of, partition, scan_map, unscan_map
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.stages.dataset.task import TASKS

SMALL = NetworkConfig(in_channels=(1, 3), out_channels=1, width=8, text_width=6, max_objects=4)


def network(config: NetworkConfig, seed: int = 0) -> RWKVFusion:
    """A network whose every weight matters: parameters away from their start, which leaves much at zero."""
    torch.manual_seed(seed)
    made = RWKVFusion(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.endswith(("decay", "bonus")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def images(config: NetworkConfig, height: int, width: int, batch: int = 2) -> list[Tensor]:
    return [torch.rand(batch, channels, height, width) for channels in config.in_channels]


@pytest.mark.parametrize("scan", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (4, 6), (5, 3)])
def test_scans_cover_each_pixel_once_and_come_back(scan: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    for block in (0, 1):
        orders = orders_of(scan, block)
        tokens, _ = scan_map(x, orders)
        assert tokens.shape == (2, size[0] * size[1], 3 * 2 * len(orders))
        assert 2 * len(orders) == {1: 2, 2: 4, 3: 8}[scan]
        torch.testing.assert_close(unscan_map(tokens, orders, *size), 2 * len(orders) * x)


def test_orders_of_the_scans() -> None:
    x = torch.arange(6.0).reshape(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    expected = {
        Order.ROWS: [0, 1, 2, 3, 4, 5],
        Order.COLUMNS: [0, 3, 1, 4, 2, 5],
        Order.DIAGONALS: [0, 1, 3, 2, 4, 5],
        Order.ANTIDIAGONALS: [2, 1, 5, 0, 4, 3],
    }
    for order, path in expected.items():
        tokens, rows = scan_map(x, (order,))
        # Step s of a scan by columns of a map with `rows` rows, as `gated_biwkv` takes it.
        steps = torch.arange(6).reshape(rows, 6 // rows).T.flatten()
        forward, flipped = tokens[0, steps].T.tolist()
        assert forward == path
        assert flipped == path[::-1]
    assert orders_of(1, 0) == (Order.ROWS,)
    assert orders_of(1, 1) == (Order.COLUMNS,)


def test_windows_come_back_and_confine_the_mixing() -> None:
    x = torch.randn(2, 8, 12, 3)
    windows = partition(x, 4)
    torch.testing.assert_close(windows[1], x[0, :4, 4:8])
    torch.testing.assert_close(merge(windows, 4, 8, 12), x)
    layer = network(replace(SMALL, width=3, window=4)).middle[0]
    changed = x.clone()
    changed[0, 0, 0] += 1
    with torch.no_grad():
        differs = (layer(changed) != layer(x)).any(-1)
    assert differs[0, :4, :4].all()
    assert differs.sum() == 16


@pytest.mark.parametrize("task", TASKS)
def test_presets_run_and_train_every_parameter(task: str) -> None:
    config = preset(task)
    made = RWKVFusion(config)
    stack = images(config, 16, 24, batch=1)
    mask, text = torch.randint(0, 3, (1, 16, 24)), torch.randn(1, 5, config.text_width)
    for guidance in ((mask, text), (None, None)):
        made.zero_grad()
        made(stack, *guidance).square().mean().backward()
        assert all(parameter.grad is not None for parameter in made.parameters())
    assert NetworkConfig(**asdict(config)) == config


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, scan=3), replace(SMALL, window=4, channel_factors=(1, 2))])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 9)])
def test_any_size_and_any_kind_of_network(config: NetworkConfig, size: tuple[int, int]) -> None:
    made = network(config)
    stack, mask = images(config, *size), torch.randint(0, 9, (2, *size), dtype=torch.uint8)
    with torch.no_grad():
        out = made(stack, mask, torch.randn(2, 3, 6))
    assert out.shape == (2, 1, *size)
    assert torch.isfinite(out).all()


def test_starts_near_the_mean_or_at_the_upsampled_input() -> None:
    torch.manual_seed(0)
    first, second = torch.rand(1, 1, 32, 40), torch.rand(1, 1, 32, 40)
    with torch.no_grad():
        out = RWKVFusion(preset("vif", paper=True))([first, second])
    assert float((out - (first + second) / 2).abs().mean()) < 0.05
    config = replace(preset("pansharpening"), width=8)
    pan, ms = torch.rand(1, 1, 32, 32), torch.rand(1, 8, 8, 8)
    expected = F.interpolate(ms, size=(32, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(RWKVFusion(config)([pan, ms]), expected)


def test_padding_of_the_text_changes_nothing() -> None:
    """However long the padding, wherever it stands and whatever is in it; the text itself does matter."""
    made = network(replace(SMALL, levels=(2, 1)))
    stack, words = images(SMALL, 24, 20), torch.randn(2, 5, 6)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    padded, padded_real = torch.full((2, 19, 6), 50.0), torch.zeros(2, 19).bool()
    positions = torch.tensor([2, 3, 7, 12, 18])
    padded[:, positions], padded_real[:, positions] = words, real
    with torch.no_grad():
        out = made(stack, None, words, real)
        torch.testing.assert_close(made(stack, None, padded, padded_real), out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made([i[1:] for i in stack], None, words[1:, :2]), out[1:], rtol=1e-5, atol=1e-5)
        assert (made(stack, None, words.flip(1), real) - out)[0].abs().max() > 1e-3
        none = made(stack)
        torch.testing.assert_close(made(stack, None, words, torch.zeros_like(real)), none, rtol=1e-5, atol=1e-5)
        real[1] = False
        torch.testing.assert_close(made(stack, None, words, real)[1], none[1], rtol=1e-5, atol=1e-5)


def test_no_mask_is_an_empty_mask_and_objects_have_their_own_channels() -> None:
    made = network(SMALL)
    stack, mask = images(SMALL, 16, 16), torch.zeros(2, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        none = made(stack)
        torch.testing.assert_close(made(stack, mask), none)
        mask[0, 3:9, 4:12] = 1
        one = made(stack, mask)
        assert (one[0] - none[0]).abs().max() > 1e-3
        torch.testing.assert_close(one[1], none[1])
        assert (made(stack, 2 * mask) - one)[0].abs().max() > 1e-3
        torch.testing.assert_close(made(stack, 5 * mask), none, msg="index above max_objects")
        torch.testing.assert_close(made(stack, mask.long()), one)


def test_samples_do_not_see_each_other_and_values_survive_saving() -> None:
    made = network(replace(preset("hmif"), in_channels=(3, 5), out_channels=5, width=8, text_width=6))
    stack = [torch.rand(3, 3, 32, 24), torch.rand(3, 5, 8, 6)]
    text = torch.randn(3, 4, 6)
    copy = network(made.config, seed=1)
    copy.load_state_dict(made.state_dict())
    with torch.no_grad():
        whole = made(stack, None, text)
        torch.testing.assert_close(copy(stack, None, text), whole, rtol=0, atol=0)
        for i in range(3):
            alone = made([image[i : i + 1] for image in stack], None, text[i : i + 1])
            torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    made = network(SMALL)
    stack, text = images(SMALL, 32, 32), torch.randn(2, 7, 6)
    with torch.no_grad():
        exact = made(stack, None, text)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = made(stack, None, text)
    assert low.dtype == torch.float32
    assert float((low - exact).abs().mean()) < 0.02 * float(exact.std())


def test_learns_the_stronger_of_two_images() -> None:
    """From the mean, where it starts; a network that only blends its inputs stays there."""
    torch.manual_seed(0)
    made = RWKVFusion(replace(preset("vif", paper=True), width=16))
    pair = [F.interpolate(torch.rand(2, 1, 6, 6), size=(24, 24), mode="bicubic").clamp(0, 1) for _ in range(2)]
    wanted = torch.maximum(*pair)
    optimiser = torch.optim.Adam(made.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        loss = (made(pair) - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": ()}, "in_channels"),
        ({"width": 0}, "width"),
        ({"window": -2}, "window"),
        ({"levels": (1, 1, 1)}, "channel_factors must have one entry per level"),
        ({"text_pool": (8,)}, "text_pool must have an entry for each level"),
        ({"scan": 4}, "scan must be 1, 2 or 3"),
        ({"residual": 2}, "residual must be one of"),
        ({"residual": 1}, "must be equal"),
        ({"hidden_ratio": 0.0}, "hidden_ratio"),
    ],
)
def test_impossible_shapes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
    with pytest.raises(ValueError, match="vif, mif"):
        preset("vis")
    with pytest.raises(ValueError, match="tiny, small"):
        preset("vif", size="huge")  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_sizes_of_a_task_grow_and_keep_its_inputs(task: str) -> None:
    configs = [preset(task, size=size) for size in ("tiny", "small", "full", "large")]
    assert configs[2] == preset(task)
    n_parameters = [sum(p.numel() for p in RWKVFusion(config).parameters()) for config in configs]
    assert n_parameters == sorted(set(n_parameters))
    for config in configs:
        assert (config.in_channels, config.residual) == (configs[2].in_channels, configs[2].residual)
        # The C++ calls take no others.
        assert all(width % 16 == 0 for width in config.widths)
    made = RWKVFusion(configs[0]).eval()
    with torch.no_grad():
        assert made(images(configs[0], 16, 24)).shape == (2, configs[0].out_channels, 16, 24)


def test_wrong_inputs_are_refused() -> None:
    made, (one, three) = network(SMALL), images(SMALL, 8, 8)
    text = torch.zeros(2, 4, 6)
    for wrong, message in (
        (([one],), "expected 2 images"),
        (([three, one],), "expected channels"),
        (([one[..., :4], three[:, :, :4]],), "largest in both"),
        (([one, three], torch.zeros(2, 4, 4).byte()), "mask must"),
        (([one, three], torch.zeros(2, 8, 8)), "mask must be integers"),
        (([one, three], None, text[..., 1:]), "text must be"),
        (([one, three], None, text, torch.ones(2, 3).bool()), "text_mask must"),
    ):
        with pytest.raises(ValueError, match=message):
            made(*wrong)


@pytest.mark.parametrize("name", [field.name for field in fields(NetworkConfig)])
def test_no_field_takes_what_is_none_of_its_kind(name: str) -> None:
    sound = replace(SMALL, head="weights", in_channels=(1, 1))
    odd = [math.nan, math.inf, "1", 0.5j, [True], [0], {}]
    odd += [] if name == "preference" else [-1]
    odd += [] if name in ("use_mask", "decoder_images", "local") else [True]
    for value in odd:
        with pytest.raises(ValueError, match=name):
            replace(sound, **{name: value})
