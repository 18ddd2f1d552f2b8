"""One deliberately mixed dataset, read by other tools: the same pictures, masks and captions, byte by byte."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds
from made import scene
from PIL import Image

from rwkvfusion.infra.lease import Lease
from rwkvfusion.infra.pictures.decode import decode
from rwkvfusion.infra.storage import Store, sha256
from rwkvfusion.pipelines.prepare.card import finish_dataset
from rwkvfusion.pipelines.prepare.operators import CommitShard, ReadPairs, RunStage, Target, first_row
from rwkvfusion.pipelines.prepare.plan import Job, plan_job
from rwkvfusion.pipelines.prepare.recipe import PrepareRecipe
from rwkvfusion.pipelines.prepare.verify import verify
from rwkvfusion.stages.dataset.manifest import read_manifests
from rwkvfusion.stages.dataset.sample import META, Sample, is_in_meta
from rwkvfusion.stages.dataset.sample import Image as Picture
from rwkvfusion.stages.dataset.tar import unpack

PAIRED = {
    "layout": "paired", "modalities": {"visible": {"folder": "vi"}, "infrared": {"folder": "ir"}},
    "target": {"folder": "gt"},
}  # fmt: skip
FORMATS = {"png": "PNG", "PNG": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"}
FIELDS = ["caption.txt", "mask.png", "text.npy", "meta.json"]
NAMES = {
    # name: extension and format of visible and infrared; whether it has a target
    "train/a": ("png", "PNG", "png", True),
    "train/b": ("png", "PNG", "png", False),
    "train/c": ("png", "JPEG", "png", True),
    "train/d": ("jpg", "JPEG", "bmp", False),
    "train/e": ("PNG", "PNG", "tiff", True),
    "train/f": ("bmp", "BMP", "tif", False),
    "train/g": ("png", "PNG", "png", False),
    "train/h": ("png", "PNG", "png", True),
    "test/i": ("png", "PNG", "png", False),
    "test/j": ("jpg", "JPEG", "png", False),
}


def encoded(array: np.ndarray, form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(out, form)
    return out.getvalue()


def write(root: Path, name: str, extension: str, data: bytes) -> None:
    path = root / f"{name}.{extension}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plan(source: Path, out: Path, **shard: Any) -> Job:
    settings = {"source": {**PAIRED, "root": str(source)}, "output": str(out), "shard": {"pairs": 3, **shard}}
    return plan_job(PrepareRecipe.model_validate(settings))


def run_here(job: Job) -> Store:
    """What `prepare` does, in this process and without Ray."""
    with Lease(job.store, "test", job.recipe.storage.lease_seconds) as lease:
        target = Target(job.store, job.dataset, job.task, job.fingerprint, lease.fence, extensions=job.extensions,
                        uniform=job.recipe.shard.uniform)  # fmt: skip
        stages = (RunStage(*stage, target) for stage in zip(job.stages, job.fingerprints, strict=True))
        operators = [ReadPairs(job.recipe.source, target), *stages, CommitShard(target)]
        for shard in job.pending:
            table = pa.Table.from_pylist([first_row(shard.name, shard.to_json())])
            for operator in operators:
                table = operator(table)
        finish_dataset(job, read_manifests(job.store))
    return job.store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    for seed, (name, (extension, form, other, has_target)) in enumerate(NAMES.items()):
        split, stem = name.split("/")
        write(root, f"{split}/vi/{stem}", extension, encoded(scene(seed, 48, 64), form))
        write(root, f"{split}/ir/{stem}", other, encoded(255 - scene(seed + 50, 48, 64, 1), FORMATS[other]))
        if has_target:
            write(root, f"{split}/gt/{stem}", "png", encoded(scene(seed + 90, 48, 64), "PNG"))
    return root


@pytest.fixture(scope="module")
def mixed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return run_here(plan(source, tmp_path_factory.mktemp("out")))


def samples(store: Store) -> dict[str, Sample]:
    tars = [store.read(manifest.tar) for manifest in read_manifests(store) if manifest.keys]
    return {sample.key: sample for tar in tars for sample in unpack(tar)}


def tars(store: Store) -> list[str]:
    return sorted(store.path(name) for name in store.files(deep=False) if name.endswith(".tar"))


def members(store: Store) -> dict[str, dict[str, bytes]]:
    """By key and field, as `tar` sees them."""
    found: dict[str, dict[str, bytes]] = {}
    for path in tars(store):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, field = info.name.partition(".")
                found.setdefault(key, {})[field] = tar.extractfile(info).read()  # type: ignore[union-attr]
    return found


def test_one_name_for_all_pictures_of_a_role_and_the_source_s_own_bytes(source: Path, mixed: Store) -> None:
    held = members(mixed)
    assert sorted(held) == [name.split("/")[1] for name in NAMES]
    for name, (extension, form, other, has_target) in NAMES.items():
        split, stem = name.split("/")
        found = held[stem]
        target = ["target.png"] if has_target else []
        assert sorted(found) == sorted([*FIELDS, "visible.png", "infrared.png", *target])
        assert found["visible.png"] == (source / split / "vi" / f"{stem}.{extension}").read_bytes()
        assert found["infrared.png"] == (source / split / "ir" / f"{stem}.{other}").read_bytes()
        # The true format is told, whatever the member is called.
        assert [i["ext"] for i in json.loads(found["meta.json"])["images"]] == [
            {"JPEG": "jpg"}.get(form, form.lower()), {"tiff": "tif"}.get(other, other)
        ]  # fmt: skip
    assert {
        key: sample.members({r: "png" for r in ("visible", "infrared")}) for key, sample in samples(mixed).items()
    } == {key: {f"{key}.{field}": data for field, data in sorted(fields.items())} for key, fields in held.items()}


def test_pairs_without_a_target_have_shards_of_their_own_after_the_others(mixed: Store) -> None:
    keys = {manifest.shard: "".join(manifest.keys) for manifest in read_manifests(mixed)}
    assert keys == {"test-000000": "ij", "train-000000": "ace", "train-000001": "h", "train-000002": "bdf",
                    "train-000003": "g"}  # fmt: skip


def _as_bytes(value: Any) -> Any:
    return value["bytes"] if isinstance(value, dict) and "bytes" in value else value


@contextlib.contextmanager
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()
    yield


def test_hugging_face_reads_the_tars_alone(mixed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = members(mixed)
    train = [path for path in tars(mixed) if "/train-" in path]
    with offline(tmp_path, monkeypatch):
        files = {"train": [*train, *tars(mixed)[:1]]}
        data = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
        rows = {row["__key__"]: row for row in data.decode(False)}
    assert rows.keys() == held.keys()
    for key, row in rows.items():
        for field in ("visible.png", "infrared.png", "mask.png", "target.png"):
            assert _as_bytes(row[field]) == held[key].get(field)
        assert row["caption.txt"] == held[key]["caption.txt"].decode()


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_reads_the_folder(
    mixed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    held = members(mixed)
    with offline(tmp_path, monkeypatch):
        loaded = datasets.load_dataset(mixed.path(), streaming=streaming, cache_dir=str(tmp_path))
        assert sorted(loaded) == ["test", "train"]
        rows: dict[str, Any] = {}
        for data in loaded.values():
            as_stored = datasets.Features(
                {
                    n: datasets.Image(decode=False) if isinstance(k, datasets.Image) else k
                    for n, k in data.features.items()
                }
            )
            plain = data.decode(False) if streaming else data.cast(as_stored)
            rows |= {row["__key__"]: row for row in plain}
            assert all(row["mask.png"].size == (64, 48) for row in data)
    assert rows.keys() == held.keys()
    for key, row in rows.items():
        fields = held[key]
        for field in ("visible.png", "infrared.png", "mask.png", "target.png"):
            assert _as_bytes(row[field]) == fields.get(field)
        assert row["caption.txt"] == fields["caption.txt"].decode()
        np.testing.assert_array_equal(np.array(row["text.npy"], np.float16), np.load(io.BytesIO(fields["text.npy"])))
        meta = json.loads(fields["meta.json"])
        assert {name: row["meta.json"][name] for name in ("key", "boxes", "mask", "captions")} == {
            name: meta[name] for name in ("key", "boxes", "mask", "captions")
        }


@pytest.mark.usefixtures("local_ray")
def test_webdataset_and_ray_read_what_tar_does(mixed: Store) -> None:
    import ray

    held = members(mixed)
    by_wds = list(wds.WebDataset(tars(mixed), shardshuffle=False, empty_check=False))
    by_ray = ray.data.read_webdataset(tars(mixed), decoder=None).take_all()
    for rows in (by_wds, by_ray):
        found = {row["__key__"]: row for row in rows}
        assert len(rows) == len(found) == len(held)
        for key, fields in held.items():
            assert {field: found[key][field] for field in fields} == fields
            assert all(found[key].get(field) is None for field in {"target.png"} - fields.keys())


def test_what_is_not_alike_is_said(source: Path, mixed: Store, tmp_path: Path) -> None:
    said = [
        "infrared.png is of several formats (7 png, 2 tif, 1 bmp): under one name, as the source has them;"
        " shard.uniform=true makes one format of them",
        "target.png is in 4 of 10 samples",
        "visible.png is of several formats (6 png, 3 jpg, 1 bmp): under one name, as the source has them;"
        " shard.uniform=true makes one format of them",
    ]
    report = verify(mixed.url, deep=True)
    assert report.clean
    assert list(report.notes) == said
    card = mixed.read("README.md").decode()
    assert all(line in card for line in said)
    # Before anything is read, a JPEG called .png is not known for one.
    planned = plan(source, tmp_path).differences
    assert planned[0].startswith("visible.png is of several formats (7 png, 2 jpg, 1 bmp)")


def test_uniform_shards_hold_one_format_of_the_same_pixels(source: Path, mixed: Store, tmp_path: Path) -> None:
    before, after = samples(mixed), samples(run_here(plan(source, tmp_path, uniform=True)))
    assert before.keys() == after.keys()
    for key, sample in after.items():
        for old, new in zip(before[key].pictures, sample.pictures, strict=True):
            np.testing.assert_array_equal(decode(new.data), decode(old.data))
            assert (new.ext, sha256(new.data)) == ("png", new.sha256)
            kept = (None, None) if old.ext == "png" else (old.ext, old.sha256)
            assert (new.original_ext, new.original_sha256) == kept
            assert kept != (None, None) or new.data == old.data
    assert after["d"].mask == before["d"].mask
    notes = verify(Store(str(tmp_path)).sub("paired").url, deep=True).notes
    assert notes == ("target.png is in 4 of 10 samples",)


def test_sets_that_are_alike_keep_their_plan_and_names(tmp_path: Path) -> None:
    # All called .png, all JPEG: nothing is mixed, and the members are named as they always were.
    for seed, name in enumerate("ab"):
        write(tmp_path / "s", f"vi/{name}", "png", encoded(scene(seed), "JPEG"))
        write(tmp_path / "s", f"ir/{name}", "TIFF", encoded(scene(seed + 9), "TIFF"))
    job = plan(tmp_path / "s", tmp_path / "o")
    assert job.extensions == {"visible": "jpg", "infrared": "tif"}
    assert isinstance(json.loads(job.shards[0].to_json()), list)
    assert job.differences == ()
    # What joins them changes the shards alone that it is in.
    write(tmp_path / "s", "vi/z", "bmp", encoded(scene(5), "BMP"))
    write(tmp_path / "s", "ir/z", "tif", encoded(scene(6), "TIFF"))
    first, second = plan(tmp_path / "s", tmp_path / "o", pairs=2).shards
    assert first.digest == job.shards[0].digest
    assert json.loads(second.to_json())["extensions"] == {"visible": "jpg"}


def test_the_card_s_code_runs_as_written_and_its_fields_are_all_described(
    mixed: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = mixed.read("README.md").decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    shown: list[Any] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image.size))
    monkeypatch.chdir(mixed.path())
    names: dict[str, Any] = {}
    with offline(tmp_path, monkeypatch):
        exec(blocks[0], names)
        labels = [sample.mask.labels for sample in samples(mixed).values() if sample.mask and sample.split == "test"]
        assert len(capsys.readouterr().out.splitlines()) == sum(map(len, labels))
        assert shown == [(64, 48)]
        exec(blocks[1], names)
        assert len(capsys.readouterr().out.splitlines()) == 2
    # The third takes a Ray of its own: that Ray reads the same is tested above.
    assert "read_webdataset" in blocks[2]
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| [^|]+ \| ([^|]*) \|$", card, re.MULTILINE)
    assert {name for name, _ in rows} >= {field.name for field in META}
    assert {name.rpartition(".")[2] for name, _ in rows} >= {
        f for f in Picture.model_fields if is_in_meta(f"images.{f}")
    }
    assert all(words.strip() for _, words in rows)


def test_a_dataset_of_which_nothing_was_committed_has_a_card(tmp_path: Path) -> None:
    write(tmp_path / "s", "vi/a", "png", b"no picture")
    write(tmp_path / "s", "ir/a", "png", encoded(scene(1), "PNG"))
    card = run_here(plan(tmp_path / "s", tmp_path / "o")).read("README.md").decode()
    assert "There is nothing to read" in card
    assert ".tar" not in card.replace("`*.tar`", "")
