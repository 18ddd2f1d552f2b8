"""The fuser: pixels in, pixels out, and its two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import scene
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwkvfusion.infra.pictures.units import Unit
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig, FuserError
from rwkvfusion.model.fusing.tiles import Window
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion

ROLES = ("visible", "infrared")


def luma_network() -> RWKVFusion:
    torch.manual_seed(0)
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16))
    torch.nn.init.normal_(network.head.weight, std=0.05)
    # As a network that was trained with masks: untrained ones do not see them.
    for name, weights in network.named_parameters():
        if name.endswith(".mask.weight"):
            torch.nn.init.normal_(weights, std=0.1)
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
        ({"visible": scene(1), "infrared": np.full((96, 128), np.nan)}, "infrared holds floats that are not finite"),
        ({"visible": scene(1), "infrared": np.zeros((0, 5, 3), np.uint8)}, "infrared is no picture of"),
    ],
)
def test_pictures_that_do_not_fit_are_named(fuser: Fuser, images: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(FuserError, match=message):
        fuser.fuse(images)


def test_guidance_that_does_not_fit_is_named(fuser: Fuser) -> None:
    images = {"visible": scene(1), "infrared": scene(2)}
    with pytest.raises(FuserError, match="mask is 64x48 and the fused picture 128x96"):
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


def test_a_tile_is_as_the_network_fuses_it_alone(fuser: Fuser) -> None:
    """In the middle, that no other tile reaches; the mask is cut with it, and the text is that of the whole."""
    images = {"visible": scene(1, 64, 160, 1), "infrared": scene(2, 64, 160, 1)}
    mask = np.zeros((64, 160), np.uint8)
    mask[10:50, 20:60] = 2
    text = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float16)
    tiled = fuser.fuse(images, mask, text, tile=(64, 64))
    left = fuser.fuse({role: image[:, :64] for role, image in images.items()}, mask[:, :64], text)
    np.testing.assert_array_equal(tiled[:, :38], left[:, :38])
    assert not np.array_equal(fuser.fuse(images, mask, text)[:, :38], left[:, :38])


@pytest.mark.parametrize(
    ("extent", "fields", "expected"),
    [
        (None, {}, None),
        ((96, 128), {}, (96, 128)),
        ((12, 128), {}, (16, 128)),
        ((96, 128), {"gate_window": 96}, (96, 128)),
        ((96, 128), {"decay": "token"}, (96, 128)),
        ((96, 128), {"gate_window": 96, "decay": "token"}, None),
    ],
)
def test_networks_that_know_the_size_get_that_of_their_training(
    extent: tuple[int, int] | None, fields: dict[str, Any], expected: tuple[int, int] | None
) -> None:
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8, text_width=16, **fields))
    fuser = Fuser(network, FuserConfig.of(network, "vif", ROLES, luma_only=True, extent=extent))
    assert fuser.tile_of("auto") == expected
    assert fuser.tile_of("whole") is None
    assert fuser.tile_of(50) == (50, 50)
    if extent is None:
        with pytest.raises(FuserError, match="no extent of training is recorded"):
            fuser.tile_of("extent")
    else:
        assert fuser.tile_of("extent") == (max(extent[0], 16), extent[1])


def test_the_extent_is_kept_and_is_not_known_of_models_from_before_it_was(fuser: Fuser, tmp_path: Path) -> None:
    network = fuser.network
    config = FuserConfig.of(network, "vif", ROLES, luma_only=True, extent=(40, 56))
    Fuser(network, config).save(tmp_path)
    images = {"visible": scene(1, 80, 100), "infrared": scene(2, 80, 100, channels=1)}
    loaded = Fuser.load(tmp_path)
    assert loaded.config == config
    np.testing.assert_array_equal(loaded.fuse(images), fuser.fuse(images, tile=(40, 56)))
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["extent"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    before = Fuser.load(tmp_path)
    assert before.config.extent is None
    np.testing.assert_array_equal(before.fuse(images), fuser.fuse(images, tile="whole"))


@pytest.mark.parametrize("tile", [15, (64, 8)])
def test_tiles_too_small_to_blend_are_refused(fuser: Fuser, tile: int | tuple[int, int]) -> None:
    with pytest.raises(FuserError, match="at least 16x16 pixels, not "):
        fuser.fuse({"visible": scene(1), "infrared": scene(2)}, tile=tile)


@pytest.mark.parametrize("side", [64, 160])
def test_tiling_leaves_no_seam(fuser: Fuser, side: int) -> None:
    images = {"visible": scene(1, 200, 300, 1), "infrared": scene(2, 200, 300, 1)}
    whole = fuser.fuse(images).astype(float)
    difference = fuser.fuse(images, tile=side) - whole
    # A tile sees less around it than the whole does, so values may drift; where tiles meet they must not jump.
    jumps = np.abs(np.diff(difference, axis=1)).mean(axis=(0, 2))[4:-4]
    assert np.abs(difference).max() > 0
    assert jumps.max() < 3


@settings(max_examples=25)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    tile=st.tuples(st.integers(16, 80), st.integers(16, 80)),
    seed=st.integers(0, 99),
)
def test_every_one_of_sixteen_bits_comes_through_tiles(
    through: Fuser, height: int, width: int, tile: tuple[int, int], seed: int
) -> None:
    deep = np.random.default_rng(seed).integers(0, 65536, (height, width, 1)).astype(np.uint16)
    np.testing.assert_array_equal(through.fuse({"visible": deep, "infrared": deep}, tile=tile), deep)


class Upsampled(RWKVFusion):
    """A network that gives back the low-resolution modality, each of its pixels as a square."""

    def forward(self, images: list[Tensor], *_: object) -> Tensor:  # type: ignore[override]
        ratio = images[0].shape[2] // images[1].shape[2]
        assert images[0].shape[3] == ratio * images[1].shape[3]
        return images[1].repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ratio=st.sampled_from([2, 3, 4, 8]),
    tile=st.tuples(st.integers(16, 80), st.integers(16, 80)),
)
def test_tiles_cut_a_low_resolution_at_whole_pixels(size: tuple[int, int], ratio: int, tile: tuple[int, int]) -> None:
    network = Upsampled(NetworkConfig(in_channels=(1, 4), out_channels=4, width=8, text_width=16, residual=1))
    sharpener = Fuser(network, FuserConfig.of(network, "pansharpening", ("pan", "ms"), luma_only=False))
    ms = np.random.default_rng(0).integers(0, 65536, (*size, 4)).astype(np.uint16)
    large = ms.repeat(ratio, axis=0).repeat(ratio, axis=1)
    pan = large[:, :, :1]
    np.testing.assert_array_equal(sharpener.fuse({"pan": pan, "ms": ms}, tile=tile), large)

    def read(window: Window) -> dict[str, np.ndarray]:
        coarse = tuple(slice(part.start // ratio, part.stop // ratio) for part in window)
        return {"pan": pan[window], "ms": ms[coarse]}

    units = dict.fromkeys(("pan", "ms"), Unit(65535.0))
    strips = sharpener.fuse_scene(read, *pan.shape[:2], ratio, units, tile=tile)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in strips]), large)
