"""Sharpening as a user does it: GeoTIFFs and a cube are prepared, a model is trained, fused with and scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_rasters import scene, write_geotiff, write_matlab5

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.model.training.survey import TrainingSet
from rwkvfusion.pipelines.cli import main
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.pipelines.train.build import make_fuser, make_trainer
from rwkvfusion.pipelines.train.plan import TrainPlan, plan_training
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.scores import final_scores
from rwkvfusion.stages.source.scenes.sensors import degrade

pytestmark = pytest.mark.usefixtures("local_ray")


def write_scenes(root: Path) -> None:
    """A PAN of 512x512 and an MS of 128x128x4 of 11 bits, as GeoTIFFs; and a cube of 96x64x24."""
    truth = scene(11, 512, 512, 4)
    ms = np.rint(degrade(truth, 4, 0.29)).astype(np.uint16)
    pan = np.rint(truth.mean(axis=2, keepdims=True)).astype(np.uint16)
    write_geotiff(root / "tif" / "town_pan.tif", pan, 0.5)
    write_geotiff(root / "tif" / "town_ms.tif", ms, 2.0)
    (root / "cubes").mkdir()
    write_matlab5(root / "cubes" / "field.mat", {"field": np.rint(scene(12, 96, 64, 24, 8000)).astype(np.uint16)})


def run(*args: str) -> str:
    result = CliRunner().invoke(main, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def trained(url: str, folder: Path, steps: int, **network: Any) -> tuple[Fuser, TrainPlan]:
    recipe = load_recipe("train_pansharpening.yaml", TrainRecipe, [
        f"data.url={url}", "data.crop=[32, 32]", "data.batch=4", "data.prefetch=0",
        f"network={json.dumps({'width': 8, 'levels': [1, 1], 'channel_factors': [1, 1], **network})}",
        "register.measure=0", "optim.lr=0.004", "optim.clip=1.0", "optim.ema=0.9", "optim.warmup=5", f"steps={steps}",
    ])  # fmt: skip
    plan = plan_training(recipe)
    trainer = make_trainer(plan, torch.device("cpu"), rank=0, world=1)
    for step, batch in zip(range(steps), plan.loader(0, 1).stream(), strict=False):
        assert step == trainer.done
        trainer.step(batch)
    network = RWKVFusion(plan.network)
    network.load_state_dict(trainer.ema)
    fuser = make_fuser(plan, network.eval())
    fuser.save(folder)
    return fuser, plan


@pytest.mark.parametrize(
    ("task", "layout", "folder"),
    [("pansharpening", "geotiff", "tif"), pytest.param("hmif", "hscube", "cubes", marks=pytest.mark.slow)],
)
def test_scenes_are_prepared_learnt_from_fused_and_scored(tmp_path: Path, task: str, layout: str, folder: str) -> None:
    write_scenes(tmp_path)
    run(
        "prepare", f"{task}.yaml", "--set", f"source.layout={layout}", "--set", f"source.root={tmp_path / folder}",
        "--set", f"output={tmp_path / 'out'}", "--set", "source.scene.scale=2047",
        *(["--set", "source.scene.response=even:3"] if task == "hmif" else []),
    )  # fmt: skip
    url = str(tmp_path / "out" / layout)
    run("verify", url, "--deep")
    splits = {"train", "test"} | ({"train_full", "test_full"} if task == "pansharpening" else set())
    samples = {
        split: [s for shard in TrainingSet.open([url], [split]).shards for s in shard.read()] for split in splits
    }
    assert all((sample.target is None) == split.endswith("_full") for split in splits for sample in samples[split])
    assert all(sample.mask is None and sample.text is not None for split in splits for sample in samples[split])

    fuser, plan = trained(url, tmp_path / "model", 60)
    assert fuser.config.scales == (2047.0, 2047.0)
    scores = json.loads(
        run("evaluate", "--model", str(tmp_path / "model"), "--dataset", url, "--split", "test", "--json", "-")
    )
    assert set(scores) == {"bicubic", "Brovey", "GSA", "model"}
    assert scores["model"]["ERGAS"] < scores["bicubic"]["ERGAS"]
    # The final metrics of a training are those of `evaluate`.
    final = final_scores(fuser, plan.recipe.data)
    assert final.metrics["SAM"] == pytest.approx(scores["model"]["SAM"], abs=1e-3)
    assert (final.splits, *final.floors) == (("test",), "bicubic", "Brovey", "GSA")
    if task == "pansharpening":
        full = json.loads(
            run("evaluate", "--model", str(tmp_path / "model"), "--dataset", url, "--split", "test_full", "--json", "-")
        )
        assert set(full["model"]) == {"Dl", "Ds", "HQNR"}

    run("fuse", "--model", str(tmp_path / "model"), "--dataset", url, "--split", "test", "-o", str(tmp_path / "fused"))
    sample = samples["test"][0]
    assert sample.target is not None
    (record,) = [
        json.loads(path.read_text()) for path in (tmp_path / "fused").glob("*.json") if sample.key in path.read_text()
    ]
    fused = decode((tmp_path / "fused" / record["output"]["path"]).read_bytes())
    target = decode(sample.target.data)
    assert fused.shape == target.shape
    assert float(np.abs(fused - target.astype(np.float64)).mean()) < 0.05 * 2047
