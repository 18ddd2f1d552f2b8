"""The network of a recipe, and what it starts from: a model, a folder or a checkpoint; another network is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from made_datasets import pairs, write_dataset
from made_shipped import ROOT, ship
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import Tensor

from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import start_run
from rwkvfusion.model.names import HASH, WEIGHTS
from rwkvfusion.model.network.config import NetworkConfig, preset
from rwkvfusion.model.registry.registry import log_and_register
from rwkvfusion.model.training.trainer import Trainer
from rwkvfusion.pipelines.recipe import RecipeError
from rwkvfusion.pipelines.train.build import make_fuser, make_trainer
from rwkvfusion.pipelines.train.job import open_job
from rwkvfusion.pipelines.train.plan import network_of, plan_training, settings_of
from rwkvfusion.pipelines.train.recipe import NetworkOverrides, TrainRecipe
from rwkvfusion.stages.dataset.origin import INIT


def recipe(folder: Path, url: str, **changes: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "data": {"url": url, "crop": [32, 32], "batch": 2, "prefetch": 0},
        "network": {"width": 8, "levels": [1], "channel_factors": [1]},
        "steps": 4, "log_every": 1, "checkpoint_every": 2,
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, "output": str(folder / "train"),
        "register": {"measure": 0},
    }  # fmt: skip
    return TrainRecipe.model_validate(values | changes)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("warm") / "made", pairs(3, 3))


def trained(given: TrainRecipe) -> Trainer:
    plan = plan_training(given)
    trainer, loader = make_trainer(plan, torch.device("cpu"), rank=0, world=1), plan.loader(0, 1)
    for step in range(3):
        trainer.step(loader.batch(step))
    return trainer


def started(given: TrainRecipe, said: list[str] | None = None) -> Mapping[str, Tensor]:
    """The weights at step 0; the average starts with them too."""
    plan = plan_training(given, [].append if said is None else said.append)
    trainer = make_trainer(plan, torch.device("cpu"), rank=0, world=1)
    assert same(trainer.ema, trainer.network.state_dict())
    return trainer.network.state_dict()


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_model_is_gone_on_from_by_its_name_and_by_its_folder(url: str, tmp_path: Path) -> None:
    given = recipe(tmp_path, url)
    plan, weights = plan_training(given), trained(given).network
    make_fuser(plan, weights).save(tmp_path / "model")
    run = start_run(given.tracking.uri, "x", "x", {}, {})
    log_and_register(
        tmp_path / "model", uri=run.uri, run_id=run.run_id, name="mine", alias="champion",
        example={image.role: image.data for image in plan.survey.example.images},
    )  # fmt: skip
    for where in (str(tmp_path / "model"), "models:/mine@champion"):
        assert same(started(recipe(tmp_path, url, init=where)), weights.state_dict())
    assert not same(started(given), weights.state_dict())
    # The run names the weights as the version does.
    client = MlflowClient(run.uri, run.uri)
    warm = open_job(plan_training(recipe(tmp_path, url, init="models:/mine@champion"))).run
    assert client.get_run(warm.run_id).data.tags[INIT] == client.get_model_version("mine", "1").tags[HASH]
    assert plan_training(recipe(tmp_path, url, init=str(tmp_path / "model"))).name != plan.name


def test_a_model_that_comes_with_the_package_is_gone_on_from_by_its_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(tmp_path, url)
    plan, trainer = plan_training(given), trained(given)
    made = ship(tmp_path / "package", "vif", make_fuser(plan, trainer.network))
    monkeypatch.setattr(ROOT, tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    # A checkpoint of that name is another's.
    trainer.step(plan.loader(0, 1).batch(3))
    trainer.save(tmp_path / "vif")
    warm = recipe(tmp_path, url, init="vif")
    assert same(started(warm), load_file(made / WEIGHTS))
    run = open_job(plan_training(warm)).run
    tags = MlflowClient(run.uri, run.uri).get_run(run.run_id).data.tags
    assert tags[INIT] == sha256((made / WEIGHTS).read_bytes())
    wide = recipe(tmp_path, url, init="vif", network={"width": 16, "levels": [1], "channel_factors": [1]})
    with pytest.raises(RecipeError, match="init: the network of vif is another: width is 8, here 16; set network as"):
        plan_training(wide)


def test_a_checkpoint_is_gone_on_from_by_its_averaged_weights_the_best_where_there_are_any(
    url: str, tmp_path: Path
) -> None:
    given = recipe(tmp_path, url)
    trainer = trained(given)
    trainer.save(tmp_path / "plain")
    warm = recipe(tmp_path, url, init=str(tmp_path / "plain"))
    assert same(started(warm), trainer.ema)
    best = {name: value.clone() for name, value in trainer.ema.items()}
    trainer.judge("Qabf", 0.5, better="higher", patience=None)
    trainer.step(plan_training(given).loader(0, 1).batch(3))
    trainer.save(tmp_path / "judged")
    assert same(started(recipe(tmp_path, url, init=str(tmp_path / "judged"))), best)
    assert not same(trainer.ema, best)
    # A checkpoint that does not say its network is taken by the shapes of its parameters.
    state = json.loads((tmp_path / "plain" / "state.json").read_text())
    del state["network"]
    (tmp_path / "plain" / "state.json").write_text(json.dumps(state))
    assert same(started(warm), started(recipe(tmp_path, url, init=str(tmp_path / "plain"))))
    wide = recipe(tmp_path, url, init=warm.init, network={"width": 16, "levels": [1], "channel_factors": [1]})
    with pytest.raises(RecipeError, match=r"init: the network of .*plain is another: parameter \S+ is \(.*\), here \("):
        plan_training(wide)
    (tmp_path / "plain" / "ema.safetensors").write_bytes(b"cut")
    with pytest.raises(RecipeError, match=r"init: .*ema\.safetensors is damaged"):
        plan_training(warm)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"width": 16}, "width is 8, here 16"),
        ({"levels": [2]}, r"levels is \(1,\), here \(2,\)"),
        ({"use_mask": False, "hidden_ratio": 3.0}, r"use_mask is True, here False, hidden_ratio is 2\.0, here 3\.0"),
    ],
)
def test_another_network_is_refused_by_its_fields(
    url: str, tmp_path: Path, network: dict[str, Any], message: str
) -> None:
    given = recipe(tmp_path, url)
    make_fuser(plan_training(given), trained(given).network).save(tmp_path / "model")
    own = {"width": 8, "levels": [1], "channel_factors": [1]}
    with pytest.raises(RecipeError, match=f"init: the network of .*model is another: {message}; set network as there"):
        plan_training(recipe(tmp_path, url, init=str(tmp_path / "model"), network=own | network))


def test_the_same_parameters_used_otherwise_are_taken_and_told(url: str, tmp_path: Path) -> None:
    given = recipe(tmp_path, url)
    trainer, said = trained(given), list[str]()
    make_fuser(plan_training(given), trainer.network).save(tmp_path / "model")
    changed = {"width": 8, "levels": [1], "channel_factors": [1], "window": 16}
    weights = started(recipe(tmp_path, url, init=str(tmp_path / "model"), network=changed), said)
    assert same(weights, trainer.network.state_dict())
    assert said == [
        f"init: the network of {tmp_path / 'model'} has the same parameters and was used otherwise: window is None,"
        " here 16"
    ]


def test_a_model_that_is_not_there_is_refused_before_anything_starts(url: str, tmp_path: Path) -> None:
    for where in ("models:/none@candidate", str(tmp_path / "nowhere")):
        with pytest.raises(RecipeError, match="init: no model"):
            plan_training(recipe(tmp_path, url, init=where))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "state.json").write_text("[]")
    with pytest.raises(RecipeError, match=r"init: .* is no checkpoint"):
        plan_training(recipe(tmp_path, url, init=str(tmp_path / "other")))


def test_a_recipe_can_set_whatever_the_data_does_not_decide() -> None:
    by_data = {"in_channels", "out_channels", "text_width", "residual", "max_objects"}
    settable = set(NetworkOverrides.model_fields) - {"size"}
    assert settable == {field.name for field in fields(NetworkConfig)} - by_data
    before = settings_of(recipe(Path("some"), "out/made"))
    other = recipe(Path("some"), "out/made", network={"head": "weights", "reach": 0.4, "choice_window": 0})
    config = network_of(other, "mff")
    assert (config.reach, config.choice_window, preset("mff").choice_window) == (0.4, None, 7)
    # What version 0.2.0 did not have is in the name of a training only where it is set.
    assert {"reach", "choice_window"}.isdisjoint(before["network"])
    assert settings_of(other)["network"]["reach"] == 0.4
    with pytest.raises(RecipeError, match="choice_window must be odd"):
        network_of(recipe(Path("some"), "out/made", network={"choice_window": 4}), "mff")
