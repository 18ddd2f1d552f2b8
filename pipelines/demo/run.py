"""`demo`: prepare, train, register, fuse and evaluate on photographs that come with scikit-image."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.infra.storage import Store
from rwkvfusion.model.metrics.table import METRICS
from rwkvfusion.model.metrics.table import evaluate as score
from rwkvfusion.pipelines.cluster import connect
from rwkvfusion.pipelines.demo.photographs import make_pairs
from rwkvfusion.pipelines.evaluate.run import baselines, table_lines
from rwkvfusion.pipelines.evaluate.table import verdict
from rwkvfusion.pipelines.fuse.run import fuse_dataset, open_model
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.report import outcome_lines
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import train

SHOWN = ("Qabf", "MI", "VIF", "SSIM", "SF")
_CPUS = 8  # logical: the actors of `prepare` and the workers of `train` share one Ray

Scores = dict[str, dict[str, float]]


def run_demo(output: Path, *, steps: int | None = None, say: Callable[[str], None]) -> dict[str, Scores]:
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
    found: dict[str, Scores] = {}
    for url in urls:
        out = root / "fused" / Path(url).name
        for fused in fuse_dataset(model, url, str(out), ["test"]).written:
            found[f"{Path(url).name}/{fused.name}"] = _score(Store(url), out, fused.name, raw)
    for pair, scores in found.items():
        say("")
        say(pair)
        shown = {name: {m: row[m] for m in SHOWN} for name, row in scores.items()}
        for line in (*table_lines(shown), verdict(shown, "rwkvfusion")):
            say("  " + line)
    say("")
    say(f"pictures: {root / 'fused'} (fused.png beside the sources and their mean)")
    say(f"model:    models:/{result.model_name}@{result.alias} (version {result.version})")
    say(f"          MLFLOW_TRACKING_URI={result.tracking_uri}")
    say(f"          see the run: {Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {result.tracking_uri}")
    say(f"took {time.perf_counter() - start:.0f} s")
    return found


def _prepare(recipe: str, raw: Path, root: Path, say: Callable[[str], None]) -> str:
    sets = [f"source.root={raw}", f"output={root / 'datasets'}"]
    outcome = prepare(plan_job(load_recipe(recipe, PrepareRecipe, sets)), say=lambda _: None)
    for line in outcome_lines(outcome):
        say(f"      {line}")
    return outcome.dataset_url


def _score(dataset: Store, out: Path, name: str, raw: dict[str, Path]) -> Scores:
    """Score a fused pair and the trivial answers to it; puts the sources and their mean beside the fused picture."""
    folder = raw[dataset.url.rpartition("-")[2]] / "test"
    sources = {
        role.name: decode((role / f"{name}.png").read_bytes())
        for role in sorted(folder.iterdir())
        if role.name != "target"
    }
    fused = decode((out / f"{name}.png").read_bytes())
    for role, picture in sources.items():
        (out / f"{name}.{role}.png").write_bytes(encode_png(picture))
    methods = baselines(list(sources.values()))
    (out / f"{name}.mean.png").write_bytes(encode_png(methods["mean"]))
    methods = {"mean": methods["mean"], "maximum": methods["maximum"], "rwkvfusion": fused}
    return {method: score(picture, list(sources.values()), tuple(METRICS)) for method, picture in methods.items()}
