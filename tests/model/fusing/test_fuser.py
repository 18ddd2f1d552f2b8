"""The fuser: pixels in, pixels out, and its two files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkvfusion.model.fusing import fuser as fuser_module
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig, FuserError
from rwkvfusion.model.fusing.tiles import fuse_tiled
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion

ROLES = ("visible", "infrared")


def luma_network() -> RWKVFusion:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    torch.nn.init.normal_(network.head.weight, std=0.05)
    return network


@pytest.fixture(scope="module")
def fuser() -> Fuser:
    network = luma_network()
    return Fuser(network, FuserConfig.of(network, "vif", ROLES, luma_only=True))


class FirstOnly(RWKVFusion):
    """A network that gives back the first modality: what the fuser does around it is then seen alone."""

    def forward(self, images: list[Tensor], *_: object) -> Tensor:  # type: ignore[override]
        return images[0]


@pytest.fixture(scope="module")
def through() -> Fuser:
    network = FirstOnly(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    return Fuser(network, FuserConfig.of(network, "vif", ROLES, luma_only=True))


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    seed=st.integers(0, 99),
)
def test_a_network_that_copies_copies_every_value(
    through: Fuser, height: int, width: int, dtype: type[np.generic], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    colour = rng.random((height, width, 3))
    grey = rng.random((height, width, 1))
    if dtype is not np.float32:
        colour, grey = colour * np.iinfo(dtype).max, grey * np.iinfo(dtype).max  # type: ignore[type-var]
    colour, grey = colour.astype(dtype), grey.astype(dtype)
    fused = through.fuse({"visible": colour, "infrared": grey})
    assert fused.dtype == dtype
    np.testing.assert_allclose(fused, colour, rtol=0, atol=1e-6 if dtype is np.float32 else 0)
    np.testing.assert_array_equal(through.fuse({"visible": grey, "infrared": grey}), grey)


def test_each_modality_has_its_own_range(through: Fuser) -> None:
    deep = np.full((8, 8, 1), 65535, np.uint16)
    fused = through.fuse({"visible": deep, "infrared": np.zeros((8, 8), np.uint8)})
    np.testing.assert_array_equal(fused, deep)


def test_the_chroma_of_either_side_is_kept_and_grey_stays_grey(fuser: Fuser) -> None:
    colour, grey = scene(1), scene(2, channels=1)
    alone = fuser.fuse({"visible": grey, "infrared": scene(3, channels=1)})
    assert alone.shape == (96, 128, 1)
    as_colour = fuser.fuse({"visible": np.repeat(grey, 3, 2), "infrared": scene(3, channels=1)})
    np.testing.assert_array_equal(as_colour, alone)
    assert fuser.fuse({"visible": grey, "infrared": colour}).shape == (96, 128, 3)


def test_the_order_of_the_mapping_does_not_matter(fuser: Fuser) -> None:
    a, b = scene(1), scene(2, channels=1)
    np.testing.assert_array_equal(
        fuser.fuse({"visible": a, "infrared": b}), fuser.fuse({"infrared": b[:, :, 0], "visible": a})
    )


def test_guidance_reaches_the_network(fuser: Fuser) -> None:
    images = {"visible": scene(1, channels=1), "infrared": scene(2, channels=1)}
    mask = np.zeros((96, 128), np.uint8)
    plain = fuser.fuse(images)
    np.testing.assert_array_equal(fuser.fuse(images, mask, np.zeros((0, 16), np.float16)), plain)
    mask[20:60, 30:80] = 3
    assert not np.array_equal(fuser.fuse(images, mask), plain)
    text = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float16)
    assert not np.array_equal(fuser.fuse(images, None, text), plain)


def test_saved_and_loaded_is_the_same_fuser(fuser: Fuser, tmp_path: Path) -> None:
    fuser.save(tmp_path / "deep" / "folder")
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = Fuser.load(tmp_path / "deep" / "folder")
    images = {"visible": scene(1), "infrared": scene(2, channels=1)}
    np.testing.assert_array_equal(loaded.fuse(images), fuser.fuse(images))
    assert loaded.config == fuser.config


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"visible": scene(1)}, r"fuses visible \+ infrared, but was given visible$"),
        ({"visible": scene(1), "ir": scene(2)}, r"was given visible \+ ir"),
        ({"visible": scene(1), "infrared": scene(2), "pet": scene(3)}, "visible . infrared . pet"),
        ({"visible": scene(1), "infrared": scene(2, 40, 50)}, "infrared is 50x40 and visible is 128x96"),
        ({"visible": scene(1), "infrared": scene(2, 48, 64)}, "infrared is 64x48 and visible is 128x96"),
        ({"visible": scene(1), "infrared": scene(2, channels=2)}, "infrared has 2 channels"),
        ({"visible": scene(1), "infrared": scene(2) * 1.0}, "infrared holds floats from .* to 2"),
        ({"visible": scene(1), "infrared": scene(2).astype(np.int32)}, "infrared holds int32"),
        ({"visible": scene(1), "infrared": np.full((96, 128), np.nan)}, "infrared holds floats from nan"),
        ({"visible": scene(1), "infrared": np.zeros((0, 5, 3), np.uint8)}, "not a picture"),
    ],
)
def test_pictures_that_do_not_fit_are_named(fuser: Fuser, images: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(FuserError, match=message):
        fuser.fuse(images)


def test_guidance_that_does_not_fit_is_named(fuser: Fuser) -> None:
    images = {"visible": scene(1), "infrared": scene(2)}
    with pytest.raises(FuserError, match="mask is 64x48, the fused picture 128x96"):
        fuser.fuse(images, np.zeros((48, 64), np.uint8))
    with pytest.raises(FuserError, match="tokens, 16"):
        fuser.fuse(images, None, np.zeros((3, 32), np.float16))


def test_files_that_are_no_fuser_are_named(fuser: Fuser, tmp_path: Path) -> None:
    with pytest.raises(FuserError, match=r"config.json and model.safetensors missing"):
        Fuser.load(tmp_path)
    fuser.save(tmp_path)
    good = (tmp_path / "config.json").read_text()
    for change, message in (
        ({"task": "painting"}, "task"),
        ({"version": 9}, "version"),
        ({"roles": ["visible"]}, "takes 2 modalities, the config names visible"),
        ({"network": {"in_channels": [1, 1]}}, "out_channels"),
        ({"network": json.loads(good)["network"] | {"width": 16}}, "does not hold this network's weights"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(FuserError, match=message):
            Fuser.load(tmp_path)
    (tmp_path / "config.json").write_text(good)
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" * 40)
    with pytest.raises(FuserError, match="does not hold"):
        Fuser.load(tmp_path)


def test_weights_that_are_not_finite_give_an_error_not_a_picture(fuser: Fuser, tmp_path: Path) -> None:
    fuser.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] * torch.nan
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(FuserError, match="not finite"):
        Fuser.load(tmp_path).fuse({"visible": scene(1), "infrared": scene(2)})


def test_a_place_may_take_one_of_several_roles() -> None:
    network = luma_network()
    medical = Fuser(network, FuserConfig.of(network, "mif", ("mri", "ct|pet|spect"), luma_only=True))
    mri, pet = scene(1, channels=1), scene(2)
    np.testing.assert_array_equal(medical.fuse({"pet": pet, "mri": mri}), medical.fuse({"mri": mri, "ct": pet}))
    with pytest.raises(FuserError, match=r"mri \+ ct\|pet\|spect, but was given mri \+ ct \+ pet"):
        medical.fuse({"mri": mri, "ct": mri, "pet": pet})


def test_sharpening_takes_the_low_resolution_as_it_is() -> None:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 4), out_channels=4, width=8, text_width=16, residual=1))
    sharpener = Fuser(network, FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False))
    rng = np.random.default_rng(0)
    pan, ms = (rng.integers(0, 65536, shape).astype(np.uint16) for shape in ((64, 96, 1), (16, 24, 4)))
    fused = sharpener.fuse({"pan": pan, "ms": ms})
    assert (fused.shape, fused.dtype) == ((64, 96, 4), np.uint16)
    with pytest.raises(FuserError, match="ms is 23x16 and pan is 96x64"):
        sharpener.fuse({"pan": pan, "ms": ms[:, :23]})
    with pytest.raises(FuserError, match="ms has 3 channels, this model takes 4"):
        sharpener.fuse({"pan": pan, "ms": ms[:, :, :3]})


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 150), width=st.integers(1, 150), unit=st.sampled_from([1, 2, 4, 6]), seed=st.integers(0, 9)
)
def test_tiles_cover_and_blend_to_the_whole(height: int, width: int, unit: int, seed: int) -> None:
    height, width = height * unit, width * unit
    picture = np.random.default_rng(seed).random((2, height, width))
    windows = []

    def fuse(window: tuple[slice, slice]) -> np.ndarray:
        windows.append(window)
        return picture[:, window[0], window[1]]

    np.testing.assert_allclose(fuse_tiled(fuse, height, width, unit, max_pixels=300**2), picture, rtol=0, atol=1e-12)
    assert all(part.start % unit == 0 and part.stop % unit == 0 for window in windows for part in window)
    assert all(part.stop - part.start < 300 + 3 * unit for window in windows for part in window) or len(windows) == 1


def test_tiling_leaves_no_seam(fuser: Fuser, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"visible": scene(1, 200, 300, 1), "infrared": scene(2, 200, 300, 1)}
    whole = fuser.fuse(images).astype(float)
    monkeypatch.setattr(
        fuser_module, "fuse_tiled", lambda fuse, h, w, unit: fuse_tiled(fuse, h, w, unit, max_pixels=160 * 160)
    )
    difference = fuser.fuse(images) - whole
    # A tile sees less around it than the whole does, so values may drift; where tiles meet they must not jump.
    jumps = np.abs(np.diff(difference, axis=1)).mean(axis=(0, 2))[4:-4]
    assert np.abs(difference).max() > 0
    assert jumps.max() < 3
