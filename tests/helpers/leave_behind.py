"""Packs what this version of the package leaves on a disk, for the tests of later versions.

    .venv/bin/python tests/helpers/leave_behind.py tests/helpers/left_by_VERSION.tar.xz

Four datasets and one whose `prepare` was killed, two trainings and a killed one, their registered models, and pictures
that these fused. All of it comes from the command line, run in the folder ROOT: every absolute path in a file or in a
row of MLflow's database begins with ROOT, and who unpacks the archive elsewhere replaces it. `facts.json` holds ROOT,
the version, the hashes of shards and pictures, the results of the trainings and a loss curve. Run it before a release
(some minutes); `test_older_versions.py` goes through every archive beside this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio
import scipy.io
import yaml
from PIL import Image
from rasterio.transform import from_origin

ROOT = Path("/tmp/left-by-an-older-version")
CLI = (sys.executable, "-m", "rwkvfusion.pipelines.cli")
REVISION = "0123456789abcdef0123456789abcdef01234567"
ENVIRONMENT = {
    "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    "HF_HUB_CACHE": "hub",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

PREPARE: dict[str, dict[str, Any]] = {
    # JPEG, PNG and TIFF; some pairs have annotated masks or own captions; one file is unreadable.
    "street": {
        "task": "vif",
        "source": {"layout": "msrs", "root": "raw/street", "caption": {"folder": "words"}},
        "prompts": ["car", "person"],
        "text": {"width": 16},
        "quarantine": {"max_fraction": 0.2},
    },
    # A pretrained model in a folder, and one in the hub's cache.
    "modelled": {
        "name": "modelled",
        "source": {"layout": "msrs", "root": "raw/street", "splits": ["test"]},
        "masks": "none",
        "caption": {"method": "florence2", "model": "models/florence", "max_tokens": 12, "beams": 1},
        "text": {"method": "encoder", "model": "tiny/t5", "revision": REVISION},
    },
    # A raster and a hyperspectral cube, cut and degraded into pairs.
    "town": {
        "name": "town",
        "source": {"layout": "geotiff", "root": "raw/town", "scene": {"tile": 64}},
        "text": {"width": 16},
    },
    "field": {
        "name": "field",
        "source": {"layout": "hscube", "root": "raw/field", "holdout": {}, "scene": {"response": "even:3"}},
        "text": {"width": 16},
    },
}
TRAIN: dict[str, dict[str, Any]] = {
    "street": {"data": {"url": "sets/msrs", "crop": [32, 32], "batch": 2, "prefetch": 1, "final_pairs": 1}},
    "town": {"data": {"url": "sets/town", "crop": [16, 16], "batch": 2, "prefetch": 0, "final_pairs": 0}},
}
SMALL: dict[str, Any] = {
    "network": {"width": 4, "levels": [1], "channel_factors": [1]},
    "steps": 40,
    "log_every": 2,
    "checkpoint_every": 20,
    "pictures_every": 40,
    "output": "train",
}


def main(out: Path) -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    write_pictures()
    write_models()
    for name, recipe in PREPARE.items():
        write_recipe(f"prepare-{name}", {**recipe, "output": "sets", "shard": {"pairs": 1 if name == "street" else 4}})
    for name, recipe in TRAIN.items():
        write_recipe(f"train-{name}", {**recipe, **SMALL})
    facts: dict[str, Any] = {"root": str(ROOT), "version": run("--version").split()[-1]}
    for name in PREPARE:
        say(run("prepare", f"prepare-{name}.yaml", "--json"))
    prepare_killed()
    facts["tars"] = {str(tar): digest(tar) for tar in sorted(Path("sets").rglob("*.tar"))}
    facts["trained"] = {name: json.loads(run("train", f"train-{name}.yaml", "--json")) for name in TRAIN}
    train_killed()
    facts["loss"] = losses(facts["trained"]["street"]["run_id"])
    vi, ir = "raw/street/test/vi/7n.png", "raw/street/test/ir/7n.png"
    vif = ["--model", "models:/rwkvfusion-vif@candidate"]
    run("fuse", *vif, vi, ir, "-o", "fused/pair.png")
    run("fuse", "--model", "models:/rwkvfusion-vif/1", "--guidance", "builtin", vi, ir, "-o", "fused/guided.png")
    run("fuse", *vif, "--dataset", "sets/msrs", "--split", "test", "-o", "fused/set")
    pan, ms = "raw/town/town_pan.tif", "raw/town/town_ms.tif"
    run("fuse", "--model", "models:/rwkvfusion-pansharpening@candidate", pan, ms, "-o", "fused/town.tif")
    subprocess.run([sys.executable, "-c", PREDICT, vi, ir], check=True)
    facts["fused"] = {str(file): digest(file) for file in sorted(Path("fused").rglob("*.*")) if file.suffix != ".json"}
    Path("facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
    tidy()
    with tarfile.open(out, "w:xz", preset=9) as tar:
        tar.add(ROOT, arcname=".", filter=anonymous)
    say(f"{out}: {out.stat().st_size} bytes")


PREDICT = """
import sys
from pathlib import Path
import mlflow, pandas
visible, infrared = (Path(name).read_bytes() for name in sys.argv[1:])
model = mlflow.pyfunc.load_model("models:/rwkvfusion-vif@candidate")
(fused,) = model.predict(pandas.DataFrame({"visible": [visible], "infrared": [infrared]}))["fused"]
Path("fused/pyfunc.png").write_bytes(fused)
"""


def run(*args: str) -> str:
    return subprocess.run([*CLI, *args], check=True, stdout=subprocess.PIPE, text=True).stdout


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def write_recipe(name: str, recipe: dict[str, Any]) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


# -- what is prepared --------------------------------------------------------------------------------------------------


def scene(seed: int, height: int, width: int, channels: int, top: float = 255) -> np.ndarray:
    """A smooth picture with a bright disc, (H, W, C) from 0 to `top`."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    waves = [
        sum(np.sin(yy / rng.uniform(4, 20) + rng.uniform(0, 6)) + np.sin(xx / rng.uniform(4, 20)) for _ in range(3))
        for _ in range(channels)
    ]
    picture = 0.45 + 0.05 * np.stack(waves, axis=2)
    centre = rng.uniform(0.35, 0.65, 2) * (height, width)
    picture[(yy - centre[0]) ** 2 + (xx - centre[1]) ** 2 < (height / 6) ** 2] = 0.95
    return np.rint(np.clip(picture, 0, 1) * top)


