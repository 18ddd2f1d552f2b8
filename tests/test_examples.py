"""Every command that the README, the pages of docs/ and the help texts show is run as it stands, in a folder that holds
what it names; so are the lines of Python.

Trainings are cut short, the four models of guidance=full are tiny and only planned with, a bucket is a folder, and
the network of LPIPS has random weights that are there.
"""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
import random_vgg
import rasterio
import torch
from click.testing import CliRunner
from made import scene, write_pairs
from made_datasets import pair, write_dataset
from made_fusers import luma_fuser
from made_shipped import ROOT, ship
from rasterio.transform import from_origin
from scipy.io import savemat

from rwkvfusion.infra.pictures.encode import with_text
from rwkvfusion.infra.storage import sha256
from rwkvfusion.infra.tracking import using
from rwkvfusion.infra.weights import Checkpoint
from rwkvfusion.model.detection.detector import Detector, Facts, save
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.metrics import lpips
from rwkvfusion.model.names import HASH, MADE_BY, WEIGHTS
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.pipelines.cli import COMMANDS, main
from rwkvfusion.pipelines.options import NOT_PROMOTED
from rwkvfusion.pipelines.registry.entry import Verdict
from rwkvfusion.pipelines.registry.history import History
from rwkvfusion.stages.dataset.sample import Sample
from rwkvfusion.stages.source.files import open_picture

_TOP = Path(__file__).resolve().parent.parent
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (*sorted(_TOP.glob("docs/*.md")), _TOP / "README.md")}
NAMES = ["00131d", "00055d", "00001n", "00002n"]
SHORT = ["steps=2", "workers=1", "data.crop=[32,32]", "network.width=8", "log_every=2", "checkpoint_every=2"]
DIR = {"16383": "data/thermal", "geotiff": "data/scenes", "hscube": "data/cubes", "m3fd": "data/M3FD", "": "data/TNO"}
"""What DIR stands for, by a word of the command."""


def commands(text: str) -> list[str]:
    """The command lines of a text: indented, maybe behind a word, over several lines where one ends in a backslash."""
    joined = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"^\s+(?:\w[\w ]*: +)?(rwkvfusion [a-z]+\b.*?)(?:\s+#.*)?$", joined, re.MULTILINE)


