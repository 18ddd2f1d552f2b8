"""`demo`: prepare, train, register, fuse and evaluate on pairs made from photographs in scikit-image's wheel."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.metrics.baselines import luma_baselines
from rwkvfusion.model.metrics.score import Picture, Scene, score
from rwkvfusion.model.metrics.table import Comparison, Convention, metrics_version
from rwkvfusion.pipelines.cluster import connect
from rwkvfusion.pipelines.evaluate.report.terminal import described, table_lines
from rwkvfusion.pipelines.fuse.run import fuse_dataset, open_model
from rwkvfusion.pipelines.prepare.plan import plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.report import outcome_lines
from rwkvfusion.pipelines.prepare.run import prepare
from rwkvfusion.pipelines.recipe import load_recipe
from rwkvfusion.pipelines.train.recipe import TrainRecipe
from rwkvfusion.pipelines.train.run import train
from rwkvfusion.stages.dataset.task import TASKS

TRAIN = ("astronaut", "chelsea", "rocket", "motorcycle_left", "camera", "brick", "coins", "grass")
HELDOUT = ("coffee",)
VARIANTS = 3
"""Pairs made of each training photograph, each with its own focus region and exposures."""
_LONG_SIDE = 480
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
        for line in table_lines(shown):
            say("  " + line)
    say("")
    say(f"scores:   {described(Convention.Y, metrics_version())}")
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


def make_pairs(root: Path) -> dict[str, Path]:
    """Write the raw datasets `{root}/mff/{split}/{near,far,target}` and `{root}/mef/{split}/{under,over}` as PNG.

    Splits: `train` from TRAIN, `test` from HELDOUT, so that no photograph is in both. Returns {task: folder}.
    Deterministic: the same files every time.
    """
    folder = Path(skimage.data.__file__).parent
    for split, names, variants in (("train", TRAIN, VARIANTS), ("test", HELDOUT, 1)):
        for name in names:
            photo = _photo(next(folder.glob(f"{name}.*g")))
            for variant in range(variants):
                rng = np.random.default_rng([variant, *name.encode()])
                key = f"{name}_{variant}"
                near, far = focus_pair(photo, rng)
                under, over = exposure_pair(photo, rng)
                _save(root / "mff" / split, key, {"near": near, "far": far, "target": photo})
                _save(root / "mef" / split, key, {"under": under, "over": over})
    return {"mff": root / "mff", "mef": root / "mef"}


def focus_pair(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures of `photo` (H, W, C) uint8, each in focus where the other is blurred.

    The border between near and far is a smooth random curve, a few pixels soft as at a real depth edge.
    """
    height, width = photo.shape[:2]
    coarse = rng.standard_normal((4, 5)).astype(np.float32)
    depth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur((depth > np.median(depth)).astype(np.float32), (0, 0), 1.5)[:, :, None]
    sharp = photo.astype(np.float32)
    blurred = cv2.GaussianBlur(sharp, (0, 0), float(rng.uniform(2.0, 4.0))).reshape(sharp.shape)
    return _to_uint8(soft * sharp + (1 - soft) * blurred), _to_uint8((1 - soft) * sharp + soft * blurred)


def exposure_pair(photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An under- and an over-exposed picture of `photo` (H, W, C) uint8: light scaled, then clipped as a sensor does."""
    light = (photo.astype(np.float32) / 255) ** 2.2
    stops = rng.uniform((4.0, 1.5), (5.0, 2.0))
    under, over = (np.clip(light * 2.0**ev, 0, 1) ** (1 / 2.2) * 255 for ev in (-stops[0], stops[1]))
    return _to_uint8(under), _to_uint8(over)


def _photo(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        photo = file.convert("L" if file.mode in ("L", "P") else "RGB")
    photo.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
    array = np.asarray(photo)
    return array if array.ndim == 3 else array[:, :, None]


def _save(folder: Path, key: str, pictures: dict[str, np.ndarray]) -> None:
    for role, array in pictures.items():
        path = folder / role / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(path)


def _to_uint8(array: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)