def write_pictures() -> None:
    endings = {1: "jpg", 2: "tif"}
    for seed in range(12):
        split, name = ("test", f"{seed}n") if seed in (7, 8) else ("train", f"{seed}d")
        ending = endings.get(seed, "png")
        visible = scene(seed, 48, 64, 3).astype(np.uint8)
        infrared = 255 - scene(seed + 100, 48, 64, 1)[:, :, 0].astype(np.uint8)
        folder = Path("raw/street") / split
        save(folder / "vi" / f"{name}.{ending}", visible)
        save(folder / "ir" / f"{name}.{ending}", infrared)
        if seed % 3 == 0:
            mask = np.zeros((48, 64), np.uint8)
            mask[10:30, 20:40], mask[32:44, 4:20] = 1, 2
            save(folder / "Segmentation_labels" / f"{name}.png", mask)
        if seed % 4 == 0:
            (folder / "words").mkdir(exist_ok=True)
            (folder / "words" / f"{name}.txt").write_text(f"A car, and a person beside it ({seed}).\n")
    torn = Path("raw/street/train/vi/11d.png")
    torn.write_bytes(torn.read_bytes()[:300])
    truth = scene(50, 192, 128, 4, 2000)
    write_geotiff(Path("raw/town/town_pan.tif"), truth.mean(axis=2, keepdims=True), 0.5)
    write_geotiff(Path("raw/town/town_ms.tif"), truth.reshape(48, 4, 32, 4, 4).mean(axis=(1, 3)), 2.0)
    Path("raw/field").mkdir()
    cube = {"field": scene(51, 48, 40, 20, 8000).astype(np.uint16)}
    scipy.io.savemat("raw/field/field.mat", cube, do_compression=True)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_geotiff(path: Path, picture: np.ndarray, pixel: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = picture.shape
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_600_000, pixel, pixel)}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype="uint16", compress="deflate", **place
    ) as file:
        file.write(np.rint(picture).astype(np.uint16).transpose(2, 0, 1))