TEXTS = [*PAGES.values(), main.help or "", *(main.get_command(None, name).help for name in COMMANDS)]
PYTHON = {
    name: textwrap.dedent(found[0])
    for name, text in PAGES.items()
    if (found := re.search(r"^    import rwkvfusion\n(?:(?:    .*)?\n)*", text, re.MULTILINE))
}
"""The lines of Python that a page shows."""
EXAMPLES = list(dict.fromkeys(line for text in TEXTS for line in commands(text)))
_LONG = re.compile(
    r"rwkvfusion (demo|ablate|export|retrain|doctor --complexity|fuse .*--ray|prepare .*--sample"
    r"|(prepare|train) (?!.*(--dry-run|guidance=full)))"
)
SLOW = {line for line in EXAMPLES if _LONG.match(line)}
"""Those that start workers, and those that trace a network or measure several."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are run: data in the layouts they name, and a registry with the models they name."""
    root = tmp_path_factory.mktemp("examples")
    data = root / "data"
    write_pairs(data / "MSRS", NAMES)
    write_pairs(data / "MSRS", ["00010n", "00011d"], "test")
    visible, infrared = data / "MSRS/train/vi", data / "MSRS/train/ir"
    for copy in (data, data / "TNO", data / "M3FD"):
        shutil.copytree(visible, copy / "vi", dirs_exist_ok=True)
        shutil.copytree(infrared, copy / "ir", dirs_exist_ok=True)
    for target in ("VISIBLE.png", "visible.png", "A.png"):
        shutil.copy(visible / "00131d.png", root / target)
    for target in ("INFRARED.png", "infrared.png", "B.png"):
        shutil.copy(infrared / "00131d.png", root / target)
    objects = np.zeros(cv2.imread(str(root / "VISIBLE.png")).shape[:2], np.uint8)
    objects[10:30, 20:50] = 1
    _write(root / "OBJECTS.png", objects)
    shutil.copytree(visible, data / "thermal" / "vi")
    (data / "thermal" / "ir").mkdir()
    for name in NAMES:
        counts = 20_000 + 16 * scene(7, channels=1).astype(np.uint16)
        _write(data / "thermal" / "ir" / f"{name}.png", counts - 16_000)
    _write(root / "THERMAL.png", counts)
    (data / "MEFB").mkdir()
    for side in ("near", "far", "all_in_focus", "fused", "other", "pan", "ms", "gt", "out", "results"):
        (root / side).mkdir()
    for seed, name in enumerate(NAMES):
        _write(root / "fused" / f"{name}.png", scene(seed))
        _write(root / "other" / f"{name}.png", scene(seed + 1))
        for more, side in enumerate(("near", "far", "all_in_focus")):
            _write(root / side / f"{name}.png", scene(seed + more))
        for letter, gain in (("A", 0.4), ("B", 1.0)):
            _write(data / "MEFB" / f"{name}_{letter}.png", (scene(seed) * gain).astype(np.uint8))
    (root / "labels").mkdir()
    for name in NAMES:
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    for names, file in ((NAMES[:2], "train.txt"), (NAMES[2:], "test.txt")):
        (root / file).write_text("\n".join(names))
    classes = ("person", "bicycle", "car")
    save(root / "detector.safetensors", [Detector(len(classes))], Facts(classes, ("visible",), ("00000n",), 1, ""))
    for seed, name in enumerate(("north", "south")):
        truth = scene(seed, 128, 128, 8).astype(np.uint16) * 8
        _raster(data / "scenes" / f"{name}_pan.tif", scene(seed, 512, 512, 1).astype(np.uint16) * 8, 1.0)
        _raster(data / "scenes" / f"{name}_ms.tif", truth, 4.0)
        for side, array in (
            ("pan", truth[:, :, :1]),
            ("ms", truth[::4, ::4]),
            ("gt", truth),
            ("out", truth),
            ("fused", truth),
        ):
            _raster(root / side / f"{name}.tif", array, 4.0 if side == "ms" else 1.0)
    shutil.copy(data / "scenes/north_pan.tif", root / "PAN.tif")
    shutil.copy(data / "scenes/north_ms.tif", root / "MS.tif")
    (data / "cubes").mkdir()
    cube = np.concatenate([scene(seed, 96, 96, 3) for seed in range(34)], axis=2).astype(np.uint16) * 30
    savemat(data / "cubes" / "paviaC.mat", {"paviaC": cube})
    # What other commands prepare, and what lies in a bucket.
    write_dataset(root / "out" / "m3fd", [[pair(seed) for seed in range(2)]])
    for split, names in (("train", NAMES), ("test", ["00010n", "00011d"])):
        samples = [pair(i, key=name).replace(text=None, split=split) for i, name in enumerate(sorted(names))]
        for name in ("msrs", "tno"):
            write_dataset(root / "out" / name, [samples], split=split)
    for name in ("00010n", "00011d"):
        _write(root / "results" / f"{name}.png", scene(3, 48, 64))
    (root / "bucket").symlink_to("out")
    images = tuple(
        open_picture(role, "north.tif", (root / role / "north.tif").read_bytes()).image for role in ("pan", "ms")
    )
    wv3 = Sample(key="north", dataset="wv3", split="test_full", task="pansharpening", images=images)
    write_dataset(root / "out" / "wv3", [[wv3]], "pansharpening", "test_full")
    random_vgg.save(root / "vgg16.pth")
    _register(root)
    # Those that come with the package. The first is in the registry too, where it is the champion.
    ship(root / "package", "vif", Fuser.load(root / "runs" / "last"))
    ship(root / "package", "vif-tiny", luma_fuser())
    made_by = {MADE_BY: sha256((root / "runs" / "last" / WEIGHTS).read_bytes())}
    (root / "FUSED.png").write_bytes(with_text((root / "A.png").read_bytes(), made_by))
    return root


def _write(path: Path, picture: np.ndarray) -> None:
    assert cv2.imwrite(str(path), picture)


def _raster(path: Path, picture: np.ndarray, pixel: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = picture.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": "uint16"}
    where = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_600_000, pixel, pixel)}
    with rasterio.open(path, "w", **profile, **where) as raster:
        raster.write(picture.transpose(2, 0, 1))


