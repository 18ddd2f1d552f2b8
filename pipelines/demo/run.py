"""`demo`: prepare, train, register, fuse and evaluate on photographs that come with scikit-image."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.metrics.baselines import luma_baselines
from rwkvfusion.model.metrics.score import Picture, Scene, score
from rwkvfusion.model.metrics.table import Comparison
from rwkvfusion.pipelines.cluster import connect
from rwkvfusion.pipelines.demo.photographs import make_pairs
from rwkvfusion.pipelines.evaluate.table import table_lines, verdict
from rwkvfusion.pipelines.fuse.run import fuse_dataset, open_model
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.report import outcome_lines
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import train
from rwkvfusion.stages.dataset.task import TASKS

SHOWN = ("Qabf", "MI", "VIF", "SSIM", "SF")
_OURS = "rwkvfusion"
_CPUS = 8  # logical: the actors of `prepare` and the workers of `train` share one Ray

Rows = dict[str, dict[str, float]]
"""{method: {metric: value}}"""


def run_demo(output: Path, *, steps: int | None = None, say: Callable[[str], None]) -> dict[str, Rows]:
    """Run the whole chain in `output` and print a table; {pair: {method: {metric: value}}} of the held-out pairs.

    Shards, MLflow's database and artifacts, the model and the pictures all stay in `output`.
    """
    start = time.perf_counter()
    root = output.absolute()
    say(f"[1/4] making multi-focus and multi-exposure pairs in {root / 'raw'}")
    raw = make_pairs(root / "raw")
    with connect(cpus=_CPUS):
        say("[2/4] preparing: detections, captions, masks, merged masks, encoded captions")
        urls = [_prepare(name, raw[task], root, say) for name, task in (("demo", "mff"), ("demo_mef", "mef"))]
        say("[3/4] training one small model on both, with two workers")
        sets = [f"data.urls=[{', '.join(urls)}]", f"output={root / 'train'}"]
        sets += [f"tracking.uri=sqlite:///{root / 'mlflow.db'}"] + ([f"steps={steps}"] if steps else [])
        result = train(load_recipe("demo_train", TrainRecipe, sets))
    say("[4/4] fusing the pairs of a photograph that was in no training pair")
    model = open_model(f"models:/{result.model_name}@{result.alias}", tracking=result.tracking_uri)
    scores: dict[str, Rows] = {}
    for task, url in zip(raw, urls, strict=True):
        out = root / "fused" / Path(url).name
        for fused in fuse_dataset(model, url, str(out), ["test"]).written:
            scores[f"{out.name}/{fused.name}"] = _score(task, raw[task], out, fused.name)
    for pair, rows in scores.items():
        say("")
        say(pair)
        shown = {method: {metric: row[metric] for metric in SHOWN} for method, row in rows.items()}
        for line in (*table_lines(shown), verdict(shown, _OURS)):
            say("  " + line)
    say("")
    say(f"pictures: {root / 'fused'} (fused.png beside the sources and their mean)")
    say(f"model:    models:/{result.model_name}@{result.alias} (version {result.version})")
    say(f"          MLFLOW_TRACKING_URI={result.tracking_uri}")
    say(f"          see the run: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {result.tracking_uri}")
    say(f"took {time.perf_counter() - start:.0f} s")
    return scores


def _prepare(recipe: str, raw: Path, root: Path, say: Callable[[str], None]) -> str:
    sets = [f"source.root={raw}", f"output={root / 'datasets'}"]
    outcome = prepare(plan_job(load_recipe(recipe, PrepareRecipe, sets)), say=lambda _: None)
    for line in outcome_lines(outcome):
        say(f"      {line}")
    return outcome.dataset_url


def _score(task: str, raw: Path, out: Path, name: str) -> Rows:
    """Score a fused pair in `out` and the trivial answers to it; puts the sources and their mean beside it."""
    sources = {role: decode((raw / "test" / role / f"{name}.png").read_bytes()) for role in TASKS[task].orders[0]}
    scene = Scene(name, task, tuple(Picture(role, values) for role, values in sources.items()))
    mean = luma_baselines([source.luma for source in scene.sources])["mean"]
    for suffix, values in (sources | {"mean": mean}).items():
        (out / f"{name}.{suffix}.png").write_bytes(encode_png(values))
    fused = Picture(_OURS, decode((out / f"{name}.png").read_bytes()))
    rows = score(scene, {_OURS: fused}).rows[Comparison.SOURCES]
    return {method: rows[method] for method in ("mean", "maximum", _OURS)}