def write_models() -> None:
    """Florence-2 in a folder, and T5 as the hub's cache holds it."""
    import tiny
    import tiny_sam_t5

    tiny.florence(Path("models/florence"))
    cache = Path("hub/models--tiny--t5")
    tiny_sam_t5.t5(cache / "snapshots" / REVISION)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(REVISION)
    for weights in Path().rglob("*.safetensors"):
        shorten(weights)


def shorten(weights: Path) -> None:
    """Round the weights to bfloat16, still stored as float32: they compress to half."""
    from safetensors.torch import load_file, save_file

    save_file({name: t.bfloat16().to(t.dtype) for name, t in load_file(weights).items()}, weights, {"format": "pt"})
    weights.chmod(0o644)


# -- what is killed ----------------------------------------------------------------------------------------------------


def prepare_killed() -> None:
    """`killed/msrs`: shards that are committed, begun (the first stages have kept what they made), and not begun."""
    for _ in range(20):  # until a kill comes at the right moment
        shutil.rmtree("killed", ignore_errors=True)
        if kill_when(lambda: all(progress()), "prepare", "prepare-street.yaml", "--set", "output=killed"):
            time.sleep(1)
            committed, begun, untouched = progress()
            say(f"killed with {committed} shards committed, {begun} begun and {untouched} not begun")
            if committed and begun and untouched:
                return
    raise SystemExit("no kill came at the right moment")


def progress() -> tuple[int, int, int]:
    """Shards of the killed dataset that are committed, begun (some stages are cached and some not), not begun."""
    killed, whole = Path("killed/msrs"), Path("sets/msrs")
    stages = sorted(path.name for path in whole.glob("_cache/*"))
    cached = {path.stem for path in killed.glob("_cache/*/*.arrow")}
    committed = {path.stem for path in killed.glob("_manifests/*.json")}
    planned = {path.stem for path in whole.glob("_manifests/*.json")}
    full = {shard for shard in cached if all((killed / "_cache" / s / f"{shard}.arrow").exists() for s in stages)}
    return len(committed), len(cached - full - committed), len(planned - cached - committed)


def train_killed() -> None:
    """`killed/train`: a training after its first checkpoint of two."""
    if not kill_when(
        lambda: 20 in checkpoints(),
        "train", "train-street.yaml", "--set", "output=killed/train", "--set", "register.name=resumed",
    ):  # fmt: skip
        raise SystemExit("the training ended before it was killed")
    time.sleep(1)
    if checkpoints() != {20}:
        raise SystemExit("the training was killed too late")


def checkpoints() -> set[int]:
    """Steps of the checkpoints that Ray Train has listed."""
    lists = Path("killed/train").glob("*/checkpoint_manager_snapshot.json")
    return {int(step) for path in lists for step in re.findall(r'"step": *(\d+)', path.read_text())}


def kill_when(condition: Callable[[], bool], *args: str) -> bool:
    """Kill the command with all its processes once `condition` holds; whether it did before the command ended."""
    process = psutil.Popen([*CLI, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    looked = 0.0
    while process.poll() is None:
        if time.monotonic() - looked > 0.5:
            family, looked = [process, *process.children(recursive=True)], time.monotonic()
        if condition():
            for one in {*family, *process.children(recursive=True)}:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


# -- what is packed ----------------------------------------------------------------------------------------------------


def losses(run_id: str) -> dict[int, float]:
    from mlflow import MlflowClient

    return {point.step: point.value for point in MlflowClient().get_metric_history(run_id, "loss")}


def tidy() -> None:
    """Remove this machine's traces: its name and boot in the leases, and the folder of the package."""
    for lease in Path().rglob("_lease/*.json"):
        lease.write_text(re.sub(r'("(host|space)": ?)"[^"]*"', r'\1"a-machine"', lease.read_text()))
    for model in Path("mlartifacts").rglob("MLmodel"):
        model.write_text(re.sub(r"(model_code_path: ).*/", r"\1/rwkvfusion/model/", model.read_text()))


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
