"""`rwkvfusion.load`: every kind of picture in and the same out, and the cache."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from made_fusers import luma_fuser
from PIL import Image

import rwkvfusion
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.pictures.encode import encode_picture, text_of
from rwkvfusion.infra.reach import UnreachableError
from rwkvfusion.infra.storage import sha256
from rwkvfusion.model.fusing.fuser import Fuser
from rwkvfusion.model.registry.cache import Cached, CacheWarning, Meaning
from rwkvfusion.model.registry.encoded import MADE_BY
from rwkvfusion.model.registry.loaded import LoadedModel

SHAPE = (37, 53)


def picture(seed: int, channels: int = 1, dtype: Any = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (*SHAPE, channels), dtype, endpoint=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    luma_fuser().save(place)
    return place


@pytest.fixture(scope="module")
def fuse(folder: Path) -> LoadedModel:
    return rwkvfusion.load(str(folder), device="cpu")


def png(array: np.ndarray) -> bytes:
    return encode_picture(array, "png")[0]


def test_importing_it_is_light() -> None:
    program = """if True:
        import sys, time
        start = time.perf_counter()
        import rwkvfusion
        seconds = time.perf_counter() - start
        heavy = {"numpy", "torch", "mlflow", "pydantic"} & set(sys.modules)
        assert not heavy, heavy
        print(rwkvfusion.__version__, seconds)
    """
    took = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        version, seconds = done.stdout.split()
        assert version == rwkvfusion.__version__
        took.append(float(seconds))
    assert min(took) < 0.05


def test_it_is_a_typed_package() -> None:
    assert Path(rwkvfusion.__file__).with_name("py.typed").is_file()


def test_each_kind_comes_back_as_it_went_in(fuse: LoadedModel, folder: Path, tmp_path: Path) -> None:
    visible, infrared = picture(1, 3), picture(2)
    wanted = Fuser.load(folder).fuse({"visible": visible, "infrared": infrared})
    assert wanted.shape == (*SHAPE, 3)
    np.testing.assert_array_equal(fuse(visible, infrared), wanted)
    np.testing.assert_array_equal(fuse(visible, infrared[:, :, 0]), wanted)
    data = fuse(png(visible), png(infrared))
    assert isinstance(data, bytes)
    np.testing.assert_array_equal(decode(data), wanted)
    image = fuse(Image.fromarray(visible), Image.fromarray(infrared[:, :, 0]))
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image), wanted)
    (tmp_path / "a.png").write_bytes(png(visible))
    (tmp_path / "b.png").write_bytes(png(infrared))
    for out in (tmp_path / "out.png", str(tmp_path / "out.tif")):
        assert fuse(tmp_path / "a.png", str(tmp_path / "b.png"), out=out) == Path(out)
        np.testing.assert_array_equal(decode(Path(out).read_bytes()), wanted)
    # A grey result has the dimensions of a grey picture, whatever the kinds of the others.
    assert fuse(infrared[:, :, 0], png(infrared)).shape == SHAPE
    assert fuse(infrared, png(infrared)).shape == (*SHAPE, 1)


@pytest.mark.parametrize("kind", ["array", "bytes", "pillow"])
def test_sixteen_bits_stay(fuse: LoadedModel, folder: Path, kind: str) -> None:
    deep = [picture(seed, 1, np.uint16) for seed in (1, 2)]
    wanted = Fuser.load(folder).fuse(dict(zip(("visible", "infrared"), deep, strict=True)))
    assert wanted.dtype == np.uint16
    as_kind: Any = {"array": lambda a: a, "bytes": png, "pillow": lambda a: Image.fromarray(a[:, :, 0])}[kind]
    fused: Any = fuse(*(as_kind(array) for array in deep))
    array = decode(fused) if kind == "bytes" else np.asarray(fused).reshape(wanted.shape)
    assert array.dtype == np.uint16
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_fused_png_names_the_weights_that_made_it(fuse: LoadedModel, folder: Path, dtype: Any) -> None:
    data = fuse(png(picture(1, 1, dtype)), png(picture(2, 1, dtype)))
    said = text_of(data)
    assert said[MADE_BY] == sha256((folder / "model.safetensors").read_bytes())
    np.testing.assert_array_equal(decode(data), fuse(picture(1, 1, dtype), picture(2, 1, dtype)))
    assert text_of(encode_picture(picture(1), "tif")[0]) == text_of(b"") == {}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F"])
def test_a_pillow_image_means_what_its_file_means(fuse: LoadedModel, mode: str) -> None:
    grey = Image.fromarray(picture(1)[:, :, 0])
    image = Image.fromarray(picture(1)[:, :, 0].astype(np.float32) / 255) if mode == "F" else grey.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF" if mode in ("CMYK", "I", "F") else "PNG")
    other = picture(2)
    fused = fuse([image], [other])[0]
    from_file = decode(fuse(file.getvalue(), png(other)))
    np.testing.assert_array_equal(np.asarray(fused).reshape(from_file.shape), from_file)


def test_guidance_in_each_form(fuse: LoadedModel, folder: Path) -> None:
    from rwkvfusion.stages.guidance.builtin.text import HashedText, TextConfig

    visible, infrared = picture(1), picture(2)
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:20, 8:30] = 1
    caption = "a person on the left"
    fuser = Fuser.load(folder)
    width = fuser.network.config.text_width
    text = HashedText(TextConfig(width=width)).encode(caption).astype(np.float16)
    images = {"visible": visible, "infrared": infrared}
    wanted = fuser.fuse(images, mask, text)
    assert not np.array_equal(wanted, fuser.fuse(images, mask))
    for form in (mask, mask[:, :, None], Image.fromarray(mask), png(mask[:, :, None]), mask.astype(bool)):
        np.testing.assert_array_equal(fuse(visible, infrared, mask=form, caption=caption), wanted)
    np.testing.assert_array_equal(fuse(visible, infrared, mask=mask, caption=text), wanted)


def test_a_batch_is_as_its_scenes(fuse: LoadedModel) -> None:
    a, b = [picture(1), picture(3)], [picture(2), picture(4)]
    mask = np.ones(SHAPE, np.uint8)
    fused = fuse(a, b, mask=[mask, None], caption=[None, "dark"])
    np.testing.assert_array_equal(fused[0], fuse(a[0], b[0], mask=mask))
    np.testing.assert_array_equal(fused[1], fuse(a[1], b[1], caption="dark"))


def test_threads_and_many_calls(fuse: LoadedModel) -> None:
    visible, infrared = picture(1)[:16, :16], picture(2)[:16, :16]
    wanted = fuse(visible, infrared)
    for _ in range(100):
        fuse(visible, infrared)
    before = psutil.Process().memory_info().rss
    wrong = []

    def many() -> None:
        for _ in range(500):
            if not np.array_equal(fuse(visible, infrared), wanted):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert psutil.Process().memory_info().rss - before < 16 * 2**20


MEANING = Meaning("tiny", "3", "0123", 1_700_000_000_000, "")


def kept(where: str, uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Cached:
    monkeypatch.setenv("RWKVFUSION_CACHE", str(cache))
    proof = sha256((folder / "model.safetensors").read_bytes())
    cached = Cached.keep(where, uri, MEANING._replace(proof=proof), folder)
    assert cached is not None
    return cached


def test_without_its_registry_a_model_is_what_it_last_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, uri = "http://127.0.0.1:9", "models:/tiny@champion"
    cached = kept(where, uri, folder, monkeypatch, tmp_path)
    with pytest.warns(CacheWarning, match=r"MLflow at http://127.0.0.1:9: no answer.*last was here, version 3"):
        fuse = rwkvfusion.load("tiny", tracking_uri=where)
    assert (fuse.source.folder, fuse.source.version, fuse.source.run_id) == (cached.folder, "3", "0123")
    assert fuse(picture(1), picture(2)).shape == (*SHAPE, 1)
    # Files that are damaged are no model.
    (cached.folder / "model.safetensors").write_bytes(b"")
    assert Cached.find(where, uri) is None
    monkeypatch.setattr("rwkvfusion.model.registry.find.GIVE_UP_SECONDS", 0)
    with pytest.raises(UnreachableError):
        rwkvfusion.load(uri, tracking_uri=where)
    # And are mended by the next who keeps them.
    assert kept(where, uri, folder, monkeypatch, tmp_path) == cached
    assert Cached.find(where, uri) == cached


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RWKVFUSION_CACHE", str(tmp_path / "file"))
    with pytest.warns(CacheWarning, match="set RWKVFUSION_CACHE"):
        assert Cached.keep("here", "models:/tiny/1", MEANING, folder) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Cached.find("here", "models:/tiny/1") is None
