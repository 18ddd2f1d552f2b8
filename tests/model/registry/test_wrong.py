"""What is wrong with pictures or a model is said in one sentence: by `load`, `fuse` and a row of the served model."""

from __future__ import annotations

import io
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from made import scene
from made_fusers import luma_fuser, pan_fuser, run

import rwkvfusion
from rwkvfusion.infra.errors import RwkvFusionError
from rwkvfusion.infra.pictures.encode import encode_picture
from rwkvfusion.infra.tracking import using
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.registry.encoded import SwappedWarning, fuse_row
from rwkvfusion.model.registry.loaded import LoadedModel

VISIBLE, INFRARED = scene(1, 36, 52), scene(2, 36, 52, 1)
PAN, MS = scene(1, 32, 32, 1).astype(np.uint16), scene(2, 8, 8, 4).astype(np.uint16)
MASK = np.zeros((36, 52), np.uint8)
FLOATS = INFRARED.astype(np.float32) / 255
HOLED = np.where(INFRARED.max() == INFRARED, np.float32(np.nan), FLOATS)


@dataclass(frozen=True)
class Wrong:
    """Pictures and guidance for `load`; `says`: the sentence, as a pattern; `file`: what `fuse` and a row say of them
    as files, where that is other; `ways`: who can be given this."""

    pictures: tuple[Any, ...]
    says: str
    more: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    ways: str = "load fuse row"
    model: str = "luma"


