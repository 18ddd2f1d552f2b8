"""The training step: exact resume, its guards, and that it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from made_datasets import TEXT_WIDTH, pairs, write_dataset
from safetensors.torch import load_file

from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.training.loader import Batch, Loader, LoaderConfig
from rwkvfusion.model.training.losses.config import LossConfig
from rwkvfusion.model.training.preview import strip
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.model.training.trainer import (
    CheckpointError,
    OptimConfig,
    Trainer,
    TrainingError,
    learning_rate,
    read_averaged,
)

TINY = NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=TEXT_WIDTH, max_objects=3)


def trainer(total: int = 6, *, weights: int = 0, task: str = "vif", **optim: float | str) -> Trainer:
    torch.manual_seed(weights)
    config = OptimConfig(warmup=2, **optim)  # type: ignore[arg-type]
    return Trainer(RWKVFusion(TINY), task=task, loss=LossConfig(), optim=config, total=total, seed=5)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    """40 batches of 2 crops from 6 pairs."""
    torch.set_num_threads(1)
    url = write_dataset(tmp_path_factory.mktemp("trainer") / "made", pairs(6, 3))
    data = TrainingSet.open([url], ["train"])
    config = LoaderConfig(crop=(24, 24), batch=2, prefetch=0)
    loader = Loader(data, config, roles=("visible", "infrared"), text_width=TEXT_WIDTH, seed=1)
    return [loader.batch(step) for step in range(40)]


def test_resuming_is_exact(batches: list[Batch], tmp_path: Path) -> None:
    straight, first = trainer(), trainer()
    losses = [float(straight.step(batch)["loss"]) for batch in batches[:6]]
    for batch in batches[:3]:
        first.step(batch)
    first.save(tmp_path)
    # Other weights at the start, and a used generator: nothing may come from them.
    second = trainer(weights=9)
    second.load(tmp_path)
    assert second.done == 3
    assert [float(second.step(batch)["loss"]) for batch in batches[3:6]] == losses[3:]
    for a, b in ((straight.network.state_dict(), second.network.state_dict()), (straight.ema, second.ema)):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    second.save(tmp_path)
    trained = read_averaged(tmp_path, second.network.config, total=second.total, seed=second.seed, task=second.task)
    averaged = trained.network.state_dict()
    assert all(torch.equal(averaged[name], straight.ema[name]) for name in averaged)
    assert (trained.steps, trained.loss) == (6, losses[-1])


def judged(one: Trainer, value: float, patience: int | None = None) -> bool:
    return one.judge("Qcv", value, better="lower", patience=patience)


def test_the_best_and_what_was_waited_for_are_part_of_a_checkpoint(batches: list[Batch], tmp_path: Path) -> None:
    """Killed between validations and gone on with, a training has the same best and stops at the same step."""
    values = [30.0, 20.0, 25.0, math.nan, 20.0, 10.0]

    def go_on(one: Trainer) -> None:
        while one.done < 6 and not one.stopped:
            one.step(batches[one.done])
            judged(one, values[one.done - 1], patience=3)

    straight, first = trainer(), trainer()
    go_on(straight)
    assert (straight.done, straight.waited, straight.stopped) == (5, 3, True)
    assert straight.best is not None
    assert (straight.best.step, straight.best.metric, straight.best.value) == (2, "Qcv", 20.0)
    for step in range(3):
        first.step(batches[step])
        judged(first, values[step], patience=3)
    first.save(tmp_path)
    second = trainer(weights=9)
    second.load(tmp_path)
    assert (second.waited, second.stopped) == (1, False)
    go_on(second)
    assert (second.done, second.waited, second.stopped) == (5, 3, True)
    assert second.best is not None
    assert all(torch.equal(value, second.best.weights[name]) for name, value in straight.best.weights.items())
    # Kept as it was: the average went on.
    assert any(not torch.equal(value, second.ema[name]) for name, value in second.best.weights.items())
    second.save(tmp_path)
    third = trainer()
    third.load(tmp_path)
    assert third.stopped
    trained = read_averaged(tmp_path, TINY, total=6, seed=5, task="vif")
    assert (trained.steps, trained.best) == (5, replace(straight.best, weights={}))
    assert all(torch.equal(v, straight.best.weights[name]) for name, v in trained.network.state_dict().items())


def test_a_checkpoint_with_a_best_is_whole_only_with_its_weights(batches: list[Batch], tmp_path: Path) -> None:
    one = trainer()
    one.step(batches[0])
    assert judged(one, 3.0)
    one.save(tmp_path)
    weights = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "best.safetensors").write_bytes(weights[:-1])
    with pytest.raises(CheckpointError, match="damaged, or was not stored whole: best"):
        trainer().load(tmp_path)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="best"):
        read_averaged(tmp_path, TINY, total=6, seed=5, task="vif")


def test_a_checkpoint_of_before_there_were_validations_is_resumed(batches: list[Batch], tmp_path: Path) -> None:
    one = trainer()
    one.step(batches[0])
    one.save(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    for name in ("network", "best", "waited", "stopped"):
        del state[name]
    (tmp_path / "state.json").write_text(json.dumps(state))
    two = trainer(weights=9)
    two.load(tmp_path)
    assert (two.done, two.best, two.waited, two.stopped) == (1, None, 0, False)
    trained = read_averaged(tmp_path, TINY, total=6, seed=5, task="vif")
    assert trained.best is None
    assert all(torch.equal(value, one.ema[name]) for name, value in trained.network.state_dict().items())


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_only_what_is_better_is_the_best(batches: list[Batch], better: Literal["higher", "lower"]) -> None:
    one, sign = trainer(), 1 if better == "higher" else -1
    for value, is_best in ((math.nan, False), (-2.0, True), (-2.0, False), (-3.0, False), (-1.0, True), (0.0, True)):
        one.step(batches[0])
        assert one.judge("Dl", sign * value, better=better, patience=None) == is_best
    assert one.best is not None
    assert (one.best.step, one.best.value, one.waited, one.stopped) == (6, 0.0, 0, False)


def test_another_trainings_checkpoint_is_refused(batches: list[Batch], tmp_path: Path) -> None:
    one = trainer()
    one.step(batches[0])
    one.save(tmp_path)
    with pytest.raises(CheckpointError, match="total differ"):
        trainer(7).load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="damaged, or was not stored whole: model"):
        trainer().load(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json"):
        trainer().load(tmp_path)


def test_a_checkpoint_that_is_not_whole_is_refused(batches: list[Batch], tmp_path: Path) -> None:
    """Whatever is cut off, changed or missing: in each file, and in the proof itself."""
    one = trainer()
    one.step(batches[0])
    one.save(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    state = json.loads((tmp_path / "state.json").read_text())
    for path, whole in files.items():
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 8
        for left in (whole[: len(whole) // 2], whole[:-1], b"", bytes(changed)):
            # The proof ends with a line break, which proves nothing.
            if path.suffix == ".json" and left in (whole[:-1], bytes(changed)):
                continue
            path.write_bytes(left)
            with pytest.raises(CheckpointError, match=str(tmp_path)):
                trainer().load(tmp_path)
        path.write_bytes(whole)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            trainer().load(tmp_path)
        path.write_bytes(whole)
    without = {name: value for name, value in state["files"].items() if name != "ema.safetensors"}
    for broken in ([], None, 3, {**state, "files": {}}, {**state, "files": [1]}, {**state, "files": without}):
        (tmp_path / "state.json").write_text(json.dumps(broken))
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            trainer().load(tmp_path)
    (tmp_path / "state.json").write_bytes(files[tmp_path / "state.json"])
    again = trainer()
    again.load(tmp_path)
    assert float(again.last_loss) == float(one.last_loss)


def test_steps_without_finite_gradients_change_nothing_and_end_the_run(batches: list[Batch]) -> None:
    one = trainer(40, max_skipped=3)
    one.step(batches[0])
    before = {name: value.clone() for name, value in one.network.state_dict().items()}
    average = {name: value.clone() for name, value in one.ema.items()}
    bad = replace(batches[1], images=(batches[1].images[0] * float("nan"), batches[1].images[1]))
    assert not np.isfinite(float(one.step(bad)["loss"]))
    one.step(bad)
    assert (one.skipped, one.done) == (2, 3)
    assert all(torch.equal(value, before[name]) for name, value in one.network.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in one.ema.items())
    # A good step starts the count anew.
    one.step(batches[1])
    one.step(bad)
    one.step(bad)
    with pytest.raises(TrainingError, match=r"step 6: .* 3 times in a row"):
        one.step(bad)


def test_the_loss_falls_and_the_average_follows(batches: list[Batch], tmp_path: Path) -> None:
    one = trainer(40)
    losses = [float(one.step(batch)["loss"]) for batch in batches]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])
    fused = one.predict(batches[0])
    one.save(tmp_path)
    network = read_averaged(tmp_path, one.network.config, total=one.total, seed=one.seed, task=one.task).network
    with torch.no_grad():
        alone = network(batches[0].images, batches[0].mask, batches[0].text, batches[0].text_mask)
    assert torch.equal(fused, alone)
    moved = [not torch.equal(value, one.ema[name]) for name, value in one.network.state_dict().items()]
    assert sum(moved) > len(moved) // 2


def test_the_average_is_the_warmed_up_mean_of_the_weights(batches: list[Batch]) -> None:
    one = trainer(6)
    name = "head.weight"
    expected = one.network.state_dict()[name].double()
    for step, batch in enumerate(batches[:6]):
        one.step(batch)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * one.network.state_dict()[name].double()
    assert torch.allclose(one.ema[name].double(), expected, atol=1e-7)


def test_learning_rate_rises_then_falls_to_its_end() -> None:
    config = OptimConfig(lr=1.0, warmup=100, final_lr=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(config, 0, 1) == 1.0


def test_sharpening_needs_and_uses_a_target(batches: list[Batch], tmp_path: Path) -> None:
    one = trainer(task="pansharpening")
    with pytest.raises(TrainingError, match="without one"):
        one.step(batches[0])
    batch = replace(batches[0], target=batches[0].images[0])
    assert set(one.step(batch)) == {"loss", "target", "ssim", "gradient_norm"}
    one.save(tmp_path)
    assert json.loads((tmp_path / "state.json").read_text())["done"] == 1
    assert len(load_file(tmp_path / "optimizer.safetensors")) > 30


def test_half_precision_trains_close_to_full(batches: list[Batch]) -> None:
    full, half = trainer(precision="fp32"), trainer(precision="bf16")
    a, b = ([float(one.step(batch)["loss"]) for batch in batches[:4]] for one in (full, half))
    assert a != b
    assert a == pytest.approx(b, rel=0.05)


def test_strip_shows_sources_result_and_objects() -> None:
    low = torch.zeros(8, 4, 6)
    low[4] = 1  # the red of WorldView
    mask = torch.zeros(8, 12, dtype=torch.uint8)
    mask[2:4] = 1
    picture = strip((torch.full((1, 8, 12), 0.5), low), torch.ones(8, 8, 12), mask)
    assert picture.shape == (8, 4 * 12 + 3 * 4, 3)
    assert (picture[:, :12] == 128).all()
    assert (picture[:, 16:28] == [255, 0, 0]).all()
    assert (picture[:, 32:44] == 255).all()
    changed = (picture[:, 48:] != 255).any(axis=2)
    assert np.array_equal(changed, np.broadcast_to(mask.numpy() == 1, (8, 12)))
