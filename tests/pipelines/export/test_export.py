"""Exported models against the fuser: the same pictures to one grey level, with nothing but what is in the file."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made_fusers import run
from PIL import Image
from torch import nn

from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing import export
from rwkvfusion.model.fusing.export import METADATA
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.names import HASH, WEIGHTS
from rwkvfusion.model.network.config import NetworkConfig
from rwkvfusion.model.network.network import RWKVFusion
from rwkvfusion.pipelines.export.run import EXAMPLE

SIZES = [(1, 1), (37, 53), (96, 96), (131, 77), (240, 321)]
TEXT_WIDTH = 12
PAGE = Path(__file__).resolve().parents[3] / "docs" / "use.md"
Fuse = Callable[..., np.ndarray]
Written = tuple[Fuser, Path, dict[str, Any]]
"""A fuser, the file that the command wrote of it, and what it answered."""


def lively(config: NetworkConfig) -> RWKVFusion:
    """Weights under which every path counts, those that begin at nothing too."""
    torch.manual_seed(0)
    network = RWKVFusion(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.normal_(0, fan**-0.5)
    return network


def vif() -> Fuser:
    config = NetworkConfig(
        in_channels=(1, 1), out_channels=1, width=16, levels=(1,), channel_factors=(1,), text_width=TEXT_WIDTH,
        text_pool=(4,), align="crossed", decay="token", skip="channel", local=True, epsilon=1e-5, gate_window=48,
        head="weights", object_lift=0.13,
    )  # fmt: skip
    network = lively(config)
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))


def sharpening() -> Fuser:
    config = NetworkConfig(
        in_channels=(1, 3), out_channels=3, width=4, levels=(1, 1, 1), channel_factors=(1, 1, 1), text_width=TEXT_WIDTH,
        text_pool=(4, 2, 1), align="aligned", residual=1,
    )  # fmt: skip
    network = lively(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("decay"):
                # Trained ones have both signs.
                parameter[::2] *= -0.5
    return Fuser(network, FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False, scales=(1023, 900)))


def exposures() -> Fuser:
    """With what the others lack: scans in all directions, in windows, and raw images in the decoder."""
    config = NetworkConfig(
        in_channels=(1, 1), out_channels=1, width=4, levels=(1,), channel_factors=(1,), text_width=TEXT_WIDTH,
        text_pool=(4,), align="mirrored", decay="relative", scan=3, window=8, decoder_images=True, head="weights",
        prefer="sharper", preference=2.0, object_lift=0.1,
    )  # fmt: skip
    network = lively(config)
    return Fuser(network, FuserConfig.of(network, "mef", ("under", "over"), luma_only=True))


def shallow() -> Fuser:
    """With one Bi-WKV, in which text and image meet: a program takes its time by them."""
    config = NetworkConfig(
        in_channels=(1, 1), out_channels=1, width=16, levels=(1,), channel_factors=(1,), text_width=TEXT_WIDTH,
        text_pool=(4,), head="weights",
    )  # fmt: skip
    network = lively(config)
    network.middle = network.decoder[0].layers = network.encoder[0].layers[0].brwkv = nn.Sequential()
    return Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True))


def by_command(fuser: Fuser, path: Path) -> Written:
    fuser.save(path.parent / "model")
    done = run("export", "--model", path.parent / "model", "-o", path, "--json")
    assert done.exit_code == 0, done.output
    return fuser, path, json.loads(done.stdout)


@pytest.fixture(scope="module")
def of_vif(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return by_command(vif(), tmp_path_factory.mktemp("vif") / "vif.onnx")


@pytest.fixture(scope="module")
def session(of_vif: Written) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(of_vif[1])


def consumer(session: onnxruntime.InferenceSession) -> Fuse:
    """`fuse` of the program that the file brings, which has nothing else."""
    space: dict[str, Any] = {"__name__": "consumer"}
    exec(session.get_modelmeta().custom_metadata_map["example"], space)
    return partial(space["fuse"], session)


def pictures(height: int, width: int) -> list[np.ndarray]:
    """A coloured one and a grey one, smooth and noisy in parts."""
    rng = np.random.default_rng(height)
    rows, columns = np.indices((height, width))
    waves = 110 + 90 * np.sin(rows / 9)[..., None] * np.cos(columns / 13 + rows / 40)[..., None]
    noise = rng.normal(0, 30, (height, width, 4)) * (columns > width / 2)[..., None]
    both = (waves + noise + [20, 0, -20, 0]).clip(0, 255).astype(np.uint8)
    return [both[..., :3], 255 - both[..., 3]]


def guidances(height: int, width: int) -> Iterator[tuple[np.ndarray | None, np.ndarray | None]]:
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = 3
    mask[-height // 5 :, : width // 4 + 1] = 20
    text = np.random.default_rng(5).normal(size=(6, TEXT_WIDTH)).astype(np.float16)
    yield from ((None, None), (mask, None), (None, text), (mask, text))


def levels(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    return int(np.abs(one.astype(np.int64) - other).max())


@pytest.mark.parametrize("size", SIZES)
def test_onnx_runtime_alone_fuses_the_same_picture(
    of_vif: Written, session: onnxruntime.InferenceSession, size: tuple[int, int]
) -> None:
    fuse, made = consumer(session), pictures(*size)
    plain = of_vif[0].fuse(dict(zip(("visible", "infrared"), made, strict=True)))
    for mask, text in guidances(*size):
        expected = of_vif[0].fuse(dict(zip(("visible", "infrared"), made, strict=True)), mask, text)
        assert levels(fuse(made, mask, text), expected) <= 1
        # What guides must have done something, or it could as well be left out.
        assert (mask is None and text is None) or size == (1, 1) or levels(expected, plain) > 3


def test_zeros_are_no_guidance_and_pad_the_text(session: onnxruntime.InferenceSession) -> None:
    rng = np.random.default_rng(0)
    size = (1, 1, 37, 53)
    planes = {name: rng.random(size, np.float32) for name in ("visible", "infrared")}
    planes |= {"mask": np.zeros((1, 37, 53), np.uint8)}
    text = rng.normal(size=(1, 5, TEXT_WIDTH)).astype(np.float32)

    def fused(*, tokens: np.ndarray) -> np.ndarray:
        (image,) = session.run(None, planes | {"text": tokens})
        return np.asarray(image)

    padding = np.zeros((1, 4, TEXT_WIDTH), np.float32)
    np.testing.assert_allclose(fused(tokens=np.concatenate((text, padding), 1)), fused(tokens=text), atol=1e-4)
    np.testing.assert_allclose(fused(tokens=padding), fused(tokens=padding[:, :1]), atol=1e-4)
    assert np.abs(fused(tokens=text) - fused(tokens=padding)).max() > 0.01


def check_names_no_place(*parts: bytes) -> None:
    """That nothing of a file tells where the code lies that made it."""
    for part in parts:
        assert b"site-packages" not in part
        assert b"network.py" not in part


def test_a_file_tells_what_it_is(of_vif: Written) -> None:
    _, path, answer = of_vif
    assert answer["sha256"] == sha256(path.read_bytes())
    assert answer["inputs"] == ["visible", "infrared", "mask", "text"]
    check_names_no_place(path.read_bytes())
    model = onnx.load(path)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["task"] == "vif"
    assert told[HASH] == sha256((path.parent / "model" / WEIGHTS).read_bytes())
    assert json.loads(told["roles"]) == ["visible", "infrared"]
    assert json.loads(told["scales"]) == []
    assert (told["luma_only"], told["text_width"], told["max_objects"]) == ("true", str(TEXT_WIDTH), "20")
    assert "luma alone" in told["recipe"]
    assert told["tile"] == "null"
    assert {entry.domain for entry in model.opset_import} <= {""}
    sizes = {entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in
             (*model.graph.input, *model.graph.output)}  # fmt: skip
    picture = [1, 1, "height", "width"]
    assert sizes == {
        "visible": picture, "infrared": picture, "mask": [1, "height", "width"], "text": [1, "tokens", TEXT_WIDTH],
        "fused": picture,
    }  # fmt: skip


def test_the_example_runs_as_the_page_says(of_vif: Written, tmp_path: Path) -> None:
    fuser, path, _ = of_vif
    made = pictures(48, 64)
    for name, picture in zip(("VISIBLE", "INFRARED"), made, strict=True):
        Image.fromarray(picture.squeeze()).save(tmp_path / f"{name}.png")
    (tmp_path / "vif.onnx").symlink_to(path)
    lines = re.findall(r"^    (python .*vif\.onnx.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        subprocess.run(["bash", "-c", line.replace("python", sys.executable, 1)], cwd=tmp_path, check=True)
    fused = np.asarray(Image.open(tmp_path / "fused.png"))
    assert levels(fused, fuser.fuse(dict(zip(("visible", "infrared"), made, strict=True)))) <= 1


def check_program(fuser: Fuser, path: Path) -> dict[str, str]:
    """That the .pt2 at `path` fuses as the fuser does, in grey; its metadata."""
    with zipfile.ZipFile(path) as members:
        check_names_no_place(*(members.read(name) for name in members.namelist()))
    files: dict[str, Any] = {METADATA: ""}
    module = torch.export.load(path, extra_files=files).module()
    roles = fuser.config.roles
    for size in SIZES:
        grey = [np.atleast_3d(image)[..., :1] for image in pictures(*size)]
        planes = [torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(255)) for image in grey]
        plain = fuser.fuse(dict(zip(roles, grey, strict=True)))
        for mask, text in guidances(*size):
            expected = fuser.fuse(dict(zip(roles, grey, strict=True)), mask, text)
            objects = torch.zeros(1, *size, dtype=torch.uint8) if mask is None else torch.from_numpy(mask)[None]
            tokens = np.zeros((1, TEXT_WIDTH)) if text is None else text
            made = module(*planes, objects, torch.from_numpy(tokens.astype(np.float32))[None])
            rounded = np.rint(made[0].permute(1, 2, 0).detach().numpy().clip(0, 1) * 255).astype(np.uint8)
            assert levels(rounded, expected) <= 1
            assert (mask is None and text is None) or size == (1, 1) or levels(expected, plain) > 0
    told: dict[str, str] = json.loads(files[METADATA])
    assert json.loads(told["roles"]) == list(roles)
    return told


def test_a_program_of_torch_comes_back(tmp_path: Path) -> None:
    fuser = shallow()
    export.save(fuser, tmp_path / "vif.pt2", {"a": "fact"})
    assert check_program(fuser, tmp_path / "vif.pt2")["a"] == "fact"


@pytest.mark.slow
def test_a_program_of_every_path_comes_back(tmp_path: Path) -> None:
    fuser, path, answer = by_command(exposures(), tmp_path / "mef.pt2")
    assert answer["inputs"] == ["under", "over", "mask", "text"]
    assert check_program(fuser, path)["example"] == EXAMPLE.read_text()


@pytest.mark.slow
def test_a_sharpening_model_takes_any_ratio(tmp_path: Path) -> None:
    fuser = sharpening()
    export.save(fuser, tmp_path / "pan.onnx", {"example": EXAMPLE.read_text()})
    fuse = consumer(onnxruntime.InferenceSession(tmp_path / "pan.onnx"))
    rng = np.random.default_rng(0)
    for (height, width), ratio in zip(SIZES, (1, 1, 4, 1, 3), strict=True):
        pan = rng.integers(0, 1024, (height, width, 1), dtype=np.uint16)
        ms = rng.integers(0, 900, (height // ratio, width // ratio, 3), dtype=np.uint16)
        for mask, text in guidances(height, width):
            expected = fuser.fuse({"pan": pan, "ms": ms}, mask, text)
            assert levels(fuse([pan, ms], mask, text), expected) <= 1
    assert np.abs(expected.astype(int) - ms.repeat(3, 0).repeat(3, 1)).max() > 20


def test_a_file_tells_of_the_tiles_that_suit_the_network() -> None:
    fuser = exposures()
    fuser.config = fuser.config.model_copy(update={"extent": (96, 64)})
    told = export.metadata(fuser)
    assert json.loads(told["tile"]) == [96, 64]
    assert "larger pictures than 64x96 in tiles" in told["recipe"]


def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuser = exposures()
    with torch.no_grad():
        fuser.network.middle[0].spatial.receptance_key_value.weight.mul_(1000)
    fuser.save(tmp_path / "model")

    def refused(name: str) -> str:
        done = run("export", "--model", tmp_path / "model", "-o", tmp_path / name)
        assert done.exit_code == 1
        return done.stderr

    assert "is exported as .onnx or .pt2" in refused("mef.tflite")
    assert "leave the range of float64" in refused("mef.pt2")
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert "made by onnxscript: pip install 'rwkvfusion[onnx]'" in refused("mef.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_example_needs_numpy_alone_until_it_reads_files() -> None:
    imported = [node for node in ast.parse(EXAMPLE.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.name for node in imported for alias in node.names} == {
        "annotations",
        "argparse",
        "json",
        "Any",
        "numpy",
    }