PICTURES = {
    "three channels for a band": Wrong(
        (np.repeat(PAN, 3, 2), MS), "pan has 3 channels, this model takes 1: give one band", model="pan"
    ),
    "three bands for four": Wrong(
        (PAN, MS[:, :, :3]), "ms has 3 channels, this model takes 4: give 4 bands", model="pan"
    ),
    "swapped bands": Wrong(
        (MS, PAN), r"pan has 4 channels, this model takes 1: are they swapped\? their order is pan \+ ms",
        ways="load", model="pan",
    ),
    "two channels": Wrong(
        (VISIBLE[:, :, :2], INFRARED), "visible has 2 channels, this model takes 1 or 3: give it in grey or RGB"
    ),
    "channels first": Wrong(
        (VISIBLE.transpose(2, 0, 1), INFRARED), "52 channels, this model takes 1 or 3: channels come last", ways="load"
    ),
    "two sizes": Wrong((VISIBLE, INFRARED[:9]), "infrared is 52x9 and visible is 52x36: sizes must be equal"),
    "one picture": Wrong((VISIBLE,), r"this model fuses visible \+ infrared: give (it )?2 pictures", ways="load fuse"),
    "no picture": Wrong((VISIBLE, 7), "infrared is an array, the bytes of a file, .* or a path, not int", ways="load"),
    "no file": Wrong(("a.png", "b.png"), "what is fused of files goes to a file: add out=", ways="load"),
    "bool": Wrong((VISIBLE, INFRARED > 99), "infrared holds bool: give integers or floats", ways="load"),
    "complex": Wrong(
        (VISIBLE, INFRARED.astype(np.complex64)), "infrared holds complex64: give integers or floats",
        file="complex bits is not read: save its magnitude",
    ),
    "texts": Wrong((VISIBLE, INFRARED.astype(str)), "infrared holds <U3: give integers or floats", ways="load"),
    "NaN": Wrong(
        (VISIBLE, HOLED), "infrared holds floats that are not finite: fill them", file="are NaN or infinite: fill them"
    ),
    "64 bits": Wrong(
        (VISIBLE, INFRARED.astype(np.int64)), "infrared holds int64, of which nothing says which value counts as 1: s",
        ways="load",
    ),
    "floats beyond 1": Wrong(
        (VISIBLE, FLOATS * 300), "holds floats from .*, and nothing says which value counts as 1: s.*--scale infrared"
    ),
    "empty": Wrong((VISIBLE, INFRARED[:0]), r"infrared is no picture .* of shape \(0, 52, 1\): give", ways="load"),
    "empty floats": Wrong((FLOATS[:0], FLOATS), r"visible is no picture .* \(0, 52, 1\): give", ways="load"),
    "one axis": Wrong(
        (VISIBLE, INFRARED.ravel()), r"infrared is no picture of \(H, W\) or \(H, W, C\), but of shape \(1872,\): give",
        file="is not one picture",
    ),
    "four axes": Wrong(
        (VISIBLE, INFRARED[None]), r"of shape \(1, 36, 52, 1\): give several in a list", file="is not one picture"
    ),
    "lists of two lengths": Wrong(
        ([VISIBLE], [INFRARED] * 2), "of a batch all are lists of one length: the first has 1", ways="load"
    ),
    "torn": Wrong((VISIBLE, b"none"), "(infrared|b.png): not a picture in a format we read"),
    "mask of another size": Wrong(
        (VISIBLE, INFRARED), "the mask is 52x9 and the fused picture 52x36: sizes must be equal", {"mask": MASK[:9]},
        ways="load row",
    ),
    "mask of floats": Wrong(
        (VISIBLE, INFRARED), "the mask holds float32: give whole numbers", {"mask": MASK.astype(np.float32)},
        ways="load",
    ),
    "mask in colour": Wrong(
        (VISIBLE, INFRARED), r"the mask is of shape \(36, 52, 3\): give \(H, W\)", {"mask": VISIBLE}, ways="load"
    ),
    "torn mask": Wrong(
        (VISIBLE, INFRARED), "the mask: not a picture in a format", {"mask": b"none"}, ways="load row"
    ),
    "no mask there": Wrong((VISIBLE, INFRARED), "nowhere.png", {"mask": "nowhere.png"}, ways="load"),
    "caption that is none": Wrong(
        (VISIBLE, INFRARED), "a caption is a text, or an array", {"caption": 3}, ways="load"
    ),
    "text of another width": Wrong(
        (VISIBLE, INFRARED), r"shape \(3, 5\), this model takes \(tokens, 16\): encode it as in training",
        {"caption": np.zeros((3, 5), np.float16)}, ways="load row",
    ),
    "text of NaN": Wrong(
        (VISIBLE, INFRARED), "the text holds what is not finite numbers", {"caption": np.full((3, 16), np.nan)},
        ways="load row",
    ),
    "text of letters": Wrong(
        (VISIBLE, INFRARED), "the text holds what is not finite numbers", {"caption": np.full((3, 16), "a")},
        ways="load row",
    ),
    "scale of no role": Wrong(
        (VISIBLE, INFRARED), "there is no 'depth' here, but visible, infrared", {"scale": "depth=3"}, ways="load row"
    ),
}  # fmt: skip
PAIRS = [(name, way) for name, wrong in PICTURES.items() for way in wrong.ways.split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the models `luma` and `pan`."""
    root = tmp_path_factory.mktemp("models")
    luma_fuser().save(root / "luma")
    pan_fuser().save(root / "pan")
    return root


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, LoadedModel]:
    return {name: rwkvfusion.load(str(folder / name), device="cpu") for name in ("luma", "pan")}


def file_of(array: Any) -> bytes:
    """PNG or TIFF."""
    if isinstance(array, bytes):
        return array
    try:
        return encode_picture(array, "png")[0]
    except (RwkvFusionError, ValueError, IndexError, TypeError):
        file = io.BytesIO()
        tifffile.imwrite(file, array)
        return file.getvalue()


def cell(value: Any) -> Any:
    """Guidance as a row has it."""
    if not isinstance(value, np.ndarray):
        return value
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue() if value.ndim == 2 and value.dtype != np.uint8 else file_of(value[:, :, None])


def said_by_fuse(model: Path | str, *words: object) -> str:
    """The one line of `fuse` that says what is wrong; no traceback, and exit code 1."""
    done = run("fuse", "--model", model, *words)
    assert done.exit_code == 1, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith(("skipped ", "rwkvfusion: ")))
    return line


@pytest.mark.parametrize(("name", "way"), PAIRS, ids=[f"{name} by {way}" for name, way in PAIRS])
def test_of_pictures(name: str, way: str, loaded: dict[str, LoadedModel], folder: Path, tmp_path: Path) -> None:
    wrong = PICTURES[name]
    model, message = loaded[wrong.model], wrong.says
    if way == "load":
        with pytest.raises(RwkvFusionError) as raised:
            model(*wrong.pictures, **wrong.more)
        said = str(raised.value)
    else:
        message = wrong.file or message
        files = [file_of(picture) for picture in wrong.pictures]
        if way == "row":
            more = {"text" if key == "caption" else key: cell(value) for key, value in wrong.more.items()}
            with pytest.raises(RwkvFusionError) as raised:
                fuse_row(Fuser.load(folder / wrong.model), dict(zip(model.roles, files, strict=False)) | more)
            said = str(raised.value)
        else:
            paths = [tmp_path / f"{letter}.png" for letter, _ in zip("abc", files, strict=False)]
            for path, data in zip(paths, files, strict=True):
                path.write_bytes(data)
            said = said_by_fuse(folder / wrong.model, *paths, "-o", tmp_path / "out.tif")
    assert re.search(message, said), said
    assert "\n" not in said


def swapped(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in caught if one.category is SwappedWarning]


@pytest.mark.parametrize("way", ["load", "fuse", "row"])
def test_swapped_pictures_are_fused_with_a_warning(
    way: str, loaded: dict[str, LoadedModel], folder: Path, tmp_path: Path
) -> None:
    pictures = {"grey": INFRARED, "colour": VISIBLE, "grey in three": np.repeat(INFRARED, 3, 2)}
    files = {name: file_of(array) for name, array in pictures.items()}
    for name, data in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)

    def told(a: str, b: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if way == "load":
                loaded["luma"](pictures[a], pictures[b])
            elif way == "row":
                fuse_row(Fuser.load(folder / "luma"), {"visible": files[a], "infrared": files[b]})
            else:
                paths = [tmp_path / f"{name}.png" for name in (a, b)]
                done = run("fuse", "--model", folder / "luma", *paths, "-o", tmp_path / "out.png", "--overwrite")
                assert done.exit_code == 0, done.output
                return re.findall("^warning: (.*)$", done.stderr, re.MULTILINE)
        return swapped(caught)

    (words,) = told("grey", "colour")
    assert re.fullmatch(
        r"are visible and infrared swapped\? .*, given as visible, is grey, and .*, given as infrared, is coloured",
        words,
    )
    assert len(told("grey in three", "colour")) == 1
    for a, b in (("colour", "grey"), ("colour", "grey in three"), ("colour", "colour"), ("grey", "grey in three")):
        assert told(a, b) == []


def test_files_are_told_apart_by_their_names(loaded: dict[str, LoadedModel], tmp_path: Path) -> None:
    for name, picture in (("vi", VISIBLE), ("ir", INFRARED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(file_of(np.repeat(picture[:, :, :1], 3, 2)))
    names = [str(tmp_path / name / "1.png") for name in ("ir", "vi")]
    with pytest.warns(SwappedWarning, match=r"by their names, .*ir/1.png is the infrared picture and .*vi/1.png"):
        loaded["luma"](*names, out=tmp_path / "out.png")


@pytest.fixture(scope="module")
def registry(folder: Path) -> str:
    """With version 1 of `tiny`, which is its champion."""
    where = f"sqlite:///{folder}/mlflow.db"
    with using(where) as client:
        client.create_registered_model("tiny")
        client.create_model_version("tiny", str(folder / "luma"))
        client.set_registered_model_alias("tiny", "champion", "1")
    return where


MODELS = [
    ("models:/tiny@best", r"tiny has versions 1 and aliases @champion \(version 1\): name one of these"),
    ("models:/tiny/7", r"tiny has versions 1 and aliases @champion \(version 1\): name one of these"),
    ("models:/tiny", r"names no version: add @ALIAS or /VERSION; tiny has versions 1"),
    ("models:/tony@champion", "no model models:/tony@champion: the registry at sqlite.* has tiny: name one of these"),
    (
        "runs:/abc/model",
        "no model runs:/abc/model: Run with id=abc not found; a model is runs:/RUN_ID/model or models:/",
    ),
    ("./nowhere/at/all", r"no model at ./nowhere/at/all: there is no such folder \(models of a registry are models:/"),
]


def said_by_load(model: str, **more: Any) -> str:
    with pytest.raises(RwkvFusionError) as raised:
        rwkvfusion.load(model, **more)
    return str(raised.value)


@pytest.mark.parametrize(("model", "message"), MODELS)
def test_of_a_model_that_is_not_there(model: str, message: str, registry: str) -> None:
    words = ("a.png", "b.png", "-o", "c.png", "--tracking-uri", registry)
    for said in (said_by_load(model, tracking_uri=registry), said_by_fuse(model, *words)):
        assert re.search(message, said), said
        assert "\n" not in said


def test_without_a_registry_or_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for said in (said_by_load("nothing"), said_by_load("models:/nothing@champion")):
        assert re.match(r"no model models:/nothing@champion: there is no registry at .*; set MLFLOW_TRACKING_URI", said)
    monkeypatch.setattr("rwkvfusion.model.registry.find.GIVE_UP_SECONDS", 0)
    where, uri = "http://127.0.0.1:9", "models:/tiny@champion"
    by_fuse = said_by_fuse(uri, "a.png", "b.png", "-o", "c.png", "--tracking-uri", where)
    for said in (said_by_load(uri, tracking_uri=where), by_fuse):
        assert re.search(r"MLflow at http://127.0.0.1:9: no answer .*; start it, or set MLFLOW_TRACKING_URI", said)


FILES: list[tuple[str, Any, str]] = [
    ("newer format", {"version": 2}, r"config.json is of a newer rwkvfusion.*\(version\): update it"),
    ("newer field", {"hologram": True}, r"is of a newer rwkvfusion.*\(hologram\): update it"),
    ("newer field of the network", {"network": {"in_channels": [1, 1], "out_channels": 1, "warp": 9}},
     r"is of a newer rwkvfusion.*\(network.warp\): update it"),
    ("newer kind of scan", {"network": {"in_channels": [1, 1], "out_channels": 1, "align": "spiral"}},
     "align must be mirrored .* got 'spiral'; update rwkvfusion if the model is of a newer one"),
    ("newer task", {"task": "video"}, "task must be .*; update rwkvfusion if the model is of a newer one"),
    ("torn config", b"{", "is not a fuser's config: .*must be JSON.* else bring the file here again"),
    ("config of other weights", {"network": {"in_channels": [1, 1], "out_channels": 1, "width": 16}},
     "does not hold this network's weights: .*bring the file here again"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), FILES, ids=[name for name, *_ in FILES])
def test_of_a_models_config(name: str, change: Any, message: str, tmp_path: Path) -> None:
    luma_fuser().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    data = change if isinstance(change, bytes) else json.dumps(config | change).encode()
    (tmp_path / "config.json").write_bytes(data)
    for said in (said_by_load(str(tmp_path)), said_by_fuse(tmp_path, "a.png", "b.png", "-o", "c.png")):
        assert re.search(message, said), said
        assert "\n" not in said


@pytest.mark.parametrize("kept", [0, 4, 999, None])
def test_of_damaged_weights(kept: int | None, tmp_path: Path) -> None:
    luma_fuser().save(tmp_path)
    weights = tmp_path / "model.safetensors"
    data = weights.read_bytes()
    if kept is not None:
        weights.write_bytes(data[:kept])
        said = said_by_load(str(tmp_path))
        assert re.search("model.safetensors does not hold this network's weights: .*; bring the file here again", said)
    else:
        # All is there, and some numbers are none.
        weights.write_bytes(data[:-64] + b"\xff" * 64)
        with pytest.raises(RwkvFusionError, match="not finite: its weights are damaged, so bring its files here again"):
            rwkvfusion.load(str(tmp_path))(VISIBLE, INFRARED)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "there is no device 'gpu': say cpu, cuda or cuda:1"),
        ("cuda:99", "GPUs that torch can use, and no cuda:99"),
    ],
)
def test_of_a_device(device: str, message: str, folder: Path) -> None:
    assert message in said_by_load(str(folder / "luma"), device=device)
