"""Packs of training pairs, and the training that needs torch and numpy alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvfusion.model.network.config import preset
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.pipelines.ship.finish import fuser_of
from rwkvfusion.pipelines.ship.pack import halves_of, held_out_last, pictures_of
from rwkvfusion.pipelines.ship.packed import Pack, Sample, read, write
from rwkvfusion.pipelines.ship.pictures import Pictures
from rwkvfusion.pipelines.ship.recipes import RECIPES, Recipe
from rwkvfusion.pipelines.ship.run import chain_of
from rwkvfusion.pipelines.ship.simulations import exposures, layers
from rwkvfusion.pipelines.ship.train import Training

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
SIDE = 48
TINY = Recipe("vif", "tiny", crop=SIDE, batch=2, drop_guidance=0.0)


def sample(rng: np.random.Generator, height: int, width: int, planes: int = 2, *, tokens: int = 3) -> Sample:
    smooth = rng.normal(size=(planes, height, width)).cumsum(1).cumsum(2)
    grey = np.rint(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    mask = (rng.random((height, width)) < 0.3).astype(np.uint8) * rng.integers(1, 5, dtype=np.uint8)
    text = rng.normal(size=(tokens, 256)).astype(np.float16) if tokens else None
    return Sample(f"pair{height}x{width}", tuple(grey), mask if tokens else None, text, names_sides=True)


def pack_of(n: int = 4, *, planes: int = 2, task: str = "vif") -> Pack:
    rng = np.random.default_rng(3)
    samples = tuple(sample(rng, 56 + 8 * (i % 2), 64, planes, tokens=i % 3) for i in range(n))
    return Pack(task, ("visible", "infrared"), 256, samples, held_out=1, about={"datasets": {}, "text": None})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_pack_comes_back_as_it_was(data: st.DataObject, tmp_path: Path) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4))
    made = [
        Sample(
            f"key{i}",
            tuple(rng.integers(0, 256, (data.draw(st.integers(1, 3)), *size)).astype(np.uint8)),
            rng.integers(0, 256, size).astype(np.uint8) if data.draw(st.booleans()) else None,
            rng.normal(size=(2, 8)).astype(np.float16) if data.draw(st.booleans()) else None,
            names_heights=data.draw(st.booleans()),
        )
        for i, size in enumerate(sizes)
    ]
    pack = Pack("mff", ("near", "far"), 8, tuple(made), held_out=1, about={"text": None})
    write(tmp_path / "p.npz", pack)
    back = read(tmp_path / "p.npz")
    assert replace(back, samples=()) == replace(pack, samples=())
    for one, other in zip(back.samples, made, strict=True):
        assert (one.key, one.names_sides, one.names_heights) == (other.key, other.names_sides, other.names_heights)
        for name in ("mask", "text"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        np.testing.assert_array_equal(one.planes, other.planes)


def test_another_file_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="no pack of training pairs"):
        read(tmp_path / "p.npz")


def test_the_held_out_are_last_and_of_one_size() -> None:
    rng = np.random.default_rng(0)
    samples = [sample(rng, 20 + 4 * (i % 3 == 0), 24) for i in range(12)]
    found = held_out_last(samples, 3)
    assert sorted(map(id, found)) == sorted(map(id, samples))
    assert {one.planes[0].shape for one in found[-3:]} == {(20, 24)}
    dark = replace(samples[0], planes=(samples[0].planes[0] // 8,) * 2)
    assert [one.planes[0] is samples[1].planes[1] for one in pictures_of([dark, samples[1]], 1)] == [True]
    (alone,) = halves_of([dark, samples[1]], 2)
    assert [one.shape for one in alone.planes] == [(10, 12)] * 3
    assert abs(float(alone.planes[2].mean()) - float(samples[1].planes[0].mean())) < 1


def test_a_batch_is_what_was_drawn() -> None:
    pack = pack_of()
    pictures = Pictures(pack, SIDE, CPU, n_objects=20)
    for step in range(4):
        drawn = pictures.draw(TINY, step)
        images, target, mask, text, real = pictures.batch({k: torch.from_numpy(v) for k, v in drawn.items()})
        assert target is None
        for i, chosen in enumerate(drawn["chosen"]):
            one, (_, top, left, down, across) = pack.samples[chosen], drawn["window"][i]
            turn = np.s_[:: -1 if down else 1, :: -1 if across else 1]
            cut = [plane[top : top + SIDE, left : left + SIDE][turn] for plane in one.planes]
            for image, expected in zip(images, cut, strict=True):
                np.testing.assert_array_equal((255 * image[i, 0]).round().numpy(), expected)
            own = np.zeros((SIDE, SIDE)) if one.mask is None else one.mask[top : top + SIDE, left : left + SIDE][turn]
            # Which object is which is drawn anew each time.
            np.testing.assert_array_equal(mask[i].numpy() > 0, own > 0)
            shown = 0 if one.text is None or across else len(one.text)
            assert int(real[i].sum()) == shown
            if shown:
                np.testing.assert_array_equal(text[i, :shown].numpy(), one.text)


def test_exposures_are_darker_and_brighter_and_the_focus_is_in_one_of_two() -> None:
    rng = torch.Generator().manual_seed(1)
    picture = torch.rand(3, 1, 40, 44, generator=rng)
    field = torch.randn(3, 1, 4, 4, generator=rng)
    grain = torch.zeros(3, 2, 40, 44)
    even = torch.tensor([[0.0, 1.0, 1.0, 0.5]] * 3)
    (dark, bright), _ = exposures(picture, even, field, grain)
    assert bool((dark <= bright).all())
    assert float(dark.mean()) < float(picture.mean()) < float(bright.mean())
    amount = torch.tensor([[0.9, 0.9, 1.0, 0.0]] * 3)
    (near, far), _ = layers(picture, amount, field, grain)
    for one in (dark, bright, near, far):
        torch.testing.assert_close(255 * one, (255 * one).round(), atol=1e-3, rtol=0)
    apart = [(one - picture).abs() for one in (near, far)]
    assert float(torch.minimum(*apart).median()) < 0.15 * float(torch.maximum(*apart).median())
    # What is near and out of focus spreads over what is behind it, so that there neither is sharp.
    is_soft = [one > 0.03 for one in apart]
    assert float((is_soft[0] & is_soft[1]).float().mean()) > 0.02
    # The grain is that of the one in focus.
    grain[:, 0], grain[:, 1] = 0.02, -0.02
    (near, far), chosen = layers(picture, amount, field, grain)
    sharp_near = (near - grain[:, :1] - picture).abs() < (far - grain[:, 1:] - picture).abs()
    assert float(((chosen > 0) == sharp_near).float().mean()) > 0.9


@pytest.mark.parametrize(
    "recipe", [TINY, replace(TINY, task="mff", simulate=0.5, simulation="layers", uneven=1.0)], ids=["vif", "mff"]
)
def test_a_training_goes_on_exactly_where_it_stopped(recipe: Recipe, tmp_path: Path) -> None:
    pack = pack_of(planes=2 + (recipe.task == "mff"), task=recipe.task)

    def training(folder: Path) -> Training:
        folder.mkdir(exist_ok=True)
        return Training("made", recipe, pack, CPU, folder)

    whole, first = training(tmp_path / "a"), training(tmp_path / "b")
    values = [float(whole.step(i / 6)["loss"]) for i in range(6)]
    assert np.isfinite(values).all()
    for i in range(3):
        first.step(i / 6)
    first.look()
    first.save()
    second = training(tmp_path / "b")
    second.resume()
    assert (second.done, list(second.moments)) == (3, ["3"])
    for i in range(3, 6):
        second.step(i / 6)
    for name, value in whole.ema.items():
        assert torch.equal(second.ema[name], value), name
        assert torch.equal(second.parameters[name], whole.parameters[name]), name
    other = Training("made", replace(recipe, lr=0.5), pack, CPU, tmp_path / "b")
    with pytest.raises(SystemExit, match="of another recipe"):
        other.resume()


def test_what_is_trained_is_a_fuser(tmp_path: Path) -> None:
    training = Training("vif-tiny", TINY, pack_of(), CPU, tmp_path)
    training.step(0.0)
    training.look()
    training.save()
    fuser, state, step = fuser_of(tmp_path / "vif-tiny.npz", 1)
    assert (step, state["samples"], fuser.config.roles) == (1, 3, ("visible", "infrared"))
    images = [torch.rand(1, 1, 24, 32) for _ in range(2)]
    with torch.no_grad():
        expected = torch.func.functional_call(training.network.eval(), training.ema, (images,))
        torch.testing.assert_close(fuser.network(images), expected)


def test_a_later_training_begins_with_an_earlier_one(tmp_path: Path) -> None:
    assert chain_of("vif-tiny") == ["vif-tiny", "vif-tiny-after"]
    assert chain_of("mif") == ["mif"]
    earlier = Training("vif-tiny", TINY, pack_of(), CPU, tmp_path)
    earlier.step(0.0)
    earlier.save()
    later = Training("later", replace(TINY, after="vif-tiny"), pack_of(), CPU, tmp_path)
    with pytest.raises(ValueError, match=r"0 tenths of the training are made: go on with it to the 10th"):
        later.begin_with(tmp_path / "vif-tiny.npz")
    earlier.moments = {str(i): earlier.ema for i in range(10)}
    earlier.save()
    later.begin_with(tmp_path / "vif-tiny.npz")
    assert all(torch.equal(later.parameters[name], value) for name, value in earlier.ema.items())
    other = Training("later", replace(TINY, after="mif"), pack_of(), CPU, tmp_path)
    with pytest.raises(SystemExit, match=r"is of vif-tiny, later begins with mif"):
        other.begin_with(tmp_path / "vif-tiny.npz")


def test_torch_and_numpy_are_enough(tmp_path: Path) -> None:
    """From a checkout, with whatever else is installed out of reach."""
    write(tmp_path / "p.npz", pack_of())
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import sys

            gone = "pydantic ray mlflow webdataset safetensors cv2 scipy skimage PIL yaml click pyarrow tqdm rich"
            sys.modules.update(dict.fromkeys(gone.split()))
            """
        )
    )
    arguments = ["vif-tiny", "--pack", "p.npz", "--out", "out", "--crop", str(SIDE), "--batch", "2", "--device", "cpu"]
    command = [sys.executable, ROOT / "infra" / "checkout.py", "rwkvfusion.pipelines.ship.train", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for limits, done in ((["--steps", "5"], 5), (["--steps", "0", "--seconds", "0.1"], 5)):
        made = subprocess.run(
            [*command, *limits], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert made.returncode == 0, made.stderr
        with np.load(tmp_path / "out" / "vif-tiny.npz") as file:
            assert json.loads(file["state"].tobytes())["done"] == done
            network = RWKVFusion(preset("vif", size="tiny"))
            for name, value in network.state_dict().items():
                assert file[f"ema/{name}"].shape == tuple(value.shape)
                assert np.isfinite(file[f"ema/{name}"]).all()
    lines = [json.loads(line) for line in (tmp_path / "out" / "vif-tiny.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "held out"}
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_every_recipe_is_of_its_task() -> None:
    for name, recipe in RECIPES.items():
        assert name == recipe.task or name.startswith(f"{recipe.task}-")
        if recipe.after is not None:
            assert replace(RECIPES[recipe.after], loss={}).size == recipe.size