def _register(root: Path) -> None:
    """Small models of random weights: in a folder, and under the names and aliases of the examples."""
    torch.manual_seed(0)
    small = {"width": 8, "text_width": 256}
    luma = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, **small))
    bands = RWKVFusion(NetworkConfig(in_channels=(1, 8), out_channels=8, residual=1, use_mask=False, **small))
    vif = FuserConfig.of(luma, "vif", ("visible", "infrared"), luma_only=True)
    pan = FuserConfig.of(bands, "pansharpening", ("pan", "ms"), luma_only=False, scales=(2047.0, 2047.0))
    Fuser(luma, vif).save(root / "runs" / "last")
    Fuser(bands, pan).save(root / "runs" / "pan")
    uri = f"sqlite:///{root}/mlflow.db"
    with using(uri) as client:
        for name, folder in (("rwkvfusion-vif", "last"), ("rwkvfusion-pansharpening", "pan"), ("pan", "pan")):
            client.create_registered_model(name)
            files = root / "runs" / folder
            tags = {HASH: sha256((files / WEIGHTS).read_bytes())}
            client.create_model_version(name, files.as_uri(), tags=tags)
            for alias in ("candidate", "champion"):
                client.set_registered_model_alias(name, alias, "1")
        with History.open(uri, "rwkvfusion-vif", "champion").moving():
            pass
        # One that has a champion before.
        client.create_model_version("rwkvfusion-pansharpening", (root / "runs" / "pan").as_uri())
        with History.open(uri, "rwkvfusion-pansharpening", "champion").moving() as turn:
            turn.add(Verdict.PROMOTED, "2", "2", weights_sha256=None)


def words(line: str, folder: Path, tiny_models: dict[str, str]) -> list[str]:
    """The arguments of a command, as the module's docstring says."""
    directory = next(where for word, where in DIR.items() if word in line)
    line = re.sub(r"\bDIR\b", directory, line).replace("s3://bucket", f"{folder}/bucket")
    _, *arguments = shlex.split(line)
    sets: list[str] = []
    if arguments[0] == "demo":
        return [*arguments, "--steps", "2"]
    if arguments[0] == "recall" and "--train" in arguments:
        # The file that they name is there already, of another training, which stays.
        return [*arguments, "--steps", "2", "--save", f"{folder}/{len(arguments)}.safetensors"]
    if arguments[0] in ("train", "ablate"):
        sets = SHORT
    elif arguments[0] == "retrain":
        sets = ["init=scratch", "train.register.measure=0", *(f"train.{one}" for one in SHORT)]
    elif "guidance=full" in line:
        sets = [f"{name}={value}" for name, value in tiny_models.items()]
    if arguments[0] == "ablate":
        arguments += ["--steps", "2", "--seeds", "1"]
    arguments += [part for value in sets for part in ("--set", value)]
    return [*arguments, "--dry-run"] if "guidance=full" in line and arguments[0] == "prepare" else arguments


def test_the_texts_have_examples_of_every_command() -> None:
    shown = {line.split()[1] for line in EXAMPLES}
    assert shown == set(COMMANDS)
    assert len(EXAMPLES) > 25
    assert {*PYTHON} == {"README.md", "use.md"}


@pytest.mark.parametrize("page", PYTHON)
def test_lines_of_python_do_what_they_say(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ROOT, folder / "package")
    written = [Path(name) for name in re.findall(r'out="(.+?)"', PYTHON[page])]
    for path in written:
        path.unlink(missing_ok=True)
    exec(PYTHON[page], {})
    pictures = [cv2.imread(str(path)) for path in (Path("VISIBLE.png"), *written)]
    assert len({picture.shape for picture in pictures}) == 1 < len(pictures)


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow if line in SLOW else ()) for line in EXAMPLES]
)
def test_an_example_does_what_it_says(
    line: str, folder: Path, tiny_models: dict[str, str], local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(ROOT, folder / "package")
    monkeypatch.setattr(lpips, "VGG16", Checkpoint("vgg16.pth", option="--lpips"))
    arguments = words(line, folder, tiny_models)
    result = CliRunner().invoke(main, arguments)
    if arguments[0] == "retrain":
        # The first call says what is to be pinned; two pairs are too few to promote anything.
        (pin,) = re.findall("it is ([0-9a-f]{64}) now", result.output)
        result = CliRunner().invoke(main, [*arguments, "--set", f"promote.sets.msrs.fingerprint={pin}"])
        assert result.exit_code == NOT_PROMOTED, result.output
        return
    assert result.exit_code == 0, result.output
